"""How far pictures are from the photographs that they were begun from: what an eye makes of both, enlarged.

    mean over maps and places of || f / |f| - g / |g| ||^2,    + w times the mean of | f_8 - g_8 |, means of 8x8 pixels

Squared errors of latents ask for the mean of what could be there; maps of a network that names objects ask for what it
would name, an eye or a window. Beside an opponent, which asks for no photograph in particular.

Source: Zhang et al. 2018, arXiv 1801.03924 (LPIPS, here without weights of channels). Knows neither flow nor data.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from realgen.train.enlarged_discriminator import enlarged
from realgen.train.feature_discriminator import Eye


class Likeness:
    """The distance between what `decode` makes of packed latents and of others, through an eye's last four maps.

    Both are enlarged to `side` pixels, by the same random windows. `weight` is what it counts beside opponents.
    """

    MAPS = 4
    COLOURS = 0.1

    def __init__(self, eye: Eye, decode: Callable[[Tensor], Tensor], *, side: int, weight: float) -> None:
        self.eye, self.decode, self.side, self.weight = eye, decode, side, weight

    def away(self, latents: Tensor, photographs: Tensor, generator: torch.Generator) -> Tensor:
        """Of latents (B, tokens, C) from those of photographs, 0 where they are the same; gradients reach `latents`."""
        with torch.no_grad():
            real = self.decode(photographs).float()
        drawn = self.decode(latents).float()
        both = enlarged(torch.cat([drawn, real], 1), self.side, generator, noise=0.0)
        ours, theirs = both.chunk(2, 1)
        with torch.no_grad():
            wanted = self.eye(theirs)[-self.MAPS :]
        seen = self.eye(ours)[-self.MAPS :]
        distances = [_apart(one, other) for one, other in zip(seen, wanted, strict=True)]
        return (
            torch.stack(distances).mean() + self.COLOURS * (F.avg_pool2d(drawn, 8) - F.avg_pool2d(real, 8)).abs().mean()
        )


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """The mean over places of the squared distance between channels (B, C, h, w) of length one."""
    one, other = (F.normalize(part.float(), dim=1, eps=1e-3) for part in (one, other))
    return (one - other).square().sum(1).mean()
