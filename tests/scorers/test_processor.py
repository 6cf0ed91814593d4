"""Image processors' settings as our preprocessing, against transformers' own; everything else is refused by name."""

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.core.errors import ModelError
from realgen.scorers._pixels import CLIP_MEAN, CLIP_STD, Preprocess
from realgen.scorers._processor import plain_preprocess
from tiny_detectors import pictures

HALF = [0.5, 0.5, 0.5]
VIT = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALF,
    "image_std": [0.25, 0.5, 0.5],
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 32, "width": 32},
}
CLIP = {
    **VIT,
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "resample": 3,
    "size": {"shortest_edge": 32},
}


def test_a_square_resize_is_a_squash():
    wanted = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5))
    assert plain_preprocess(VIT, what="x") == wanted
    image = pictures(1)[0]
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)) / 255
    by_hand = ((pixels - 0.5) / np.array([0.25, 0.5, 0.5])).transpose(2, 0, 1)
    torch.testing.assert_close(wanted(image).double(), torch.from_numpy(by_hand), atol=1e-6, rtol=0)


def test_a_short_side_and_a_crop_are_a_crop():
    assert plain_preprocess(CLIP, what="x") == Preprocess(size=32, fit="crop", resample="bicubic")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"size": 24}, {"size": 24}),
        ({"size": {"height": 24, "width": 24, "longest_edge": None}}, {"size": 24}),
        ({"crop_size": {"height": 8, "width": 8}, "do_center_crop": False}, {}),
        ({"size": 24, "crop_size": 24, "do_center_crop": True}, None),
        ({"size": {"height": 24, "width": 24}, "crop_size": 24, "do_center_crop": True}, None),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"do_pad": None, "crop_pct": None, "data_format": "channels_first"}, {}),
        ({"resample": 3}, {"resample": "bicubic"}),
    ],
)
def test_every_plain_form_is_read(change, wanted):
    expected = {"size": 32, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.5), **(wanted or {})}
    if wanted is None:
        with pytest.raises(ModelError, match="crop_size"):
            plain_preprocess({**VIT, **change}, what="x")
    else:
        assert plain_preprocess({**VIT, **change}, what="x") == Preprocess(**expected)


@pytest.mark.parametrize(
    "change",
    [
        {"do_pad": True},
        {"crop_pct": 0.875},
        {"rescale_offset": True},
        {"do_resize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"resample": 0},
        {"resample": None},
        {"size": {"shortest_edge": 32}},
        {"size": {"height": 32, "width": 24}},
        {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": None},
        {"image_mean": None},
        {"image_std": [0.5]},
    ],
)
def test_anything_else_is_refused_by_its_key(change):
    with pytest.raises(ModelError, match="x: its image processor") as caught:
        plain_preprocess({**VIT, **change}, what="x")
    key = next(iter(change))
    assert key in caught.value.message
    assert "normalise" in caught.value.hint


@pytest.mark.parametrize(("config", "size"), [(VIT, (37, 50)), (CLIP, (64, 96))])
def test_pixels_are_those_of_transformers_own_processor(config, size):
    name = "vit" if config is VIT else "clip"
    module = pytest.importorskip(f"transformers.models.{name}.image_processing_pil_{name}", exc_type=ImportError)
    processor = getattr(module, f"{'ViT' if config is VIT else 'CLIP'}ImageProcessorPil")(**config)
    image = pictures(1, size=size)[0]
    theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(plain_preprocess(config, what="x")(image), theirs, atol=1e-5, rtol=0)
