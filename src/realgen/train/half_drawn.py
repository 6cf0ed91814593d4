"""States of a flow on its own trajectories: what it has to go on from when it draws.

Knows no particular model.
"""

from collections.abc import Callable, Sequence
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
    shape = backbone.noise([0], size).shape[1:]
    for start in range(0, len(texts), batch):
        some, scale = list(texts[start : start + batch]), guidance[start : start + batch].to(sigmas.device)
        condition = encode(some)
        x = torch.randn((len(some), *shape), generator=generator).to(sigmas.device)

        def velocity(x: Tensor, sigma: Tensor, condition: Any = condition, scale: Tensor = scale) -> Tensor:
            return backbone.velocity(x, sigma, condition, guidance=scale, size=size)

        states = [x, *(step.x for step in trajectory(velocity, x, sigmas))]
        for state, sigma in zip(states[:-1], sigmas[:-1], strict=True):
            found.append(HalfDrawn(state, sigma.expand(len(some)), scale, some))
    x, sigma, scales = (torch.cat([getattr(one, name) for one in found]) for name in ("x", "sigma", "guidance"))
    return HalfDrawn(x, sigma, scales, [text for one in found for text in one.texts])
