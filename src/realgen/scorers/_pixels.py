"""A picture as a model reads it: resized by Pillow, normalised; and the same in torch, where gradients are wanted.

torch's antialiased resize is not Pillow's, which rounds to 8 bits after each of its two passes: they differ by up to
0.004 in [0, 1], 0.007 where `via` resizes twice (tested).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAX_ASPECT = 4
"""Of a longer picture the ends are left out before it is resized and its centre cut."""

Triple = tuple[float, float, float]
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """How pixels become a model's input. Equal records are computed once an image.

    `fit` "squash" ignores the aspect; "crop" scales the short side and cuts the centre. `via` resizes to that side
    first, as detectors do that were trained so.
    """

    size: int
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    fit: Literal["squash", "crop"] = "squash"
    resample: Literal["bilinear", "bicubic"] = "bilinear"
    via: int | None = None

    def __call__(self, image: Image.Image) -> Tensor:
        """(3, size, size) of an RGB image."""
        image = image.crop(self._reach(image.width, image.height))
        for side in self._sides:
            width, height = self._fitted(image.width, image.height, side)
            if image.size != (width, height):
                image = image.resize((width, height), _PILLOW[self.resample])
            left, top = (width - side) // 2, (height - side) // 2
            if (width, height) != (side, side):
                image = image.crop((left, top, left + side, top + side))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return self._normalised(pixels)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) of pixels (B, 3, H, W) in [0, 1], with gradients."""
        left, top, right, bottom = self._reach(pixels.shape[3], pixels.shape[2])
        pixels = pixels[:, :, top:bottom, left:right]
        for side in self._sides:
            width, height = self._fitted(pixels.shape[3], pixels.shape[2], side)
            for size in ((pixels.shape[2], width), (height, width)):  # Pillow's two passes, each cut to [0, 1]
                if pixels.shape[2:] != size:
                    pixels = F.interpolate(
                        pixels, size=size, mode=self.resample, antialias=True, align_corners=False
                    ).clamp(0, 1)
            left, top = (width - side) // 2, (height - side) // 2
            pixels = pixels[:, :, top : top + side, left : left + side]
        return self._normalised(pixels.clamp(0, 1))

    @property
    def _sides(self) -> tuple[int, ...]:
        return (self.size,) if self.via is None else (self.via, self.size)

    def _fitted(self, width: int, height: int, side: int) -> tuple[int, int]:
        if self.fit == "squash":
            return side, side
        scale = side / min(width, height)
        return max(side, int(width * scale)), max(side, int(height * scale))  # rounded down, as transformers does

    def _reach(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what a centre crop can see: a ribbon is not enlarged as a whole."""
        if self.fit == "squash":
            return 0, 0, width, height
        longest = MAX_ASPECT * min(width, height)
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        return left, top, width - left, height - top

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(part, device=pixels.device).view(3, 1, 1) for part in (self.mean, self.std))
        return (pixels - mean) / std
