"""Tensors to images, rounded as diffusers rounds them."""

import torch
from diffusers.image_processor import VaeImageProcessor

from realgen.formulas.pixels import to_images


def test_rounding_is_diffusers():
    pixels = torch.rand(2, 3, 4, 6)
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil", do_denormalize=[False, False])
    assert [image.tobytes() for image in to_images(pixels)] == [image.tobytes() for image in theirs]
    assert to_images(pixels)[0].size == (6, 4)
