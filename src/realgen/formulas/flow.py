"""Rectified flow: noise levels, steps, and the one loop that draws.

    x_sigma = (1 - sigma) * data + sigma * noise,     v = d x / d sigma = noise - data

Sources: Liu et al. 2022 (rectified flow), Esser et al. 2024, arXiv 2403.03206 (shifted schedules).
Everything is float32 or wider, whatever the model computes in. Knows no model, file or random generator.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x (B, ...), sigma (B,)) -> v (B, ...)."""


@dataclass(frozen=True, slots=True)
class FlowStep:
    """One step of a trajectory, from `sigmas[index]` to `sigmas[index + 1]`."""

    index: int
    x: Tensor
    """State after the step (B, ...), float32."""
    mean: Tensor
    """Mean of the state after the step (B, ...); equal to `x` for a deterministic step."""
    deviation: float
    """Standard deviation of the state around `mean`; 0 for a deterministic step."""


Step = Callable[[Tensor, Tensor, Tensor, int], FlowStep]
"""(x, v, sigmas (N + 1,), index) -> FlowStep. A stochastic step closes over the noise that it adds."""


def shift_of(num_tokens: int, *, base: tuple[int, float] = (256, 0.5), top: tuple[int, float] = (4096, 1.15)) -> float:
    """FLUX.1's resolution shift mu: linear in the number of image tokens through `base` and `top`."""
    slope = (top[1] - base[1]) / (top[0] - base[0])
    return base[1] + slope * (num_tokens - base[0])


def shifted_sigmas(steps: int, mu: float) -> Tensor:
    """Noise levels (steps + 1,), float32: linspace(1, 1/N, N) through e^mu / (e^mu + 1/s - 1), then 0."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    raw = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    shifted = math.exp(mu) / (math.exp(mu) + 1 / raw - 1)
    return torch.cat([shifted, torch.zeros(1, dtype=torch.float64)]).float()


def shift_sigma(sigma: Tensor, mu: float) -> Tensor:
    """The same shift for noise levels drawn in training: (0, 1) -> (0, 1), any shape."""
    return math.exp(mu) / (math.exp(mu) + 1 / sigma - 1)


def ode_step(x: Tensor, v: Tensor, sigmas: Tensor, index: int) -> FlowStep:
    """Euler: x + (sigma' - sigma) v."""
    moved = x + (sigmas[index + 1] - sigmas[index]) * v.to(x.dtype)
    return FlowStep(index, moved, moved, 0.0)


def trajectory(velocity: Velocity, x: Tensor, sigmas: Tensor, step: Step = ode_step) -> Iterator[FlowStep]:
    """Walk `x` (B, ...) from `sigmas[0]` to `sigmas[-1]`, yielding every step: the only sampling loop."""
    x = x.float()
    for index in range(len(sigmas) - 1):
        taken = step(x, velocity(x, sigmas[index].expand(len(x))), sigmas, index)
        x = taken.x
        yield taken


def interpolate(data: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """X at `sigma` (B,) on the straight line from `data` to `noise` (B, ...)."""
    level = sigma.view(-1, *[1] * (data.ndim - 1))
    return (1 - level) * data + level * noise
