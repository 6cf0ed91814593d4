"""A picture as a model reads it, against Pillow and numpy by hand, and torch's path against Pillow's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from realgen.scorers._pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def noise(width=40, height=30):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def photograph(width=96, height=72):
    """Smooth shades with a few hard edges, as photographs have."""
    image = noise(12, 9).resize((width, height), Image.Resampling.BICUBIC)
    image.paste((250, 250, 250), (width // 4, height // 4, width // 2, height // 2))
    return image


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def array(image):
    return np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255


# ---- Pillow's path --------------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_normalised_and_no_more():
    image = noise(16, 16)
    expected = (array(image) - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]
    assert np.abs(Preprocess(16)(image).numpy() - expected).max() < 1e-6


def test_one_pixel_by_hand():
    """(255/255 - 0.485) / 0.229 = 2.2489, (0 - 0.456) / 0.224 = -2.0357, (51/255 - 0.406) / 0.225 = -0.9156."""
    read = Preprocess(1, mean=IMAGENET_MEAN, std=IMAGENET_STD)(Image.new("RGB", (1, 1), (255, 0, 51)))
    assert read.shape == (3, 1, 1)
    assert read.flatten().tolist() == pytest.approx([2.2489, -2.0357, -0.9156], abs=1e-4)


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
def test_squashing_is_pillow_s_resize(resample):
    method = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[resample]
    expected = array(noise().resize((24, 24), method))
    assert np.abs(Preprocess(24, resample=resample, **PLAIN)(noise()).numpy() - expected).max() < 1e-6


@pytest.mark.parametrize(
    ("size", "box"), [((40, 30), (4, 0, 28, 24)), ((30, 40), (0, 4, 24, 28)), ((24, 24), (0, 0, 24, 24))]
)
def test_cropping_scales_the_short_side_and_cuts_the_centre(size, box):
    """40 x 30 at a side of 24 becomes 32 x 24, of which columns 4 to 28 stay."""
    image = noise(*size)
    scaled = image.resize((round(size[0] * 24 / min(size)), round(size[1] * 24 / min(size))), Image.Resampling.BICUBIC)
    expected = array(scaled.crop(box))
    found = Preprocess(24, fit="crop", resample="bicubic", **PLAIN)(image).numpy()
    assert np.abs(found - expected).max() < 1e-6


def test_a_detour_resizes_twice():
    once = noise().resize((32, 32), Image.Resampling.BILINEAR).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.abs(Preprocess(16, via=32, **PLAIN)(noise()).numpy() - array(once)).max() < 1e-6
    assert not torch.equal(Preprocess(16, via=32, **PLAIN)(noise()), Preprocess(16, **PLAIN)(noise()))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.sampled_from(["squash", "crop"]), st.booleans())
def test_any_size_becomes_the_model_s(width, height, side, fit, has_detour):
    read = Preprocess(side, fit=fit, via=2 * side if has_detour else None, **PLAIN)
    assert read(Image.new("RGB", (width, height), (255, 255, 255))).shape == (3, side, side)
    straight = read.differentiable(torch.ones(1, 3, height, width))
    assert straight.shape == (1, 3, side, side)
    assert torch.allclose(straight, torch.ones_like(straight), atol=1e-5)


def test_the_image_is_not_changed():
    image = noise()
    before = image.tobytes()
    Preprocess(16, fit="crop")(image)
    assert image.tobytes() == before


def test_equal_records_are_one_key():
    assert {Preprocess(16): 1}[Preprocess(16)] == 1
    assert Preprocess(16) != Preprocess(16, via=32)


# ---- torch's path ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["squash", "crop"])
@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("side", [24, 48, 120, 224])
@pytest.mark.parametrize("image", [photograph(), noise(96, 72)], ids=["photograph", "noise"])
def test_torch_s_path_is_close_to_pillow_s(image, fit, resample, side):
    """Pillow rounds to 8 bits after each of two passes: a level is 0.0039. Measured: 0.0043, and 0.0074 by a detour."""
    for via, gap in ((None, 0.005), (2 * side, 0.0085)):
        read = Preprocess(side, fit=fit, resample=resample, via=via, **PLAIN)
        difference = (read.differentiable(pixels_of(image))[0] - read(image)).abs()
        assert float(difference.max()) < gap
        assert float(difference.mean()) < 0.002


def test_without_a_resize_the_paths_are_one():
    read = Preprocess(32)
    assert torch.allclose(read.differentiable(pixels_of(noise(32, 32)))[0], read(noise(32, 32)), atol=1e-6)


def test_gradients_reach_every_pixel_that_is_read():
    pixels = pixels_of(photograph()).requires_grad_()
    Preprocess(24, resample="bilinear").differentiable(pixels).sum().backward()
    assert bool((pixels.grad != 0).all())
    cut = pixels_of(photograph()).requires_grad_()
    Preprocess(72, fit="crop").differentiable(cut).sum().backward()
    assert bool((cut.grad[..., 12:84] != 0).all())
    assert float(cut.grad[..., :12].abs().max()) == float(cut.grad[..., 84:].abs().max()) == 0


def test_overshoot_of_a_bicubic_resize_is_cut_to_the_range():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    read = Preprocess(32, resample="bicubic", **PLAIN).differentiable(edge)
    assert 0 <= float(read.min()) < float(read.max()) <= 1


def test_rows_of_a_batch_do_not_touch():
    batch = torch.cat([pixels_of(noise()), pixels_of(photograph(40, 30))])
    read = Preprocess(24)
    alone = torch.cat([read.differentiable(batch[:1]), read.differentiable(batch[1:])])
    assert torch.allclose(read.differentiable(batch), alone, atol=1e-6)


def test_a_ribbon_is_not_enlarged_as_a_whole():
    """30,000 x 10 pixels at side 32: only the centre is resized, and it is what the whole would show there."""
    pixels = np.random.default_rng(0).integers(0, 256, (10, 30_000, 3), dtype=np.uint8)
    prepare = Preprocess(size=32, fit="crop", resample="bicubic")
    ribbon = Image.fromarray(pixels)
    whole = ribbon.resize((96_000, 32), Image.Resampling.BICUBIC).crop((47_984, 0, 48_016, 32))
    wanted = torch.from_numpy(np.array(whole)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (prepare.mean, prepare.std))
    assert (prepare(ribbon) * std + mean - wanted).abs().max() <= 1 / 255 + 1e-6
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    assert (prepare.differentiable(tensor)[0] - prepare(ribbon)).abs().max() < 0.1


def test_the_long_side_is_rounded_down():
    """1024 x 768 at side 32: 42.67 by 32, so 42, as transformers' CLIP has it; 5 are cut on the left."""
    pixels = np.random.default_rng(0).integers(0, 256, (768, 1024, 3), dtype=np.uint8)
    resized = Image.fromarray(pixels).resize((42, 32), Image.Resampling.BILINEAR).crop((5, 0, 37, 32))
    prepare = Preprocess(size=32, fit="crop", mean=(0.0,) * 3, std=(1.0,) * 3)
    torch.testing.assert_close(
        prepare(Image.fromarray(pixels)), torch.from_numpy(np.array(resized)).permute(2, 0, 1) / 255
    )
