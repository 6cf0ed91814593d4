"""A discriminator that looks through a frozen image network at all its scales, and reads what was asked for.

    maps -> fixed random 1x1 mixing -> fixed random mixing from coarse to fine -> a small head a scale
    answer = w . h + <h, p(c)> / sqrt(width),    h the head's features of a place, c the condition

Sources: Sauer et al. 2021, arXiv 2111.01007 (projected GANs: frozen features, random mixing, a head a scale);
Miyato & Koyama 2018, arXiv 1802.05637 (projection of the condition); Zhao et al. 2020, arXiv 2006.10738
(differentiable augmentation). Knows neither generator nor photographs.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

Eye = Callable[[Tensor], list[Tensor]]
"""Pixels (B, 3, H, W) in [0, 1] to maps, finest first, each half as fine as the one before."""


class FeatureDiscriminator(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] and conditions (B, C) to answers (B, places of all scales): above 0 is real."""

    def __init__(self, eye: Eye, channels: Sequence[int], *, condition: int, width: int = 64) -> None:
        super().__init__()
        self._eye = eye
        self.across = nn.ModuleList([nn.Conv2d(count, width, 1) for count in channels])
        self.down = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in channels])
        for module in (self.across, self.down):
            for layer in module:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
                nn.init.zeros_(layer.bias)
            module.requires_grad_(False)
        halvings = range(len(channels) - 1, -1, -1)
        self.heads = nn.ModuleList([Head(width, condition, halvings=max(0, count - 1)) for count in halvings])

    def forward(self, pixels: Tensor, condition: Tensor) -> Tensor:
        """The answers of every place."""
        mixed: list[Tensor] = []
        for across, down, seen in reversed(list(zip(self.across, self.down, self._eye(pixels), strict=True))):
            own = across(seen)
            if mixed:
                own = (own + F.interpolate(mixed[0], size=own.shape[2:], mode="bilinear")) / math.sqrt(2)
            mixed.insert(0, down(own))
        answers = [head(one, condition).flatten(1) for head, one in zip(self.heads, mixed, strict=True)]
        return torch.cat(answers, 1)


class Head(nn.Module):
    """A map (B, width, H, W), halved some times, and conditions (B, condition) to an answer a place (B, 1, h, w)."""

    def __init__(self, width: int, condition: int, *, halvings: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(halvings):
            layers += [spectral_norm(nn.Conv2d(width, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.answer = spectral_norm(nn.Conv2d(width, 1, 1))
        self.project = spectral_norm(nn.Linear(condition, width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """The answers."""
        hidden = self.layers(x)
        answers: Tensor = self.answer(hidden) + projection(hidden, self.project(condition))
        return answers


def projection(hidden: Tensor, wanted: Tensor) -> Tensor:
    """How much places (B, C, h, w) are what is wanted (B, C): (B, 1, h, w) (arXiv 1802.05637)."""
    return (hidden * wanted[:, :, None, None]).sum(1, keepdim=True) / math.sqrt(hidden.shape[1])


def summary(states: Tensor, pooled: Tensor) -> Tensor:
    """A text's states (B, tokens, C) and pooled state (B, P) as one condition (B, C + P), each half normalised."""
    return torch.cat([F.layer_norm(part.float(), part.shape[1:]) for part in (states.mean(1), pooled)], 1)


def level_waves(sigma: Tensor) -> Tensor:
    """Noise levels (B,) as part of a condition (B, 8): sines and cosines of 1, 2, 4 and 8 radians at level 1."""
    angles = sigma[:, None] * torch.tensor([1.0, 2.0, 4.0, 8.0], device=sigma.device)
    return torch.cat([angles.sin(), angles.cos()], 1)


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture (B, 3, H, W) in [0, 1] at random brighter, duller, flatter, shifted and with a hole, differentiably.

    Shifts are at most an eighth of the side, the hole has half of it; the same generator state gives the same draw.
    """

    def draw(least: float, most: float) -> Tensor:
        return (least + (most - least) * torch.rand(len(pixels), 1, 1, 1, generator=generator)).to(pixels.device)

    pixels = pixels + draw(-0.25, 0.25)
    mean = pixels.mean(1, keepdim=True)
    pixels = mean + (pixels - mean) * draw(0.5, 1.5)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * draw(0.75, 1.25)
    return _with_hole(_shifted(pixels, generator), generator)


def _shifted(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """By up to an eighth of the side, mirrored at the borders."""
    height, width = pixels.shape[2:]
    reach = max(1, height // 8)
    padded = F.pad(pixels, (reach, reach, reach, reach), mode="reflect")
    starts = torch.randint(2 * reach + 1, (2, len(pixels), 1), generator=generator)
    rows, columns = (starts[axis] + torch.arange(side) for axis, side in enumerate((height, width)))
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    chosen = padded.gather(2, rows[:, None, :, None].expand(-1, padded.shape[1], -1, padded.shape[3]))
    return chosen.gather(3, columns[:, None, None, :].expand(-1, padded.shape[1], height, -1))


def _with_hole(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Of half the height and width, some of it outside."""
    inside = []
    for side in pixels.shape[2:]:
        start = torch.randint(side + side // 2, (len(pixels), 1), generator=generator) - side // 2
        places = torch.arange(side)
        inside.append((places >= start) & (places < start + side // 2))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return pixels * (~hole).to(pixels)
