"""A discriminator of latents by what a frozen flow sees of them: heads on places with their neighbours, and on wholes.

What gives drawn latents away is how neighbouring tokens go on into each other, so a place is looked at with the two
around it. Weights are free: bounded by their spectral norm, heads tell less and learn it more slowly.

Source: Sauer et al. 2024, arXiv 2403.12015 (LADD: heads on a frozen flow's features of noised latents). Knows neither
flow nor photographs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.train.feature_discriminator import projection


class LatentDiscriminator(nn.Module):
    """Maps (B, channels, side, side), as many as `maps`, and conditions (B, condition) to answers: above 0 is real."""

    def __init__(self, maps: int, channels: int, *, condition: int, width: int) -> None:
        super().__init__()
        self.places = nn.ModuleList([_Places(channels, condition, width) for _ in range(maps)])
        self.wholes = nn.ModuleList([_Wholes(condition, width) for _ in range(maps)])

    def forward(self, maps: Sequence[Tensor], condition: Tensor) -> tuple[Tensor, Tensor]:
        """The answers of places (B, maps * side * side), and those of quarters of the side (B, maps * (side / 2)^2)."""
        places, wholes = [], []
        for one, of_places, of_wholes in zip(maps, self.places, self.wholes, strict=True):
            hidden, answers = of_places(one, condition)
            places.append(answers)
            wholes.append(of_wholes(hidden, condition))
        return torch.cat(places, 1), torch.cat(wholes, 1)


class _Places(nn.Module):
    """A map (B, channels, h, w) to what is seen at and around each place (B, width, h, w), and answers (B, h * w)."""

    def __init__(self, channels: int, condition: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.told = nn.Linear(condition, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.answer = _Answer(condition, width)

    def forward(self, one: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.silu(self.first(one) + self.told(condition)[:, :, None, None])
        hidden = F.silu(self.second(hidden))
        return hidden, self.answer(hidden, condition)


class _Wholes(nn.Module):
    """What is seen at places (B, width, h, w) to answers (B, (h / 2) * (w / 2)), each of which sees most of a side."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.halve = nn.Conv2d(width, width, 4, stride=2, padding=1)
        self.mix = nn.Conv2d(width, width, 3, padding=1)
        self.answer = _Answer(condition, width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        answers: Tensor = self.answer(F.silu(self.mix(F.silu(self.halve(hidden)))), condition)
        return answers


class _Answer(nn.Module):
    """Whether it is real, and whether it is what it should be."""

    def __init__(self, condition: int, width: int) -> None:
        super().__init__()
        self.real = nn.Conv2d(width, 1, 1)
        self.wanted = nn.Linear(condition, width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        answers: Tensor = self.real(hidden) + projection(hidden, self.wanted(condition))
        return answers.flatten(1)
