"""A discriminator of contents: small pictures, enlarged to what an eye learned on, and its coarse maps read together.

A network that names objects sees little in pictures half the size of those it learned from. Enlarged, its maps at
strides 16 and 32 tell what is drawn from photographs by what it shows: whether a house or a face is whole.

    places: answers at stride 16, of both maps mixed          wholes: one answer, of those halved and averaged
    fine, finer: answers at twice strides 8 and 4

Source: the augmentation follows Wang et al. 2023, arXiv 2206.02262 (Diffusion-GAN: noise on both sides). Knows neither
flow nor photographs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.train.feature_discriminator import Eye, projection


class EnlargedDiscriminator(nn.Module):
    """Pixels (B, 3, H, W) around [0, 1] and conditions (B, C) to four groups of answers (B, places): above 0 is real.

    `channels` are those of the eye's maps, finest first; the last four are looked at, at strides 4, 8, 16 and 32.
    """

    def __init__(self, eye: Eye, channels: Sequence[int], *, condition: int, width: int) -> None:
        super().__init__()
        self._eye = eye
        finest, fine, coarse, coarsest = channels[-4:]
        self.finer, self.fine = _details(finest, width // 2), _details(fine, width // 2)
        self.coarse, self.coarsest = nn.Conv2d(coarse, width, 1), nn.Conv2d(coarsest, width, 1)
        self.near = nn.Conv2d(width, width, 3, padding=1)
        self.halve = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.far = nn.Conv2d(width, width, 3, padding=1)
        self.place, self.whole = nn.Conv2d(width, 1, 1), nn.Conv2d(width, 1, 1)
        self.wanted = nn.Linear(condition, width)

    def forward(self, pixels: Tensor, condition: Tensor) -> list[Tensor]:
        """Places (B, h * w), wholes (B, 1), and the answers to details at two scales."""
        finest, fine, coarse, coarsest = self._eye(pixels)[-4:]
        mixed = self.coarse(coarse) + F.interpolate(self.coarsest(coarsest), size=coarse.shape[2:], mode="bilinear")
        near = F.silu(self.near(F.silu(mixed)))
        far = F.silu(self.far(F.silu(self.halve(near)))).mean((2, 3), keepdim=True)
        whole = self.whole(far) + projection(far, self.wanted(condition))
        return [one.flatten(1) for one in (self.place(near), whole, self.fine(fine), self.finer(finest))]


def _details(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, 1, 1),
    )


def enlarged(pixels: Tensor, side: int, generator: torch.Generator, *, noise: float) -> Tensor:
    """Random windows of 0.9 to 1 of each picture (B, C, H, W), half of them mirrored, as (B, C, side, side).

    Half of them get normal noise of up to `noise`, as coarse as their pixels were: grain is then no way to look real.
    """
    count, channels, height, width = pixels.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(pixels.device)

    share, mirrored = 0.9 + 0.1 * draw(), (draw() < 0.5).float() * -2 + 1
    place = torch.zeros(count, 2, 3, device=pixels.device)
    place[:, 0, 0], place[:, 1, 1] = share * mirrored, share
    place[:, :, 2] = (1 - share)[:, None] * (2 * draw(2) - 1)
    grid = F.affine_grid(place, [count, channels, side, side], align_corners=False)
    window = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    strength = noise * draw() * (draw() < 0.5)
    grain = torch.randn(count, channels, height, width, generator=generator).to(pixels.device)
    grain = F.interpolate(grain, size=(side, side), mode="bilinear")
    return (window + strength[:, None, None, None] * grain).clamp(-0.2, 1.2)
