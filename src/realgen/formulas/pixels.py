"""Pixels as tensors and as images. Pure: no file, no model."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) in [0, 1] as 8-bit images, rounded as diffusers rounds them."""
    array = (pixels.permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().astype(np.uint8)
    return [Image.fromarray(one) for one in array]


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as pixels (B, 3, H, W) in [0, 1], float32."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


def sharpness(pixels: Tensor) -> Tensor:
    """Variance of the Laplacian (4-neighbour) on luma (Rec. 601, 0 to 255) of pixels (B, 3, H, W) in [0, 1]: (B,).

    Blur lowers it, noise raises it: Pech-Pacheco et al. 2000.
    """
    weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)
    luma = (pixels.float() * weights).sum(1, keepdim=True) * 255
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=pixels.device)
    return F.conv2d(luma, kernel[None, None]).flatten(1).var(1, correction=0)
