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


def sde_step(x: Tensor, v: Tensor, sigmas: Tensor, index: int, *, noise: Tensor, eta: float) -> FlowStep:
    """Flow-SDE, Liu et al. 2025, arXiv 2505.05470, eq. 9: a step whose state has the marginals of the ODE's.

        std = eta sqrt(s / (1 - s)),   dt = s' - s < 0
        mean = x (1 + std^2 dt / (2 s)) + v (1 + std^2 (1 - s) / (2 s)) dt,   x' = mean + std sqrt(-dt) noise

    At the first step s is 1 and the quotient has no value: there the second level stands in for s in it, as
    published. `noise` (B, ...) is standard normal. With `eta` 0 it is the Euler step.
    """
    if eta == 0:
        return ode_step(x, v, sigmas, index)
    s, following = float(sigmas[index]), float(sigmas[index + 1])
    dt, below_one = following - s, float(sigmas[1]) if index == 0 else s
    variance = eta * eta * s / (1 - below_one)
    v = v.to(x.dtype)
    mean = x * (1 + variance / (2 * s) * dt) + v * (1 + variance * (1 - s) / (2 * s)) * dt
    deviation = math.sqrt(variance * -dt)
    return FlowStep(index, mean + deviation * noise, mean, deviation)


def cps_step(x: Tensor, v: Tensor, sigmas: Tensor, index: int, *, noise: Tensor, eta: float) -> FlowStep:
    """Coefficient-preserving sampling, Wang & Yu 2025, arXiv 2509.05952: the noise that is added is taken from noise.

        data = x - s v,   old = x + (1 - s) v,   std = s' sin(eta pi / 2)
        mean = (1 - s') data + sqrt(s'^2 - std^2) old,   x' = mean + std noise

    The coefficients of data and noise stay those of the schedule. Into level 0, and with `eta` 0, it is the Euler step.
    """
    s, following = float(sigmas[index]), float(sigmas[index + 1])
    deviation = following * math.sin(eta * math.pi / 2)
    if deviation == 0:
        return ode_step(x, v, sigmas, index)
    v = v.to(x.dtype)
    mean = (1 - following) * (x - s * v) + math.sqrt(following**2 - deviation**2) * (x + (1 - s) * v)
    return FlowStep(index, mean + deviation * noise, mean, deviation)


def log_density(x: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Log-density of `x` (B, ...) under N(mean, deviation^2), the mean over elements: (B,), float32.

    The mean, not the sum, as Flow-GRPO has it: a clip range for it therefore scales as 1 / sqrt(number of elements).
    """
    if deviation <= 0:
        raise ValueError("a deterministic step has no density")
    z = ((x.detach().float() - mean.float()) / deviation).flatten(1)
    return -(z.square().mean(1)) / 2 - math.log(deviation) - math.log(2 * math.pi) / 2


def step_kl(mean: Tensor, reference: Tensor, deviation: float) -> Tensor:
    """KL of two steps of the same deviation, N(mean) from N(reference), the mean over elements: (B,)."""
    if deviation <= 0:
        raise ValueError("a deterministic step has no density")
    return (mean.float() - reference.float()).square().flatten(1).mean(1) / (2 * deviation**2)


def velocity_kl(v: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of two velocities (B, ...): (B,). The KL of a step without its level's weight."""
    return (v.float() - reference.float()).square().flatten(1).mean(1)


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
