"""Scores to the named parts of a reward, and to one total by which images are ranked; nothing else.

A part is a scorer's value, its log-odds, or the soft minimum of an ensemble of detectors. What could not be scored is
NaN and never 0; an image outside of a constraint is marked, its parts keep their values. Knows no groups: to normalise
within one, and to give a marked image the least of each part there, is the trainer's.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from realgen.core.errors import RealGenError
from realgen.core.spec import Bound, RewardSpec
from realgen.core.types import Score

SUREST = 1e-6
"""A probability nearer to 0 or 1 than this counts as this near: log-odds stay within 13.8."""
PATIENCE = 3
"""Steps in a row that may leave an image unscored before a run stops."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of N images, each list in the images' order."""

    values: Mapping[str, list[float]]
    """Every weighted part; NaN where it is unscored."""

    violated: list[bool]
    """Whether a score lies outside of its bound: such an image ranks below all others."""

    reasons: list[str]
    """Why an image is unscored (a weighted part or a bounded score is missing); empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """What one step left unscored: `count` of `total` images, and the first one's reason."""

    count: int
    total: int
    reason: str = ""


def parts(scores: Sequence[Mapping[str, Score]], spec: RewardSpec) -> Parts:
    """The parts of a reward, of each image's scores by the scorer's name."""
    values: dict[str, list[float]] = {}
    for name, weight in spec.weights.items():
        if weight:
            values[name] = [_part(image, name, spec) for image in scores]
    return Parts(
        values=values,
        violated=[_is_violated(image, spec.constraints) for image in scores],
        reasons=[_reason(image, spec) for image in scores],
    )


def soft_min(values: Sequence[float], *, temperature: float) -> float:
    """-T log mean exp(-p / T) of values p (N,) at the temperature T > 0; NaN where one of them is.

    It lies between the least and the mean. T -> 0 is the least; T -> infinity the mean, to second order
    mean - variance / (2 T): what detectors disagree on costs. Computed from the least upwards by expm1 and log1p, so
    that neither end loses digits.
    """
    least = math.nan if any(map(math.isnan, values)) else min(values)
    total = math.fsum(math.expm1(-(value - least) / temperature) for value in values)
    return least - temperature * math.log1p(total / len(values))


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), of p in [1e-6, 1 - 1e-6]; NaN of NaN."""
    bounded = probability if math.isnan(probability) else min(max(probability, SUREST), 1 - SUREST)
    return math.log(bounded) - math.log1p(-bounded)


def totals(found: Parts, weights: Mapping[str, float]) -> list[float]:
    """Weighted sum of the parts / sum of the weights, of each image.

    An image outside of a bound is -inf, below every other; else NaN where a weighted part or a bounded score is
    missing.
    """
    plain = _weighted(found, weights)
    together = zip(plain, found.violated, found.reasons, strict=True)
    return [-math.inf if violated else math.nan if reason else value for value, violated, reason in together]


def order(found: Parts, weights: Mapping[str, float]) -> list[int]:
    """The images' places, best first: by total, then the unscored, then those outside of a bound; stable.

    Of images outside of a bound the ones of greater weighted parts come first, so that the least bad is known.
    """
    plain = _weighted(found, weights)

    def rank(index: int) -> tuple[int, float]:
        value = plain[index]
        kind = 2 if found.violated[index] else 1 if found.reasons[index] else 0
        return kind, math.inf if math.isnan(value) else -value

    return sorted(range(len(plain)), key=rank)


def unscored(found: Parts) -> Unscored:
    """What a step left unscored, to be kept with the run: `check_unscored` reads the last few."""
    reasons = [reason for reason in found.reasons if reason]
    return Unscored(len(reasons), len(found.reasons), reasons[0] if reasons else "")


def check_unscored(history: Sequence[Unscored], *, max_unscored: float) -> None:
    """Raise RealGenError where the last step of `history` left too many unscored, or the last three left any.

    `history` is the steps so far, oldest first; the last `PATIENCE` are enough, so a run folder can keep them.
    """
    if not history:
        return
    last = history[-1]
    if last.count and last.count / last.total > max_unscored:
        message = f"{last.count} of a step's {last.total} images went unscored ({last.reason})"
        raise RealGenError(message, hint=f"mend the scorer, or allow more than reward.max_unscored={max_unscored:g}")
    if len(history) >= PATIENCE and all(step.count for step in history[-PATIENCE:]):
        message = f"{PATIENCE} steps in a row left images unscored, the last {last.count} of {last.total}"
        raise RealGenError(f"{message} ({last.reason})", hint="mend the scorer: it fails again and again")


def _part(scores: Mapping[str, Score], name: str, spec: RewardSpec) -> float:
    ensemble = spec.ensembles.get(name)
    if ensemble is None:
        value = _value(scores[name])
        return log_odds(value) if name in spec.log_odds else value
    return soft_min([_value(scores[member]) for member in ensemble.scorers], temperature=ensemble.temperature)


def _value(score: Score) -> float:
    return math.nan if score.value is None else score.value


def _is_violated(scores: Mapping[str, Score], constraints: Mapping[str, Bound]) -> bool:
    return any(_is_outside(scores[name].value, bound) for name, bound in constraints.items())


def _is_outside(value: float | None, bound: Bound) -> bool:
    if value is None:
        return False
    return (bound.low is not None and value < bound.low) or (bound.high is not None and value > bound.high)


def _reason(scores: Mapping[str, Score], spec: RewardSpec) -> str:
    weighted = [name for name, weight in spec.weights.items() if weight]
    members = (spec.ensembles[name].scorers if name in spec.ensembles else (name,) for name in weighted)
    read = dict.fromkeys([*(member for together in members for member in together), *spec.constraints])
    missing = (f"{name}: {scores[name].reason or 'no reason given'}" for name in read if scores[name].value is None)
    return next(missing, "")


def _weighted(found: Parts, weights: Mapping[str, float]) -> list[float]:
    used = [weights[name] for name in found.values]
    rows = zip(*found.values.values(), strict=True)
    return [
        math.fsum(weight * value for weight, value in zip(used, row, strict=True)) / math.fsum(used) for row in rows
    ]
