"""Best of several: draw more than was asked for, keep what the reward prefers, and say why.

A request of seed S is answered by the best of the seeds S, S + 1, ..., S + K - 1. Requests K apart (`-n N --best-of K`
makes them so) share no candidate: N * K seeds are drawn from S on, and the best of every K is kept. A candidate is
what the same seed draws without a search. Knows neither generators nor scorers: it is handed scored samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from realgen import reward
from realgen.core.spec import RewardSpec
from realgen.core.types import Candidate, Choice, Progress, Request, Sample

Draw = Callable[[list[Request]], Iterable[Sample | Progress]]
"""Requests to scored samples, in order."""


def best_of(requests: Sequence[Request], draw: Draw, *, spec: RewardSpec, num: int) -> Iterator[Sample | Progress]:
    """The best of `num` candidates of each request, in order, with Progress between.

    Its `request` is the candidate's own, so that drawing it again needs no search; its `choice` holds what was asked
    for, every candidate's total and parts, and why this one was kept.
    """
    asked = iter(requests)
    group: list[Sample] = []
    for item in draw([candidate for request in requests for candidate in candidates_of(request, num)]):
        if isinstance(item, Progress):
            yield item
            continue
        group.append(item)
        if len(group) == num:
            yield choose(next(asked), group, spec)
            group = []


def candidates_of(request: Request, num: int) -> list[Request]:
    """The requests that stand for one: its seed and the `num` - 1 after it."""
    return [replace(request, seed=request.seed + offset) for offset in range(num)]


def choose(asked: Request, group: Sequence[Sample], spec: RewardSpec) -> Sample:
    """The sample of `group` that the reward prefers, with its choice; the first where nothing tells them apart."""
    found = reward.parts([sample.scores for sample in group], spec)
    totals = reward.totals(found, spec.weights)
    candidates = tuple(
        Candidate(
            seed=sample.request.seed,
            total=_number(totals[index]),
            parts={name: _number(values[index]) for name, values in found.values.items()},
            is_violated=found.violated[index],
            reason=found.reasons[index],
        )
        for index, sample in enumerate(group)
    )
    best = reward.order(found, spec.weights)[0]
    return replace(group[best], choice=Choice(asked, candidates, _why(candidates, candidates[best])))


def _why(candidates: Sequence[Candidate], best: Candidate) -> str:
    num, outside = len(candidates), sum(candidate.is_violated for candidate in candidates)
    if best.is_violated:
        return f"all {num} are out of bounds, this one is the least bad"
    if best.total is None:
        return f"none of {num} could be scored within bounds, this is the first of the unscored"
    unscored = sum(candidate.total is None for candidate in candidates) - outside
    left_out = [f"{unscored} unscored"] * (unscored > 0) + [f"{outside} out of bounds"] * (outside > 0)
    return ", ".join([f"total {best.total:.4g}, the highest of {num}", *left_out])


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
