"""Facts are what the pixels say: every threshold crossed by hand on pictures whose numbers are known.

A picture of stripes one pixel wide and `a` apart has a Laplacian of 2a everywhere but at the edge, so a sharpness
of 4 a^2; two halves of levels l and h have a spread of h - l.
"""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realgen.train.facts import COLOURS, Facts, describe, measure
from realgen.train.photographs import Photograph

SIZE = 128
WORDS = {
    "brightness": {"", "dark", "dim", "bright", "high-key"},
    "contrast": {"", "soft light", "hard light"},
    "tone": {"", "warm", "cool"},
    "saturation": {"", "grey", "muted", "vivid"},
    "sharpness": {"", "soft", "crisp"},
    "background": {"", "plain", "shallow", "busy"},
    "light": {"", "from left", "from right", "from above"},
    "sky": {"", "blue sky", "pale sky", "night"},
    "centre": {"", *COLOURS},
    "behind": {"", *COLOURS},
    "clothes": {"", *COLOURS} - {"brown", "beige", "orange", "grey"},
}
RED, GREEN, BLUE, WHITE = (200, 20, 20), (30, 150, 40), (30, 60, 210), (250, 250, 250)


def facts_of(pixels, source="bsds"):
    return describe(Photograph("x.png", np.asarray(pixels, dtype=np.uint8), None, "scene", (), source))


def flat(rgb, size=SIZE):
    return np.full((size, size, 3), rgb, dtype=np.uint8)


def grey(level, size=SIZE):
    return flat((level, level, level), size)


def halves(left, right, size=SIZE):
    pixels = flat(left, size)
    pixels[:, size // 2 :] = right
    return pixels


def stripes(low, apart, size=SIZE):
    pixels = grey(low, size)
    pixels[:, 1::2] += np.uint8(apart)
    return pixels


def noise(low=0, high=255, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(low, high, (size, size, 1), dtype=np.uint8).repeat(3, axis=2)


def coarse_noise(seed, size=80):
    """Blocks of two by two pixels in chance colours, brighter towards a chance side."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 120, (size // 2, size // 2, 3)) + rng.integers(0, 120, 3)
    blocks[:, : size // 4] //= rng.integers(1, 3)
    return blocks.clip(0, 255).astype(np.uint8).repeat(2, 0).repeat(2, 1)


# ---- measurements ---------------------------------------------------------------------------------------


def test_a_flat_picture_measures_its_colour_and_nothing_else():
    """Luma (0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255 = 0.48706; chroma and warmth (200 - 50) / 255."""
    m = measure(flat((200, 100, 50)))
    assert (m.luma, m.top_luma) == pytest.approx((0.48706, 0.48706), abs=1e-4)
    assert (m.chroma, m.warmth) == pytest.approx((150 / 255, 150 / 255), abs=1e-5)
    flatness = (m.spread, m.sharpness, m.border_detail, m.border_spread, m.sideways, m.downwards, m.top_spread)
    assert flatness == pytest.approx([0] * 7, abs=1e-4)


def test_stripes_have_the_sharpness_worked_by_hand():
    """Black and white stripes: Laplacian 2, its square 4; the outermost columns see one neighbour of their own."""
    assert measure(stripes(0, 255)).sharpness == pytest.approx(4, abs=1e-4)
    assert measure(stripes(0, 51)).sharpness == pytest.approx(4 * 0.2**2, abs=1e-5)


def test_halves_have_the_spread_and_sides_worked_by_hand():
    m = measure(halves(WHITE, (0, 0, 0)))
    assert (m.spread, m.sideways) == pytest.approx((250 / 255, 250 / 255), abs=1e-4)
    assert m.downwards == pytest.approx(0, abs=1e-5)
    assert m.top_spread == pytest.approx(125 / 255, abs=1e-4)  # half black, half white: half the difference


def test_top_and_bottom():
    m = measure(halves((255, 255, 255), (0, 0, 0)).swapaxes(0, 1))
    assert (m.downwards, m.top_luma) == pytest.approx((1, 1), abs=1e-5)
    assert (m.sideways, m.top_spread) == pytest.approx((0, 0), abs=1e-5)


def test_a_few_bright_pixels_are_no_spread():
    """The 95 % quantile leaves out 4 % of white."""
    pixels = grey(60)
    pixels[: SIZE // 25] = 255
    assert measure(pixels).spread == pytest.approx(0, abs=1e-5)


def test_the_rim_is_the_upper_and_the_side_eighth():
    inner, below = grey(60), grey(60)
    inner[16:, 16:112] = 255
    below[96:] = 255
    for pixels in (inner, below):
        assert measure(pixels).border_spread == pytest.approx(0, abs=1e-4)
    outer = grey(60)
    outer[:8] = 255
    assert measure(outer).border_spread > 0.2


# ---- light ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "word"),
    [
        (0, "dark"),
        (58, "dark"),
        (59, "dim"),
        (79, "dim"),
        (80, ""),
        (152, ""),
        (155, "bright"),
        (175, "bright"),
        (176, "high-key"),
        (255, "high-key"),
    ],
)
def test_brightness_thresholds(level, word):
    assert facts_of(grey(level)).brightness == word


@pytest.mark.parametrize(("apart", "word"), [(119, "soft light"), (121, ""), (221, ""), (223, "hard light")])
def test_contrast_thresholds(apart, word):
    assert facts_of(halves((10, 10, 10), (10 + apart,) * 3)).contrast == word


@pytest.mark.parametrize(("apart", "word"), [(40, ""), (42, "from left"), (-40, ""), (-42, "from right")])
def test_the_brighter_side_is_where_the_light_comes_from(apart, word):
    assert facts_of(halves((100 + apart,) * 3, (100,) * 3)).light == word


@pytest.mark.parametrize(("apart", "word"), [(107, ""), (108, "from above"), (-150, "")])
def test_light_from_above(apart, word):
    top = np.full((SIZE, SIZE, 3), 100, dtype=np.int64)
    top[: SIZE // 2] += max(apart, 0)
    top[SIZE // 2 :] += max(-apart, 0)
    assert facts_of(top).light == word


def test_light_from_the_side_is_said_before_light_from_above():
    pixels = halves((200, 200, 200), (100, 100, 100)).astype(np.int64)
    pixels[SIZE // 2 :] //= 4
    assert measure(pixels.astype(np.uint8)).downwards > 0.42
    assert facts_of(pixels).light == "from left"


# ---- colour ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apart", "word"), [(0, "grey"), (4, "grey"), (5, "muted"), (15, "muted"), (16, ""), (73, ""), (74, "vivid")]
)
def test_saturation_thresholds(apart, word):
    assert facts_of(flat((100, 100 + apart, 100))).saturation == word


@pytest.mark.parametrize(("apart", "word"), [(50, ""), (52, "warm"), (-22, ""), (-23, "cool"), (0, "")])
def test_tone_thresholds(apart, word):
    assert facts_of(flat((120 + apart, 160, 120))).tone == word


@pytest.mark.parametrize(
    ("name", "rgb"),
    [
        ("black", (20, 20, 20)),
        ("black", (40, 10, 10)),  # value 0.157: too dark to be red
        ("white", WHITE),
        ("grey", (128, 128, 128)),
        ("red", RED),
        ("red", (220, 20, 40)),  # hue 354 wraps round
        ("orange", (240, 130, 20)),  # hue 30, value 0.94
        ("brown", (120, 70, 20)),  # the same hue, value 0.47
        ("beige", (230, 200, 160)),  # hue 34, saturation 0.30
        ("yellow", (240, 220, 30)),  # hue 54
        ("green", GREEN),
        ("turquoise", (20, 190, 190)),  # hue 180
        ("blue", BLUE),
        ("purple", (130, 20, 220)),  # hue 273
        ("pink", (240, 60, 170)),  # hue 323
    ],
)
def test_every_colour_has_its_name(name, rgb):
    facts = facts_of(flat(rgb))
    assert facts.centre == facts.behind == name
    assert facts.hues == (() if facts.saturation == "grey" else (name,))


def test_at_most_two_dominant_colours_the_larger_first():
    pixels = flat(RED)
    pixels[:, 77:] = BLUE  # 60 % and 40 %
    assert facts_of(pixels).hues == ("red", "blue")
    assert facts_of(pixels[:, ::-1]).hues == ("red", "blue")
    pixels[:, 45:90] = GREEN  # 35 %, 35 % and 30 %
    assert set(facts_of(pixels).hues) == {"red", "green"}
    pixels[: SIZE // 2, :] = WHITE
    assert facts_of(pixels).hues == ()  # 17 % each, and white covers no more than half


def test_black_white_and_grey_dominate_only_above_half():
    pixels = flat(WHITE)
    pixels[:, :70] = RED  # 55 %
    assert facts_of(pixels).hues == ("red",)
    pixels[:, 46:70] = WHITE  # 36 % red, 64 % white
    assert facts_of(pixels).hues == ("white", "red")


def test_the_centre_and_what_lies_behind():
    pixels = flat(GREEN)
    pixels[32:, 32:96] = RED
    facts = facts_of(pixels)
    assert (facts.centre, facts.behind) == ("red", "green")
    mixed = facts_of(np.concatenate([flat(GREEN)[:, :64], flat(BLUE)[:, :64]], axis=1))
    assert mixed.behind == ""  # half and half: nothing prevails


def test_bluish_grey_is_no_blue_thing():
    """Chroma 30 of a largest channel of 150 is a tint: shade makes white and silver blue."""
    facts = facts_of(flat((120, 130, 150)))
    assert facts.behind == "blue"
    assert facts.centre == "grey"


def test_a_black_and_white_picture_has_neither_tone_nor_hue_nor_sky():
    for pixels in (noise(), grey(10), grey(240)):
        facts = facts_of(pixels)
        assert (facts.saturation, facts.tone, facts.hues, facts.sky) == ("grey", "", (), "")


# ---- sharpness and background ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "source", "apart", "word"),
    [
        (128, "bsds", 14, "soft"),  # 4 (14 / 255)^2 = 0.01206 < 0.0125
        (128, "bsds", 15, ""),
        (128, "bsds", 34, ""),
        (128, "bsds", 35, "crisp"),  # 0.07535 > 0.075
        (96, "bsds", 18, "soft"),
        (96, "bsds", 19, ""),
        (96, "bsds", 46, ""),
        (96, "bsds", 47, "crisp"),
        (128, "pixabay", 11, "soft"),  # faces have less texture
        (128, "pixabay", 12, ""),
        (128, "pixabay", 24, ""),
        (128, "pixabay", 25, "crisp"),
    ],
)
def test_sharpness_thresholds_follow_size_and_framing(size, source, apart, word):
    assert facts_of(stripes(60, apart, size), source).sharpness == word


@pytest.mark.parametrize(("size", "like"), [(110, 96), (114, 128), (64, 96), (512, 128)])
def test_another_size_takes_the_nearest_thresholds(size, like):
    """15/255 apart is soft at 96 pixels and not at 128."""
    assert facts_of(stripes(60, 15, size)).sharpness == ("soft" if like == 96 else "")


def test_blurring_makes_a_sharp_picture_soft():
    sharp = noise().astype(np.float64)
    blurred = sum(np.roll(sharp, (y, x), (0, 1)) for y in range(-4, 5) for x in range(-4, 5)) / 81
    assert facts_of(sharp).sharpness == "crisp"
    assert facts_of(blurred).sharpness == "soft"
    assert measure(blurred.astype(np.uint8)).sharpness < measure(sharp.astype(np.uint8)).sharpness / 50


def test_backgrounds():
    middle = (slice(30, None), slice(30, 98))
    plain, gradient = grey(90), np.linspace(0, 255, SIZE)[:, None, None].repeat(SIZE, 1).repeat(3, 2)
    plain[middle] = noise()[middle]
    assert facts_of(plain).background == "plain"
    assert facts_of(gradient).background == ""  # smooth, but nothing in front of it is sharper
    gradient[middle] = noise()[middle]
    assert facts_of(gradient).background == "shallow"
    assert facts_of(noise()).background == "busy"
    assert facts_of(stripes(60, 25)).background == ""


@pytest.mark.parametrize(("size", "word"), [(128, "busy"), (96, "")])
def test_a_small_picture_needs_more_detail_to_be_busy(size, word):
    """40/255 apart: 0.098 within, more than 0.06 and less than 0.11."""
    assert facts_of(stripes(60, 40, size)).background == word


# ---- sky, clothes, flag ---------------------------------------------------------------------------------


def under(sky, below=GREEN):
    pixels = flat(below)
    pixels[: SIZE // 2] = sky
    return pixels


@pytest.mark.parametrize(
    ("pixels", "word"),
    [
        (under((80, 140, 230)), "blue sky"),  # hue 216, luma 0.52
        (under((230, 232, 235)), "pale sky"),  # luma 0.91, no spread
        (flat((30, 20, 10)), "night"),  # luma 0.086
        (under((10, 10, 60), (20, 30, 10)), "night"),
        (under((0, 0, 120), (60, 220, 60)), ""),  # blue, but of luma 0.05
        (under(GREEN), ""),
        (under((30, 20, 10), (250, 200, 120)), ""),  # dark above, bright below
        (halves((80, 140, 230), (60, 90, 40)), ""),  # half of the top is no sky
    ],
)
def test_skies(pixels, word):
    assert facts_of(pixels).sky == word


def test_a_spotted_top_is_no_pale_sky():
    pixels = under((250, 250, 250))
    pixels[:32:4] = (120, 180, 130)
    assert measure(pixels).top_luma > 0.75
    assert facts_of(pixels).sky == ""


@pytest.mark.parametrize(
    ("rgb", "word"),
    [
        (BLUE, "blue"),
        (WHITE, "white"),
        ((20, 20, 20), "black"),
        (RED, "red"),
        ((120, 70, 20), ""),
        ((230, 200, 160), ""),
        ((240, 130, 20), ""),
        ((128, 128, 128), ""),
    ],
)
def test_clothes_are_told_where_the_framing_says_and_skin_is_not(rgb, word):
    pixels = flat(GREEN)
    pixels[SIZE * 7 // 10 :] = rgb
    assert facts_of(pixels, "congress/hi").clothes == word
    assert facts_of(pixels, "pixabay").clothes == ""


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_flag_stands_beside_an_official_alone(side):
    pixels = flat((60, 60, 60))
    rows = pixels[:96, :32] if side == "left" else pixels[:96, -32:]
    rows[::8], rows[1::8], rows[2::8] = RED, RED, WHITE
    assert facts_of(pixels, "congress").flag
    assert not facts_of(pixels, "street_portrait").flag


def test_red_alone_and_pale_alone_are_no_flag():
    """A quarter of the strip is red, and nothing of it is white, grey or beige."""
    red, pale = flat((20, 60, 25)), flat((20, 60, 25))
    red[::4, :32], pale[::4, :32] = RED, WHITE
    assert not facts_of(red, "congress").flag
    assert not facts_of(pale, "congress").flag


# ---- properties -----------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_mirror_swaps_the_side_of_the_light_and_nothing_else(seed):
    pixels = coarse_noise(seed)
    swapped = {"from left": "from right", "from right": "from left"}
    facts = facts_of(pixels)
    assert facts_of(pixels[:, ::-1]) == replace(facts, light=swapped.get(facts.light, facts.light))
    assert measure(pixels[:, ::-1]).sideways == pytest.approx(-measure(pixels).sideways, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), source=st.sampled_from(["congress", "pixabay", "street_fashion", "", "elsewhere/x"])
)
def test_every_fact_is_one_of_its_words(seed, source):
    pixels = coarse_noise(seed)
    before = pixels.copy()
    facts = facts_of(pixels, source)
    for name, words in WORDS.items():
        assert getattr(facts, name) in words, name
    assert set(facts.hues) <= set(COLOURS)
    assert len(facts.hues) <= 2
    assert isinstance(facts.flag, bool)
    assert {field.name for field in fields(Facts)} == {*WORDS, "hues", "flag"}
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("shape", [(128, 64), (64, 128), (97, 131), (9, 9)])
def test_any_shape_is_measured(shape):
    pixels = np.full((*shape, 3), RED, dtype=np.uint8)
    assert facts_of(pixels).hues == ("red",)
    assert measure(pixels).luma == pytest.approx(measure(flat(RED)).luma, abs=1e-5)
