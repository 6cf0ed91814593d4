"""Blur, noise, JPEG and resizing, by strength: what must not make a generated picture look more real.

On 8-bit pixels, as files are degraded in the world. Knows no detector.
"""

import io
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageFilter

Kind = Literal["blur", "noise", "jpeg", "resize"]
KINDS: tuple[Kind, ...] = get_args(Kind)
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def degrade(pixels: np.ndarray, kind: Kind, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels (H, W, 3) uint8 degraded; `strength` in (0, 1].

    At 1: a Gaussian blur of 2 pixels, Gaussian noise of 25 levels, JPEG quality 20 with halved colours, or a loss of
    all but 0.3 of the side. At 0.25: 0.5 pixels, 6 levels, quality 77, 0.825 of the side.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength} is not in (0, 1]")
    image = Image.fromarray(pixels)
    if kind == "blur":
        return _array(image.filter(ImageFilter.GaussianBlur(2 * strength)))
    if kind == "noise":
        return _levels(pixels + rng.normal(0, 25 * strength, pixels.shape))
    if kind == "jpeg":
        return through_jpeg(pixels, quality=round(96 - 76 * strength), subsampling=2)
    small = [max(1, round(side * (1 - 0.7 * strength))) for side in image.size]
    shrunk = image.resize((small[0], small[1]), Image.Resampling.BICUBIC)
    return _array(shrunk.resize(image.size, Image.Resampling.BICUBIC))


def through_jpeg(pixels: np.ndarray, *, quality: int = 92, subsampling: int = 0) -> np.ndarray:
    """Pixels (H, W, 3) uint8 saved as JPEG and read again: by default as the photographs were saved."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
    with Image.open(file) as image:
        return _array(image.convert("RGB"))


def random_degradation(pixels: np.ndarray, rng: np.random.Generator, *, least: float = 0.1) -> np.ndarray:
    """Pixels degraded in a random way, at least by `least`; in three of ten cases by two ways in a row."""
    for _ in range(2 if rng.random() < 0.3 else 1):
        pixels = degrade(pixels, KINDS[int(rng.integers(len(KINDS)))], float(rng.uniform(least, 1)), rng)
    return pixels


def recolour(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels with another brightness, contrast and tint, and mirrored half of the time: no sign of either class."""
    gain = rng.uniform(0.8, 1.2) * rng.uniform(0.95, 1.05, 3)
    middle = pixels.mean()
    changed = (pixels - middle) * gain + middle + rng.uniform(-20, 20)
    side = changed[:, ::-1] if rng.random() < 0.5 else changed
    return _levels(side)


def recrop(pixels: np.ndarray, rng: np.random.Generator, *, least: float) -> np.ndarray:
    """A random square window of pixels (S, S, 3), at least `least` of the side, as large as they were."""
    side = len(pixels)
    kept = side * rng.uniform(least, 1)
    left, top = rng.uniform(0, side - kept, 2)
    window = (left, top, left + kept, top + kept)
    return _array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR, box=window))


def _array(image: Image.Image) -> np.ndarray:
    pixels: np.ndarray = np.array(image)
    return pixels


def _levels(values: np.ndarray) -> np.ndarray:
    pixels: np.ndarray = values.round().clip(0, 255).astype(np.uint8)
    return pixels
