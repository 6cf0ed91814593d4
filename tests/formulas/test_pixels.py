"""Tensors to images and back, rounded as diffusers rounds them."""

import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from realgen.formulas.pixels import sharpness, to_images, to_pixels


def test_rounding_is_diffusers():
    pixels = torch.rand(2, 3, 4, 6)
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil", do_denormalize=[False, False])
    assert [image.tobytes() for image in to_images(pixels)] == [image.tobytes() for image in theirs]
    assert to_images(pixels)[0].size == (6, 4)


def test_images_and_pixels_are_each_others_inverse():
    pixels = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5) / 255
    assert torch.allclose(to_pixels(to_images(pixels)), pixels)


def test_sharpness_is_the_variance_of_the_laplacian():
    """One white point on black: the Laplacian is -4 there and 1 at its four neighbours, so its mean is 0.

    Of 3 x 3 inner places the variance is (16 + 4) / 9, times 255 squared.
    """
    pixels = torch.zeros(1, 3, 5, 5)
    pixels[..., 2, 2] = 1
    assert sharpness(pixels).item() == pytest.approx(255**2 * 20 / 9, rel=1e-4)


def test_blur_lowers_sharpness_and_noise_raises_it():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 32, 32, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(pixels, 3, stride=1)
    noisy = (pixels + 0.2 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    assert sharpness(blurred) < sharpness(pixels) < sharpness(noisy)
