"""What must hold before a GRPO run may go on, each checked on the first rollout and an error with its reason.

A LoRA starts at zero, where output, distance and most gradients say nothing: those checks run on weights moved by a
small random amount, which are put back.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from realgen.core.errors import RealGenError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.formulas.grpo import is_varied, spread
from realgen.train.flow_policy import FlowPolicy, MicroBatch, Moment
from realgen.train.objective import distance, likelihood_ratio
from realgen.train.world import World, split_as, whole

MOVE = 0.02
"""Deviation of the random move."""


class SelfCheckError(RealGenError):
    """A run that would not train what it says."""


def check_run(
    recipe: FlowGrpoRecipe,
    policy: FlowPolicy,
    trained: Mapping[str, nn.Parameter],
    drawn: Sequence[Sequence[MicroBatch]],
    window: range,
    world: World,
) -> dict[str, float]:
    """Figures of the checks on a process's share of a rollout, by update; SelfCheckError where one fails."""
    _check_window(window, world)
    _check_noise([batch.moments[0] for update in drawn for batch in update], same_latent=policy.same_latent)
    first = drawn[0][0]
    drift = _check_ratio(recipe, policy, first)
    return {"ratio_drift": drift, **_check_moved(recipe, policy, trained, first)}


def _check_window(window: range, world: World) -> None:
    starts = world.gather([window.start])
    if len(set(starts)) > 1:
        raise SelfCheckError(
            f"the processes train different steps: windows start at {starts}",
            hint="start all processes from one recipe and checkpoint",
        )


def _check_noise(first: Sequence[Moment], *, same_latent: bool) -> None:
    together = (moment.following if same_latent else moment.x for moment in first)
    states = [state.cpu().numpy().tobytes() for batch in together for state in batch]
    if len(set(states)) < len(states):
        raise SelfCheckError(
            "two images of a rollout were given the same noise: their advantage would be chance",
            hint="look for duplicate prompts",
        )


def check_rewards(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest deviation of each part of a reward (P, G); SelfCheckError where one is the same in every group."""
    figures = {}
    for name, part in parts.items():
        figures[f"deviation_{name}"] = float(spread(part).nan_to_num(0).max())
        if not is_varied(part).any():
            raise SelfCheckError(
                f"the reward {name} is the same for all images of every prompt: it teaches nothing",
                hint="look at its scorer, or take it out of reward.weights",
            )
    return figures


def _check_ratio(recipe: FlowGrpoRecipe, policy: FlowPolicy, drawn: MicroBatch) -> float:
    drift = 0.0
    with torch.no_grad():
        for moment in drawn.moments:
            now = policy.replay(drawn, moment, with_reference=False)
            drift = max(drift, float((likelihood_ratio(now, moment, recipe.ratio) - 1).abs().max()))
    if drift > recipe.clip / 10:
        raise SelfCheckError(
            f"before any update the ratio is off by {drift:.2g}, more than a tenth of the clip range {recipe.clip:g}",
            hint="machine.dtype=float32, or a wider clip: rounding would decide what is learned",
        )
    return drift


def _check_moved(
    recipe: FlowGrpoRecipe, policy: FlowPolicy, trained: Mapping[str, nn.Parameter], drawn: MicroBatch
) -> dict[str, float]:
    moment = drawn.moments[0]
    with _moved(trained, recipe.seed):
        now = policy.replay(drawn, moment, with_reference=True)
        kl = distance(now, moment, recipe.kl)
        kl.sum().backward()
        idle = [name for name, value in trained.items() if not _has_gradient(value)]
        shift = float((likelihood_ratio(now, moment, recipe.ratio).detach() - 1).abs().max())
        moved = float((now.v.detach() - now.reference_v).abs().max()) if now.reference_v is not None else 0.0
        least = float(kl.detach().min())
    if not moved > 0:
        raise SelfCheckError("the trained weights do not change what is drawn", hint="are the adapters on the module?")
    if not least > 0:
        raise SelfCheckError("the distance to the reference is 0 on moved weights", hint="it would hold nothing back")
    if idle:
        raise SelfCheckError(
            f"{len(idle)} of {len(trained)} trained matrices get no gradient, the first {idle[0]}",
            hint="take them out of what is trained",
        )
    if not shift > 0:
        raise SelfCheckError("the ratio stays 1 on moved weights: it does not see them", hint="file a bug")
    return {"moved_output": moved, "moved_kl": least, "moved_ratio": shift}


def _has_gradient(value: nn.Parameter) -> bool:
    return value.grad is not None and bool(whole(value.grad.abs().sum()) > 0)


@contextmanager
def _moved(trained: Mapping[str, nn.Parameter], seed: int) -> Iterator[None]:
    kept = {name: value.detach().clone() for name, value in trained.items()}
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in trained.values():
            value.add_(split_as(MOVE * torch.randn(value.shape, generator=generator), value))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in trained.items():
                value.copy_(kept[name])
                value.grad = None
