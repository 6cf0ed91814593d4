"""States of a flow on its own trajectories: what it has to go on from when it draws.

Knows no particular model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from realgen.core.protocols import FlowBackbone, Size
from realgen.formulas.flow import trajectory


class HalfDrawn(NamedTuple):
    """Half-drawn pictures."""

    x: Tensor
    """States (N, tokens, channels)."""
    sigma: Tensor
    """Their levels (N,)."""
    guidance: Tensor
    """How closely each follows its text (N,)."""
    texts: list[str]

    def at(self, places: Sequence[int]) -> "HalfDrawn":
        """Those at these places."""
        index = torch.tensor(places, device=self.x.device)
        return HalfDrawn(self.x[index], self.sigma[index], self.guidance[index], [self.texts[i] for i in places])


@torch.no_grad()
def half_draw(
    backbone: FlowBackbone,
    encode: Callable[[Sequence[str]], Any],
    texts: Sequence[str],
    *,
    steps: int,
    size: Size,
    guidance: Tensor,
    generator: torch.Generator,
    batch: int = 64,
) -> HalfDrawn:
    """The states before each of the `steps` of a trajectory for every text, level by level within a batch.

    `guidance` (N,) is one scale a text; the noise is drawn from `generator`, on the CPU.
    """
    sigmas, found = backbone.sigmas(steps, size), []
    for start in range(0, len(texts), batch):
        some, scale = list(texts[start : start + batch]), guidance[start : start + batch].to(sigmas.device)
        condition = encode(some)
        x = noise_of(backbone, size, len(some), generator).to(sigmas.device)

        def velocity(x: Tensor, sigma: Tensor, condition: Any = condition, scale: Tensor = scale) -> Tensor:
            return backbone.velocity(x, sigma, condition, guidance=scale, size=size)

        states = [x, *(step.x for step in trajectory(velocity, x, sigmas))]
        for state, sigma in zip(states[:-1], sigmas[:-1], strict=True):
            found.append(HalfDrawn(state, sigma.expand(len(some)), scale, some))
    x, sigma, scales = (torch.cat([getattr(one, name) for one in found]) for name in ("x", "sigma", "guidance"))
    return HalfDrawn(x, sigma, scales, [text for one in found for text in one.texts])


class OwnTrajectories:
    """Half-drawn pictures of a flow as it stands, a batch a step, drawn anew where a period of `period` steps begins.

    Each trajectory has its text, its guidance, uniform over `guidance`, and one of the numbers of steps in `steps`;
    `texts(number, count)` are the texts of draw `number`. All follows from `seed`, the step and the flow's weights.
    """

    def __init__(
        self,
        backbone: FlowBackbone,
        encode: Callable[[Sequence[str]], Any],
        texts: Callable[[int, int], Sequence[str]],
        *,
        batch: int,
        period: int,
        steps: Sequence[int],
        guidance: tuple[float, float],
        size: Size,
        seed: int,
    ) -> None:
        self.backbone, self.encode, self.texts = backbone, encode, texts
        self.batch, self.period, self.steps = batch, period, steps
        self.guidance, self.size, self.seed = guidance, size, seed
        self.drawn: HalfDrawn | None = None

    def at(self, index: int) -> HalfDrawn:
        """The half-drawn pictures (`batch`) that step `index` learns from."""
        number, place = divmod(index, self.period)
        if self.drawn is None or place == 0:
            self.drawn = self._draw(number)
        return self.drawn.at(range(place * self.batch, (place + 1) * self.batch))

    def _draw(self, number: int) -> HalfDrawn:
        """The states of a period, in the order in which they are learned from."""
        self.backbone.module.eval()
        generator = chance(self.seed, 0, number)
        steps = self.steps[int(torch.randint(len(self.steps), (1,), generator=generator))]
        count = -(-self.period * self.batch // steps)
        texts = self.texts(number, count)
        guidance = between(self.guidance, count, generator)
        drawn: HalfDrawn = half_draw(
            self.backbone, self.encode, texts, steps=steps, size=self.size, guidance=guidance, generator=generator
        )
        return drawn.at(torch.randperm(len(drawn.x), generator=chance(self.seed, 1, number)).tolist())

    def state_dict(self) -> dict[str, Any] | None:
        """What is being learned from."""
        return None if self.drawn is None else self.drawn._asdict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state`."""
        self.drawn = None if state is None else HalfDrawn(**state)


def chance(seed: int, what: int, number: int) -> torch.Generator:
    """Chance of its own for each thing (0 to 3) that is drawn and each time."""
    return torch.Generator().manual_seed((seed * 4 + what) * 64_000_192 + number)


def noise_of(backbone: FlowBackbone, size: Size, count: int, generator: torch.Generator) -> Tensor:
    """Where `count` trajectories begin (count, tokens, channels), drawn on the CPU."""
    return torch.randn((count, *backbone.noise([0], size).shape[1:]), generator=generator)


def between(limits: tuple[float, float], count: int, generator: torch.Generator, *, power: float = 1.0) -> Tensor:
    """Numbers (count,) from the least to the most of `limits`: a power of uniform shares of the way, on the CPU."""
    least, most = limits
    return least + (most - least) * torch.rand(count, generator=generator) ** power
