"""A discriminator of latents by what a frozen flow sees of them: heads on single places, and on wholes.

Source: Sauer et al. 2024, arXiv 2403.12015 (LADD: heads on a frozen flow's features of noised latents). Knows neither
flow nor photographs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from realgen.train.feature_discriminator import Head


class LatentDiscriminator(nn.Module):
    """Maps (B, channels, side, side), as many as `maps`, and conditions (B, condition) to answers: above 0 is real."""

    def __init__(self, maps: int, channels: int, side: int, *, condition: int, width: int) -> None:
        super().__init__()
        self.places = nn.ModuleList([Head(channels, width, condition, halvings=0) for _ in range(maps)])
        halvings = max(0, side.bit_length() - 2)
        self.wholes = nn.ModuleList([Head(channels, width, condition, halvings=halvings) for _ in range(maps)])

    def forward(self, maps: Sequence[Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """The answers of single places (B, maps * side * side), and those of wholes, 2 or 3 a side of each map."""
        places, wholes = (
            torch.cat([head(one, condition).flatten(1) for head, one in zip(heads, maps, strict=True)], 1)
            for heads in (self.places, self.wholes)
        )
        return places, wholes
