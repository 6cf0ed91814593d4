"""What a flow answers with when it learns against opponents: to one step of its own, or with a whole drawing.

    of a half-drawn picture:  x_0 = x_s - s v(x_s, s, text),    x_s on a trajectory that the flow itself has drawn
    of a whole drawing:       x_0 at the end of a trajectory,   gradients through its last steps, some of which may
                                                                be those of the flow before
    of one begun already:     x_0 at the end of a trajectory,   begun by the flow before, or from a photograph

Answers to single steps are cheap, and every level has to look real at once, where the levels after would still have
gone on. A whole drawing is what is served. One that was begun from a photograph can be held against it. All know how
far they lie from what the flow answered before: of layout and colours, `low`, the mean over squares of 2x2 tokens, and
early in all.

Knows no particular model.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from realgen.core.protocols import FlowBackbone, Size
from realgen.formulas.flow import interpolate, trajectory
from realgen.train.flow_features import as_map
from realgen.train.half_drawn import OwnTrajectories, between, chance, noise_of

KEPT_WEIGHT = 10.0
"""Of the squared distance between velocities at a step that is kept."""


class Answered(NamedTuple):
    """What a flow answered with."""

    latents: Tensor
    """(B, tokens, C)."""
    condition: Any
    """Of their texts."""
    sigma: Tensor
    """The level that each answers from (B,); 0 is a whole drawing."""
    weights: Tensor
    """How much each counts (B,)."""
    away: Callable[[], Tensor]
    """The squared distance from what the flow answered before."""
    photographs: Tensor | None = None
    """What the first of them were begun from (N, tokens, C)."""


class Taken(NamedTuple):
    """A step that was taken: the state before it, its level, and its velocity."""

    x: Tensor
    sigma: Tensor
    v: Tensor


class Flows(NamedTuple):
    """A flow that learns, and the flow as it stood before."""

    learning: FlowBackbone
    before: FlowBackbone
    encode: Callable[[Sequence[str]], Any]
    """Makes of texts what both read."""
    size: Size

    def velocity(self, flow: FlowBackbone, x: Tensor, sigma: Tensor, condition: Any, guidance: Tensor) -> Tensor:
        """That of one of the two; the one that learns is in its training mode."""
        flow.module.train(flow is self.learning)
        return flow.velocity(x, sigma, condition, guidance=guidance, size=self.size).float()


class Answers(ABC):
    """Answers of a flow that learns, and how far they are from those before."""

    @abstractmethod
    def at(self, index: int) -> Answered:
        """Those of step `index`, with gradients where they are enabled."""

    def state_dict(self) -> dict[str, Any] | None:
        """What steps to come need of those before: nothing."""
        return None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state`."""
        assert state is None


class StepAnswers(Answers):
    """To single steps from half-drawn pictures, each weighing 1 - s^lateness."""

    def __init__(self, flows: Flows, *, trajectories: OwnTrajectories, lateness: float) -> None:
        self.flows, self.trajectories, self.lateness = flows, trajectories, lateness

    def at(self, index: int) -> Answered:
        """Of the batch of half-drawn pictures of step `index`."""
        taken = self.trajectories.at(index)
        with torch.no_grad():
            condition = self.flows.encode(taken.texts)

        def answer(flow: FlowBackbone) -> Tensor:
            v = self.flows.velocity(flow, taken.x, taken.sigma, condition, taken.guidance)
            return taken.x - taken.sigma.view(-1, 1, 1) * v

        answered = answer(self.flows.learning)

        def away() -> Tensor:
            with torch.no_grad():
                was = answer(self.flows.before)
            distance, early = answered - was, taken.sigma ** (2 * self.lateness)
            return low(distance).square().mean() + (early * distance.square().mean((1, 2))).mean()

        return Answered(answered, condition, taken.sigma, 1 - taken.sigma**self.lateness, away)

    def state_dict(self) -> dict[str, Any] | None:
        """The trajectories that are being learned from."""
        return self.trajectories.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Continue from `state`."""
        self.trajectories.load_state_dict(state)


class DrawnAnswers(Answers):
    """Drawings in `steps` steps, a batch a draw, each with a guidance uniform over `guidance`."""

    def __init__(self, flows: Flows, *, batch: int, steps: int, guidance: tuple[float, float], seed: int) -> None:
        self.flows, self.batch, self.steps = flows, batch, steps
        self.guidance, self.seed = guidance, seed

    def _start(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """The levels, and the noise and the guidance of a batch."""
        sigmas = self.flows.learning.sigmas(self.steps, self.flows.size)
        noise = noise_of(self.flows.learning, self.flows.size, self.batch, generator)
        guidance = between(self.guidance, self.batch, generator)
        return sigmas, noise.to(sigmas.device), guidance.to(sigmas.device)

    def _left(self, at: Taken, condition: Any, guidance: Tensor) -> Tensor:
        """How far the flow that learns has left what stays, in every detail, weighed."""
        now = self.flows.velocity(self.flows.learning, at.x, at.sigma, condition, guidance)
        return KEPT_WEIGHT * (now - at.v.detach()).square().mean()

    def _answered(
        self, latents: Tensor, condition: Any, away: Callable[[], Tensor], photographs: Tensor | None = None
    ) -> Answered:
        """Whole drawings all count, and answer from no noise."""
        nothing = torch.zeros(len(latents), device=latents.device)
        return Answered(latents, condition, nothing, nothing + 1, away, photographs)


class WholeAnswers(DrawnAnswers):
    """Whole drawings of `batch` texts, with gradients through the last `unrolled` of `steps` steps.

    What is compared with the flow before is one of those steps, by chance: where it would have led at once. The last
    `kept` of them are steps of the flow before, and what is learned has to answer like it there, in every detail: so
    layouts change, and what draws them out does not.
    """

    def __init__(
        self, flows: Flows, *, texts: Callable[[int, int], Sequence[str]], unrolled: int, kept: int, **drawn: Any
    ) -> None:
        super().__init__(flows, **drawn)
        self.texts, self.unrolled, self.kept = texts, unrolled, kept

    def at(self, index: int) -> Answered:
        """Drawings of the texts of draw `index`."""
        flows, generator = self.flows, chance(self.seed, 0, index)
        sigmas, noise, guidance = self._start(generator)
        learned, settled = self.steps - self.kept, self.steps - self.unrolled
        looked_at = int(torch.randint(settled, learned, (1,), generator=generator))
        kept_at = int(torch.randint(learned, self.steps, (1,), generator=generator)) if self.kept else None
        with torch.no_grad():
            condition = flows.encode(self.texts(index, self.batch))
        taken: list[Taken] = []

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            flow = flows.learning if len(taken) < learned else flows.before
            with torch.set_grad_enabled(torch.is_grad_enabled() and len(taken) >= settled):
                v = flows.velocity(flow, x, sigma, condition, guidance)
            taken.append(Taken(x.detach(), sigma, v))
            return v

        *_, drawn = trajectory(velocity, noise, sigmas)

        def away() -> Tensor:
            x, sigma, v = taken[looked_at]
            with torch.no_grad():
                was = flows.velocity(flows.before, x, sigma, condition, guidance)
            distance = low(sigma.view(-1, 1, 1) * (v - was)).square().mean()
            return distance if kept_at is None else distance + self._left(taken[kept_at], condition, guidance)

        return self._answered(drawn.x, condition, away)


class FinishedAnswers(DrawnAnswers):
    """Drawings that were begun already, finished with gradients through all steps that are left.

    Of `steps` steps one of `begun` is done, the same for a batch: its first half are photographs with so much noise,
    its second half the flow before's own drawings of other captions. The steps before stay what they were, in every
    detail: one of them is compared.
    """

    def __init__(
        self,
        flows: Flows,
        *,
        photographs: Callable[[int, int], tuple[Tensor, Sequence[str]]],
        begun: Sequence[int],
        **drawn: Any,
    ) -> None:
        super().__init__(flows, **drawn)
        self.photographs, self.begun = photographs, begun

    def at(self, index: int) -> Answered:
        """Those begun from the photographs, and drawn from the captions, of draw `index`."""
        flows, generator, half = self.flows, chance(self.seed, 0, index), self.batch // 2
        sigmas, noise, guidance = self._start(generator)
        begun = self.begun[int(torch.randint(len(self.begun), (1,), generator=generator))]
        compared = int(torch.randint(begun, (1,), generator=generator))
        clean, captions = self.photographs(index, self.batch)
        clean = clean[:half].to(sigmas.device)
        with torch.no_grad():
            condition, own = flows.encode(captions), flows.encode(captions[half:])
        taken: list[Taken] = []

        def before(x: Tensor, sigma: Tensor) -> Tensor:
            v = flows.velocity(flows.before, x, sigma, own, guidance[half:])
            taken.append(Taken(x, sigma, v))
            return v

        def velocity(x: Tensor, sigma: Tensor) -> Tensor:
            return flows.velocity(flows.learning, x, sigma, condition, guidance)

        with torch.no_grad():
            *_, drawn = trajectory(before, noise[half:], sigmas[: begun + 1])
        noised = interpolate(clean, noise[:half], sigmas[begun].expand(half))
        *_, finished = trajectory(velocity, torch.cat([noised, drawn.x]), sigmas[begun:])
        return self._answered(
            finished.x, condition, lambda: self._left(taken[compared], own, guidance[half:]), photographs=clean
        )


def low(latents: Tensor) -> Tensor:
    """Means over squares of 2x2 tokens of square latents (B, tokens, channels): (B, channels, side / 2, side / 2)."""
    return F.avg_pool2d(as_map(latents), 2)
