"""Each degradation gets worse with its strength, is what it says at its ends, and follows from the generator alone."""

import numpy as np
import pytest
from PIL import Image

from realgen.train import degradations
from realgen.train.degradations import KINDS, STRENGTHS, degrade, random_degradation, recolour, recrop, through_jpeg


def picture(height=64, width=64):
    """Waves of several lengths in three colours, and a texture."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9 + columns / 4), np.sin(rows / 3 - columns / 7), np.sin(columns / 2)]
    texture = np.random.default_rng(0).normal(0, 20, (height, width, 1))
    return (np.stack(waves, -1) * 50 + 120 + texture).clip(0, 255).astype(np.uint8)


def error(pixels, degraded):
    return float(np.square(pixels.astype(float) - degraded).mean())


def rng_of(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_grows_with_the_strength(kind):
    pixels = picture()
    errors = [error(pixels, degrade(pixels, kind, strength, rng_of())) for strength in STRENGTHS]
    assert errors == sorted(errors)
    assert errors[0] > 1
    assert errors[-1] > 2 * errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_stays_and_the_input_too(kind):
    pixels = picture(40, 64)
    before = pixels.copy()
    pixels.flags.writeable = False
    degraded = degrade(pixels, kind, 0.7, rng_of())
    assert (degraded.shape, degraded.dtype) == (pixels.shape, np.uint8)
    assert np.array_equal(pixels, before)
    assert not np.array_equal(degraded, pixels)


@pytest.mark.parametrize("kind", ["blur", "noise", "resize"])
def test_next_to_no_strength_is_next_to_nothing(kind):
    assert np.array_equal(degrade(picture(), kind, 1e-6, rng_of()), picture())


def test_the_least_jpeg_is_quality_96():
    assert np.array_equal(
        degrade(picture(), "jpeg", 1e-6, rng_of()), through_jpeg(picture(), quality=96, subsampling=2)
    )
    grey = np.full((32, 32, 3), 77, np.uint8)
    assert np.array_equal(degrade(grey, "jpeg", 1e-6, rng_of()), grey)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0, -0.5, 1.01, float("nan")])
def test_no_strength_and_too_much_are_refused(kind, strength):
    with pytest.raises(ValueError, match="is not in"):
        degrade(picture(), kind, strength, rng_of())


@pytest.mark.parametrize(("strength", "radius"), [(1.0, 2.0), (0.5, 1.0), (0.25, 0.5)])
def test_an_edge_is_blurred_by_that_many_pixels(strength, radius):
    """The slope of a blurred edge is the blur itself: its deviation is the radius, Pillow's boxes within 6 %."""
    edge = np.zeros((8, 64, 3), np.uint8)
    edge[:, 32:] = 255
    slope = np.diff(degrade(edge, "blur", strength, rng_of())[4, :, 0].astype(float)) / 255
    places = np.arange(63)
    mean = (slope * places).sum()
    assert slope.sum() == pytest.approx(1)
    assert mean == pytest.approx(31, abs=0.05)
    assert np.sqrt((slope * (places - mean) ** 2).sum()) == pytest.approx(radius, rel=0.06)


@pytest.mark.parametrize(("strength", "levels"), [(1.0, 25.0), (0.25, 6.25)])
def test_noise_has_that_many_levels(strength, levels):
    grey = np.full((128, 128, 3), 128, np.uint8)
    change = degrade(grey, "noise", strength, rng_of()).astype(float) - 128
    assert change.std() == pytest.approx(levels, rel=0.02)
    assert change.mean() == pytest.approx(0, abs=0.5)
    assert np.corrcoef(change[..., 0].ravel(), change[..., 1].ravel())[0, 1] == pytest.approx(0, abs=0.03)


def test_noise_stays_within_the_levels():
    for level in (0, 255):
        noisy = degrade(np.full((32, 32, 3), level, np.uint8), "noise", 1.0, rng_of())
        assert np.abs(noisy.astype(int) - level).max() < 130  # nothing wraps around


def test_resizing_loses_what_is_finer_than_the_small_picture():
    """Of 0.3 of the side, waves of 3 pixels are gone and waves of 16 stay."""
    columns = np.arange(96)
    left = []
    for length in (3, 16):
        wave = np.sin(2 * np.pi * columns / length) * 100 + 128
        pixels = np.broadcast_to(wave[None, :, None], (96, 96, 3)).astype(np.uint8)
        left.append(degrade(pixels, "resize", 1.0, rng_of())[:, 16:-16].std() / pixels[:, 16:-16].std())
    assert left[0] < 0.1
    assert left[1] > 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2)])
def test_tiny_pictures_can_be_degraded(kind, size):
    assert degrade(picture(*size), kind, 1.0, rng_of()).shape == (*size, 3)


def test_jpeg_as_the_photographs_were_saved_is_faithful(tmp_path):
    assert error(picture(), through_jpeg(picture())) < 16
    Image.fromarray(picture()).save(tmp_path / "x.jpg", quality=92, subsampling=0)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.jpg")), through_jpeg(picture()))


# ---- by chance ------------------------------------------------------------------------------------------


CHANGES = [
    random_degradation,
    recolour,
    lambda x, rng: degrade(x, "noise", 0.5, rng),
    lambda x, rng: recrop(x, rng, least=0.5),
]


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_drawn_follows_from_the_generator(change):
    pixels = picture()
    first, again, other = (change(pixels, rng_of(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.array_equal(pixels, picture())


def test_three_of_ten_are_degraded_twice_and_every_way_occurs(monkeypatch):
    seen = []
    monkeypatch.setattr(degradations, "degrade", lambda x, kind, strength, rng: seen.append((kind, strength)) or x)
    for seed in range(1000):
        random_degradation(picture(2, 2), rng_of(seed))
    assert (len(seen) - 1000) / 1000 == pytest.approx(0.3, abs=0.05)
    shares = [sum(kind == one for kind, _ in seen) / len(seen) for one in KINDS]
    assert shares == pytest.approx([1 / 4] * 4, abs=0.05)
    strengths = [strength for _, strength in seen]
    assert 0.1 <= min(strengths) < 0.12
    assert 0.98 < max(strengths) <= 1


def test_a_random_degradation_always_changes_a_textured_picture():
    assert all(error(picture(), random_degradation(picture(), rng_of(seed))) > 0.5 for seed in range(20))


def test_another_colour_is_the_same_picture_or_its_mirror_image():
    is_mirrored = []
    for seed in range(40):
        changed = recolour(picture(), rng_of(seed))
        assert (changed.shape, changed.dtype) == ((64, 64, 3), np.uint8)
        alike = [
            min(np.corrcoef(side[..., c].ravel(), picture()[..., c].ravel())[0, 1] for c in range(3))
            for side in (changed, changed[:, ::-1])
        ]
        assert max(alike) > 0.99
        is_mirrored.append(alike[1] > alike[0])
    assert 10 < sum(is_mirrored) < 30


def test_brightness_contrast_and_tint_by_hand():
    """A gain of 0.8 to 1.2, a tint within 5 % of it, and a shift of at most 20 levels, around the mean."""
    pixels = np.full((8, 8, 3), 100, np.uint8)
    pixels[:4] = 140
    gains, shifts = [], []
    for seed in range(200):
        changed = recolour(pixels, rng_of(seed)).astype(float)
        dark, bright = changed[4:].mean((0, 1)), changed[:4].mean((0, 1))
        gains.append((bright - dark) / 40)
        shifts.append((bright + dark).mean() / 2 - 120)
    step = 1 / 40  # a level, rounded
    assert 0.8 * 0.95 - step <= np.min(gains) < 0.82
    assert 1.18 < np.max(gains) <= 1.2 * 1.05 + step
    assert np.ptp(gains, axis=1).max() <= 1.2 * 0.1 + 2 * step
    assert -20.5 <= np.min(shifts) < -18
    assert 18 < np.max(shifts) <= 20.5


def test_a_window_is_a_part_of_the_picture_as_large_as_the_whole():
    """On a slope of x in red and of y in green the corners of a window can be read off."""
    ramp = np.arange(64, dtype=np.uint8) * 4
    pixels = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.zeros((64, 64), np.uint8)], -1)
    sides, lefts = [], []
    for seed in range(300):
        window = recrop(pixels, rng_of(seed), least=0.5)
        assert (window.shape, window.dtype) == ((64, 64, 3), np.uint8)
        wide, high = (
            (int(window[32, -1, 0]) - int(window[32, 0, 0])) / 4,
            (int(window[-1, 32, 1]) - int(window[0, 32, 1])) / 4,
        )
        assert wide == pytest.approx(high, abs=1.5)
        sides.append(wide + 1)
        lefts.append(int(window[32, 0, 0]) / 4)
    assert 30 < min(sides) < 35
    assert 62 < max(sides) <= 64
    assert max(lefts) > 20


def test_a_window_of_the_whole_side_is_the_picture():
    assert np.array_equal(recrop(picture(), rng_of(0), least=1), picture())
