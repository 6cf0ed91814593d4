"""Pixels as tensors and as images. Pure: no file, no model."""

import numpy as np
from PIL import Image
from torch import Tensor


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [0, 1] as 8-bit images, rounded as diffusers rounds them."""
    array = (pixels.permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(one) for one in array]
