"""A flow backbone as a policy: rollout with log-densities, and replay of its stochastic steps under gradients.

Rollout is the sampler of inference with stochastic steps in a window; replay computes the same steps of the same
micro-batch anew, so that the ratio is exactly 1 before any update. Only the window's states are kept, in float32.
Knows no particular model, no reward and no loss.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from realgen.core.protocols import FlowBackbone, Size
from realgen.formulas.flow import FlowStep, cps_step, log_density, ode_step, sde_step, trajectory
from realgen.train.geometry import Row, noise_seed
from realgen.train.precision import computing_in
from realgen.train.reference import Reference


@dataclass(frozen=True, slots=True)
class Moment:
    """One stochastic step of a micro-batch, as the rollout took it."""

    index: int
    x: Tensor
    """State before the step (B, ...), float32."""
    following: Tensor
    """State after it (B, ...), float32."""
    mean: Tensor
    """Mean of the state after it, under the policy that drew it (B, ...)."""
    log_density: Tensor
    """Of the state after it, under the policy that drew it (B,)."""
    deviation: float
    dt: float
    """The step's length in sigma, negative."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A micro-batch of a rollout: what was drawn, and the moments that can be trained on."""

    rows: list[Row]
    texts: list[str]
    sigmas: Tensor
    moments: list[Moment]
    data: Tensor
    """Latents of the finished images (B, ...)."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One moment under the policy as it is now, with gradients, and under the reference, without."""

    mean: Tensor
    log_density: Tensor
    """(B,)."""
    v: Tensor
    reference_v: Tensor | None
    reference_mean: Tensor | None


class FlowPolicy:
    """Draws and replays with one backbone, at the steps, guidance and size that it will serve."""

    def __init__(
        self,
        backbone: FlowBackbone,
        *,
        steps: int,
        guidance: float,
        size: Size,
        sampler: Literal["flow_sde", "cps"],
        eta: float,
        seed: int,
        same_latent: bool,
        dtype: torch.dtype,
        device: torch.device,
        reference: Reference,
    ) -> None:
        self.backbone, self.reference = backbone, reference
        self.dtype, self.device = dtype, device
        self.steps, self.guidance, self.size = steps, guidance, size
        self.eta, self.seed, self.same_latent = eta, seed, same_latent
        self._stochastic = {"flow_sde": sde_step, "cps": cps_step}[sampler]

    @torch.no_grad()
    def rollout(self, rows: Sequence[Row], texts: Sequence[str], *, rollout: int, window: range) -> MicroBatch:
        """Draw a micro-batch, with stochastic steps at the indices in `window`."""
        sigmas = self.backbone.sigmas(self.steps, self.size)
        beginners = [replace(row, member=0) for row in rows] if self.same_latent else rows
        x = self.backbone.noise([noise_seed(self.seed, rollout, row) for row in beginners], self.size)
        moments: list[Moment] = []

        def step(x: Tensor, v: Tensor, sigmas: Tensor, index: int) -> FlowStep:
            if index not in window:
                return ode_step(x, v, sigmas, index)
            noise = _noise([noise_seed(self.seed, rollout, row, index) for row in rows], x)
            taken = self._stochastic(x, v, sigmas, index, noise=noise, eta=self.eta)
            moments.append(_moment(x, taken, sigmas))
            return taken

        with self.computing():
            for taken in trajectory(self._velocity(texts), x, sigmas, step):
                x = taken.x
        return MicroBatch(list(rows), list(texts), sigmas, moments, x)

    @torch.no_grad()
    def decode(self, drawn: MicroBatch) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] of a drawn micro-batch."""
        with self.computing():
            return self.backbone.decode(drawn.data, self.size)

    def replay(self, drawn: MicroBatch, moment: Moment, *, with_reference: bool) -> Replayed:
        """One step of a rollout again, under the weights as they are."""
        velocity = self._velocity(drawn.texts)
        sigma = drawn.sigmas[moment.index].expand(len(moment.x))
        reference_v = reference_mean = None
        if with_reference:  # first: a frozen copy changes places with weights that a backward pass would still need
            with torch.no_grad(), self.reference(), self.computing():
                reference_v = velocity(moment.x, sigma)
            reference_mean = self._mean(moment, reference_v, drawn.sigmas).mean
        with self.computing():
            v = velocity(moment.x, sigma)
        taken = self._mean(moment, v, drawn.sigmas)
        density = log_density(moment.following, taken.mean, taken.deviation)
        return Replayed(taken.mean, density, v, reference_v, reference_mean)

    def _mean(self, moment: Moment, v: Tensor, sigmas: Tensor) -> FlowStep:
        nothing = torch.zeros_like(moment.x)
        return self._stochastic(moment.x, v, sigmas, moment.index, noise=nothing, eta=self.eta)

    def _velocity(self, texts: Sequence[str]) -> Callable[[Tensor, Tensor], Tensor]:
        with torch.no_grad():
            condition: Any = self.backbone.encode(texts)
        return lambda x, sigma: self.backbone.velocity(x, sigma, condition, guidance=self.guidance, size=self.size)

    def computing(self) -> torch.autocast:
        """What rollout, replay and evaluation compute in."""
        return computing_in(self.dtype, self.device)


def _moment(x: Tensor, taken: FlowStep, sigmas: Tensor) -> Moment:
    if taken.deviation <= 0:
        raise ValueError(f"step {taken.index} of the window adds no noise")
    density = log_density(taken.x, taken.mean, taken.deviation)
    dt = float(sigmas[taken.index + 1]) - float(sigmas[taken.index])
    return Moment(taken.index, x, taken.x, taken.mean, density, taken.deviation, dt)


def _noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like`, drawn on the CPU with one generator an image."""
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(like)
