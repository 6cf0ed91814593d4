"""The terms of GRPO's loss for one replayed moment, as the recipe names them."""

import math

import torch
from torch import Tensor

from realgen.formulas import grpo
from realgen.formulas.flow import step_kl, velocity_kl
from realgen.train.flow_policy import Moment, Replayed


def likelihood_ratio(now: Replayed, moment: Moment, kind: str) -> Tensor:
    """The ratio (B,) of the recipe's kind, of the policy as it is to the one that drew."""
    if kind == "plain":
        return grpo.plain_ratio(now.log_density, moment.log_density)
    if kind == "guard":
        return grpo.centred_ratio(moment.following, now.mean, moment.mean, deviation=moment.deviation)
    return grpo.guarded_ratio(
        now.log_density,
        moment.log_density,
        now.mean,
        moment.mean,
        deviation=torch.full_like(moment.log_density, moment.deviation),
        over_batch=True,
    )


def distance(now: Replayed, moment: Moment, kind: str) -> Tensor:
    """The distance (B,) to the reference, of the recipe's kind; 0 where the reference was not computed."""
    if now.reference_v is None or now.reference_mean is None:
        return torch.zeros_like(moment.log_density)
    if kind == "velocity":
        return velocity_kl(now.v, now.reference_v)
    deviation = moment.deviation if kind == "step" else moment.deviation / math.sqrt(-moment.dt)
    return step_kl(now.mean, now.reference_mean, deviation)
