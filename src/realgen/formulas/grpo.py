"""Group relative policy optimisation of a flow: advantages, the clipped loss, and GRPO-Guard's ratio.

    A_i,k = (r_i,k - mean_k) / (std_k + 1e-4) within the group,   A_i = sum_k w_k A_i,k / sum_k w_k

Sources: Shao et al. 2024, arXiv 2402.03300; Liu et al. 2025, arXiv 2505.05470 (Flow-GRPO); Wang et al. 2025,
arXiv 2510.22319 (GRPO-Guard). P prompts, G members of a group. Pure: no model, no random generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-4
"""Added to a group's deviation, as published."""


@dataclass(frozen=True, slots=True)
class Advantages:
    """What each sample is worth against its group."""

    value: Tensor
    """(P, G); 0 where a sample is unscored or its group teaches nothing."""
    teaches: Tensor
    """(P,) whether a group has two scored samples or more and they differ in some reward."""


def advantages(
    rewards: Mapping[str, Tensor], weights: Mapping[str, float], *, clamp: float = 5.0, over_all: bool = False
) -> Advantages:
    """Each reward (P, G) normalised within its group, then weighted: scales do not matter, only weights do.

    NaN is unscored: left out of mean and deviation, advantage 0. With `over_all` the deviation is that of all
    samples, as in the first release of the reference; the mean stays the group's. The deviation is the population's.
    """
    if not rewards or sum(weights[name] for name in rewards) <= 0:
        raise ValueError("advantages need a reward of positive weight")
    shape = next(iter(rewards.values())).shape
    total = torch.zeros(shape, dtype=torch.float64)
    varies = torch.zeros(shape[0], dtype=torch.bool)
    is_scored = torch.ones(shape, dtype=torch.bool)
    for name, reward in rewards.items():
        values = reward.double()
        scored = ~values.isnan()
        centred = torch.where(scored, values - values.nanmean(1, keepdim=True), 0.0)
        own = spread(values)[:, None].nan_to_num(0)
        if over_all:
            everything = values[scored]
            deviation = everything.std(correction=0) if len(everything) else torch.tensor(0.0)
        else:
            deviation = own
        total += weights[name] * centred / (deviation + EPSILON)
        varies |= is_varied(values)
        is_scored &= scored
    total /= sum(weights[name] for name in rewards)
    teaches = varies & (is_scored.sum(1) > 1)
    value = torch.where(is_scored & teaches[:, None], total, 0.0).clamp(-clamp, clamp)
    return Advantages(value.float(), teaches)


def is_varied(values: Tensor) -> Tensor:
    """Whether a group (P, G) has two scored members that differ: (P,). Exact, where a deviation is rounded."""
    scored = ~values.isnan()
    least = torch.where(scored, values, torch.inf).amin(1)
    return (torch.where(scored, values, -torch.inf).amax(1) > least) & (scored.sum(1) > 1)


def spread(values: Tensor) -> Tensor:
    """Population deviation of the scored members of each group (P, G): (P,), NaN where there is none."""
    return (values - values.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()


@dataclass(frozen=True, slots=True)
class PolicyTerm:
    """The clipped loss of a batch of steps, and what it says of the update; each (B,)."""

    loss: Tensor
    ratio: Tensor
    is_clipped: Tensor
    """Whether the clip took the gradient away."""


def clipped_loss(ratio: Tensor, advantage: Tensor, clip: float) -> PolicyTerm:
    """max(-A rho, -A clip(rho, 1 - c, 1 + c)), PPO's pessimistic bound: Schulman et al. 2017, eq. 7."""
    plain, bounded = -advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip)
    return PolicyTerm(torch.maximum(plain, bounded), ratio.detach(), bounded > plain)


def plain_ratio(log_density: Tensor, old: Tensor) -> Tensor:
    """exp(log p - log p_old), of log-densities that are means over elements."""
    return (log_density - old).exp()


def guarded_ratio(
    log_density: Tensor,
    old: Tensor,
    mean: Tensor,
    old_mean: Tensor,
    *,
    deviation: Tensor,
    over_batch: bool = False,
) -> Tensor:
    """GRPO-Guard's ratio: the drift of the mean taken out, the step's deviation as the unit.

        log rho = d (log p - log p_old + |mu - mu_old|^2 / (2 d^2)),   d = std sqrt(-dt),  |.|^2 a mean over elements

    Algebraically mean(noise (mu - mu_old)): centred on 0 under the old policy at every level. `deviation` is (B,).
    The reference takes the drift's mean over the batch as well, one number for all samples, and the mean deviation:
    `over_batch` does the same.
    """
    drift = (mean.float() - old_mean.float()).square().flatten(1).mean(1)
    if over_batch:
        drift, deviation = drift.mean().expand_as(drift), deviation.mean().expand_as(deviation)
    bias = drift / (2 * deviation.square())
    return ((log_density - old + bias) * deviation).exp()


def centred_ratio(following: Tensor, mean: Tensor, old_mean: Tensor, *, deviation: float) -> Tensor:
    """GRPO-Guard's ratio (B,) as what it is equal to, log rho = mean((x' - mu_old) (mu - mu_old)) / d, over elements.

    From two log-densities near 1 it comes out of a difference whose rounding is a tenth of FLUX.1's clip range.
    """
    moved = (following.float() - old_mean.float()) * (mean.float() - old_mean.float())
    return (moved.flatten(1).mean(1) / deviation).exp()


def guard_weight(dt: float) -> float:
    """1 / |dt|: what makes every step's gradient weigh the same, since mu moves with dt."""
    return 1 / abs(dt)
