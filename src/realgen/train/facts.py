"""Measures on a photograph what words can say of it: light, colour, sharpness, background.

Thresholds are quantiles of 15,300 photographs, so that every word holds for a minority of them and can be seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from realgen.train.photographs import Photograph
from realgen.train.vocabulary import Source, vocabulary

DARK, DIM, BRIGHT, HIGH_KEY = 0.23, 0.31, 0.6, 0.69
"""Mean luma below or above which a picture is dark, dim, bright or high-key."""
GREY, MUTED, VIVID = 0.016, 0.06, 0.29
"""Mean chroma (largest minus smallest channel) of a picture without, with little and with much colour."""
COOL, WARM = -0.09, 0.2
"""Mean red minus blue."""
SOFT_LIGHT, HARD_LIGHT = 0.47, 0.87
"""Distance of the 5 % and 95 % quantiles of luma."""
SOFT, CRISP = {96: 0.020, 128: 0.0125}, {96: 0.135, 128: 0.075}
"""Variance of the Laplacian in the picture's sharper quarter, by size: small pictures are sharper a pixel."""
FACE = (0.0083, 0.037)
"""The same of faces that fill the frame, which have less texture."""
BUSY = {96: 0.11, 128: 0.06}
"""The same on the rim, of a busy background."""
SMOOTH = 0.004
"""The same, of a plain or blurred background."""
PLAIN = 0.1
"""Deviation of the rim's colours below which a smooth background is plain."""
SIDEWAYS, DOWNWARDS = 0.16, 0.42
"""Difference of luma between left and right of the middle, and between top and bottom."""


@dataclass(frozen=True, slots=True)
class Measurements:
    """What is measured on the pixels, all in [0, 1] but `sharpness` and `border_detail` (variance of the Laplacian)."""

    luma: float
    spread: float
    chroma: float
    warmth: float
    sharpness: float
    border_detail: float
    border_spread: float
    sideways: float
    downwards: float
    top_luma: float
    top_spread: float


def measure(pixels: np.ndarray) -> Measurements:
    """The numbers behind `describe`, from (H, W, 3) uint8."""
    rgb = pixels.astype(np.float32) / 255
    luma = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    detail = _laplacian(luma)
    height, width = luma.shape
    border = _border_mask(height, width)
    low, high = np.quantile(luma[::2, ::2], [0.05, 0.95])
    middle = luma[height // 4 : height - height // 4, width // 4 : width - width // 4]
    columns = middle.shape[1]
    top = rgb[: height // 4]
    return Measurements(
        luma=float(luma.mean()),
        spread=float(high - low),
        chroma=float(_value_and_chroma(rgb)[1].mean()),
        warmth=float(rgb[..., 0].mean() - rgb[..., 2].mean()),
        sharpness=float(np.quantile(_tiles(detail**2), 0.75)),
        border_detail=float((detail[border] ** 2).mean()),
        border_spread=float(rgb[border].std(0).mean()),
        sideways=float(middle[:, : columns // 2].mean() - middle[:, columns // 2 :].mean()),
        downwards=float(luma[: height // 3].mean() - luma[-(height // 3) :].mean()),
        top_luma=float(luma[: height // 4].mean()),
        top_spread=float(top.std((0, 1)).mean()),
    )


def _value_and_chroma(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest channel, and the largest minus the smallest; reducing over a last axis of three is slow."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value = np.maximum(np.maximum(red, green), blue)
    return value, value - np.minimum(np.minimum(red, green), blue)


def _laplacian(luma: np.ndarray) -> np.ndarray:
    padded = np.pad(luma, 1, mode="edge")
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    detail: np.ndarray = 4 * luma - around
    return detail


def _border_mask(height: int, width: int) -> np.ndarray:
    """The upper and side rim, an eighth wide: what lies behind a subject in the middle."""
    mask: np.ndarray = np.zeros((height, width), dtype=bool)
    mask[: height // 8] = True
    mask[: height * 3 // 4, : width // 8] = True
    mask[: height * 3 // 4, -(width // 8) :] = True
    return mask


def _tiles(values: np.ndarray, count: int = 4) -> np.ndarray:
    height, width = (side // count * count for side in values.shape)
    split = values[:height, :width].reshape(count, height // count, count, width // count)
    means: np.ndarray = split.mean((1, 3))
    return means


# ---- facts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """What can be seen on one photograph, in words; an empty word where nothing stands out."""

    brightness: str
    """dark, dim, bright, high-key"""
    contrast: str
    """soft light, hard light"""
    tone: str
    """warm, cool"""
    saturation: str
    """grey (black and white), muted, vivid"""
    sharpness: str
    """soft, crisp"""
    background: str
    """plain, shallow, busy"""
    light: str
    """from left, from right, from above"""
    sky: str
    """blue sky, pale sky, night: only to be said of outdoor pictures"""
    hues: tuple[str, ...]
    """Dominant colours of the whole picture, at most two."""
    centre: str
    """Colour of the middle of the picture."""
    behind: str
    """Colour of its upper and side rim."""
    clothes: str
    """Colour of the clothes, where the source's framing says where they are."""
    flag: bool
    """A flag at the side of an official portrait."""


def describe(photograph: Photograph) -> Facts:
    """Measures a photograph and names what stands out."""
    m = measure(photograph.pixels)
    coarse = photograph.pixels[::2, ::2]  # colours are areas: every second pixel is enough
    colours = _named_colours(coarse)
    tints, (height, width) = _without_tints(coarse, colours), colours.shape
    centre = tints[height * 3 // 10 : height * 7 // 10, width * 3 // 10 : width * 7 // 10]
    grey = m.chroma < GREY
    source = vocabulary().source(photograph.source)
    return Facts(
        brightness=_band(m.luma, ((DARK, "dark"), (DIM, "dim")), ((HIGH_KEY, "high-key"), (BRIGHT, "bright"))),
        contrast=_band(m.spread, ((SOFT_LIGHT, "soft light"),), ((HARD_LIGHT, "hard light"),)),
        tone="" if grey else _band(m.warmth, ((COOL, "cool"),), ((WARM, "warm"),)),
        saturation="grey" if grey else _band(m.chroma, ((MUTED, "muted"),), ((VIVID, "vivid"),)),
        sharpness=_sharpness(m, len(photograph.pixels), face=source.heads == "face"),
        background=_background(m, len(photograph.pixels)),
        light=_light(m),
        sky="" if grey else _sky(m, colours),
        hues=() if grey else _dominant(colours),
        centre=_prevailing(centre, share=0.5),
        behind=_prevailing(colours[_border_mask(height, width)], share=0.65),
        clothes=_clothes(tints, source),
        flag=source.heads == "official" and _has_flag(colours),
    )


def _band(value: float, below: Sequence[tuple[float, str]], above: Sequence[tuple[float, str]]) -> str:
    for limit, word in below:
        if value < limit:
            return word
    for limit, word in above:
        if value > limit:
            return word
    return ""


def _nearest(table: Mapping[int, float], height: int) -> float:
    return table[min(table, key=lambda size: abs(size - height))]


def _sharpness(m: Measurements, height: int, *, face: bool) -> str:
    soft, crisp = FACE if face else (_nearest(SOFT, height), _nearest(CRISP, height))
    return _band(m.sharpness, ((soft, "soft"),), ((crisp, "crisp"),))


def _background(m: Measurements, height: int) -> str:
    if m.border_detail < SMOOTH and m.border_spread < PLAIN:
        return "plain"
    if m.border_detail < 2 * SMOOTH and m.sharpness > 3 * m.border_detail and m.sharpness > _nearest(SOFT, height):
        return "shallow"
    return "busy" if m.border_detail > _nearest(BUSY, height) else ""


def _light(m: Measurements) -> str:
    if abs(m.sideways) > SIDEWAYS:
        return "from left" if m.sideways > 0 else "from right"
    return "from above" if m.downwards > DOWNWARDS else ""


def _sky(m: Measurements, colours: np.ndarray) -> str:
    top = colours[: colours.shape[0] // 4]
    if m.luma < DARK and m.top_luma < 0.15:
        return "night"
    if (top == COLOURS.index("blue")).mean() > 0.6 and m.top_luma > 0.25:
        return "blue sky"
    return "pale sky" if m.top_luma > 0.75 and m.top_spread < 0.12 else ""


# ---- colours --------------------------------------------------------------------------------------------

COLOURS = (
    "black",
    "white",
    "grey",
    "red",
    "orange",
    "brown",
    "beige",
    "yellow",
    "green",
    "turquoise",
    "blue",
    "purple",
    "pink",
)
_HUE_ENDS = (
    (15, "red"),
    (45, "orange"),
    (68, "yellow"),
    (165, "green"),
    (195, "turquoise"),
    (258, "blue"),
    (290, "purple"),
    (345, "pink"),
    (361, "red"),
)


def _named_colours(pixels: np.ndarray) -> np.ndarray:
    """The index in `COLOURS` of every pixel's colour, (H, W)."""
    rgb = pixels.astype(np.float32) / 255
    value, chroma = _value_and_chroma(rgb)
    saturation = chroma / np.maximum(value, 1e-6)
    ends = np.array([end for end, _ in _HUE_ENDS])
    table = np.array([COLOURS.index(name) for _, name in _HUE_ENDS])
    named: np.ndarray = table[np.searchsorted(ends, _hue(rgb, value, chroma), side="right").clip(max=len(table) - 1)]
    warm = np.isin(named, [COLOURS.index("orange"), COLOURS.index("red"), COLOURS.index("yellow")])
    orange = named == COLOURS.index("orange")
    named[orange & (value < 0.65)] = COLOURS.index("brown")
    named[warm & (saturation < 0.45) & (value >= 0.65)] = COLOURS.index("beige")
    named[warm & (saturation < 0.5) & (value < 0.65)] = COLOURS.index("brown")
    named[(saturation < 0.16) | (chroma < 0.07)] = COLOURS.index("grey")
    named[(saturation < 0.14) & (value > 0.8)] = COLOURS.index("white")
    named[value < 0.2] = COLOURS.index("black")
    return named


def _without_tints(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Bluish grey is grey where a thing's own colour is asked: shade makes white and silver blue."""
    value, chroma = _value_and_chroma(pixels.astype(np.float32))
    faint = chroma < 0.35 * value
    blue = np.isin(colours, [COLOURS.index("blue"), COLOURS.index("turquoise"), COLOURS.index("purple")])
    own: np.ndarray = np.where(faint & blue, COLOURS.index("grey"), colours)
    return own


def _hue(rgb: np.ndarray, value: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees from 0 to 360, red at 0."""
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sixth = np.where(value == red, ((green - blue) / safe) % 6, (red - green) / safe + 4)
    sixth = np.where((value == green) & (value != red), (blue - red) / safe + 2, sixth)
    degrees: np.ndarray = sixth * 60
    return degrees


def _dominant(colours: np.ndarray) -> tuple[str, ...]:
    """The one or two colours that cover a third of the picture; black, white and grey need half."""
    shares = np.bincount(colours.ravel(), minlength=len(COLOURS)) / colours.size
    limits = np.where(np.arange(len(COLOURS)) < 3, 0.5, 0.33)
    return tuple(COLOURS[i] for i in np.argsort(-shares)[:2] if shares[i] > limits[i])


def _prevailing(colours: np.ndarray, *, share: float) -> str:
    counts = np.bincount(colours.ravel(), minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= share * max(colours.size, 1) else ""


def _clothes(colours: np.ndarray, source: Source) -> str:
    """Skin is brown, beige or orange and shade is grey, so those are not told from clothes."""
    if not source.clothes:
        return ""
    height, width = colours.shape
    top, bottom, left, right = (
        int(x * side) for x, side in zip(source.clothes, (height, height, width, width), strict=True)
    )
    name = _prevailing(colours[top:bottom, left:right], share=0.6)
    return "" if name in ("brown", "beige", "orange", "grey") else name


def _has_flag(colours: np.ndarray) -> bool:
    """Red and pale stripes (and some blue) in the upper three quarters of one side."""
    height, width = colours.shape
    rows, side = slice(0, height * 3 // 4), width // 4
    for strip in (colours[rows, :side], colours[rows, -side:]):
        shares = np.bincount(strip.ravel(), minlength=len(COLOURS)) / strip.size
        share = dict(zip(COLOURS, shares, strict=True))
        if share["red"] > 0.12 and share["white"] + share["grey"] + share["beige"] > 0.1:
            return True
    return False
