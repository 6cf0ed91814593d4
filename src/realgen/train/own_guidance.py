"""A flow whose guidance is distilled goes on learning from photographs, at every guidance.

    target(g) = (noise - data) + (g - 1) [v(x, s, text; 1) - v(x, s, ""; 1)],    v the flow as it stands, no gradient

Plain flow matching teaches such a flow at guidance 1 alone, and undoes at the others what was distilled. Here its own
guidance is added to what a photograph says. Noise levels below `least_sigma`, where details are drawn, and sources
that are not taught are held to what the flow answered before. Where a caption is worded anew or made longer the flow is
held to what it answered to the old words: what new ones mean is distilled, without the noise of photographs.

Guidance where little is drawn yet makes all seeds of a text alike. Above `guided_below` a flow may learn to answer as
at guidance 1 whatever guidance it is told.

Sources: Tang et al. 2025, arXiv 2502.12154 (model guidance); Kynkäänniemi et al. 2024, arXiv 2404.07724 (guidance in
an interval of noise levels). Knows no model.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from realgen.core.protocols import FlowBackbone, Size
from realgen.train.flow_data import REWORDED, Batch

PLAIN = 0.35
"""Share of samples at guidance 1, where the flow learns what its own guidance is made of."""


class Lesson(NamedTuple):
    """What the flow shall answer for each sample of a batch."""

    guidance: Tensor
    """(B,)"""
    target: Tensor
    """Velocities (B, tokens, channels)."""
    weight: Tensor
    """Of the squared distance (B,)."""


@dataclass(frozen=True, slots=True)
class OwnGuidance:
    """What is taught, and how firmly the rest is held; no `sources` means all but what is reworded."""

    guidance: tuple[float, float]
    least_sigma: float = 0.0
    sources: tuple[str, ...] = ()
    held_weight: float = 4.0
    guided_below: float = 1.0

    @torch.no_grad()
    def lesson(
        self, flow: FlowBackbone, before: FlowBackbone, batch: Batch, *, chance: torch.Generator, size: Size
    ) -> Lesson:
        """Of photographs with the flow's own guidance where it is taught, else what `before` answers."""
        count, device = len(batch.x), batch.x.device
        low, high = self.guidance
        guidance = low + (high - low) * torch.rand(count, generator=chance)
        plain = (torch.rand(count, generator=chance) < PLAIN).to(device)
        known = torch.tensor([self._teaches(source) for source in batch.sources])
        taught = known.to(device) & (batch.sigma >= self.least_sigma)
        guidance = torch.where(plain & taught, 1.0, guidance.to(device))
        felt = guidance_felt(guidance, batch.sigma, below=self.guided_below)
        text, nothing = flow.encode(batch.captions), flow.encode([""] * count)
        with_text, without = (
            flow.velocity(batch.x, batch.sigma, condition, guidance=1.0, size=size).float()
            for condition in (text, nothing)
        )
        learned = batch.target + (felt - 1).view(-1, 1, 1) * (with_text - without)
        captions = before.encode(batch.captions if batch.taught is None else batch.taught)
        held = before.velocity(batch.x, batch.sigma, captions, guidance=felt, size=size).float()
        return Lesson(
            guidance,
            torch.where(taught.view(-1, 1, 1), learned, held),
            torch.where(taught, 1.0, self.held_weight),
        )

    def _teaches(self, source: str) -> bool:
        return source in self.sources if self.sources else source != REWORDED


def guidance_felt(guidance: Tensor, sigma: Tensor, *, below: float) -> Tensor:
    """What a flow answers by that is told `guidance` (B,) at levels `sigma` (B,): 1 above the level `below`."""
    return torch.where(sigma <= below, guidance, 1.0)
