"""Figures with their intervals, and the distance between two sets of features. Pure."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float


def proportion(successes: int, total: int) -> Interval:
    """Share of successes with Wilson's score interval (Wilson 1927), which stays in [0, 1] at the ends."""
    if not 0 <= successes <= total or total < 1:
        raise ValueError(f"{successes} of {total} is no share")
    z = 1.959963984540054
    share = successes / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap(values: Tensor, *, generator: torch.Generator, rounds: int = 2000) -> Interval:
    """Mean of `values` (N,) with the percentile interval of resampled means (Efron 1979)."""
    chosen = torch.randint(len(values), (rounds, len(values)), generator=generator)
    means = values[chosen].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return Interval(float(values.mean()), low, high)


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of features (N, D) and (M, D), kernel (a.b / D + 1)^3.

    Around 0 for samples of one distribution, so it may be negative. Sources: Gretton et al. 2012, eq. 3; Binkowski et
    al. 2018, arXiv 1801.01401.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a kernel distance needs two features or more on both sides")
    x, y = x.double(), y.double()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def kernel_distance_interval(x: Tensor, y: Tensor, *, generator: torch.Generator, rounds: int = 50) -> Interval:
    """`kernel_distance` with the normal interval of its spread over halves drawn at random, scaled to all of it.

    Halves, because a sample with repetitions is nearer to itself than the estimator allows for. Politis & Romano 1994.
    """
    value = kernel_distance(x, y)

    def half(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[: max(2, len(features) // 2)]]

    spread = torch.tensor([kernel_distance(half(x), half(y)) for _ in range(rounds)]).std().item()
    return Interval(value, value - 1.959963984540054 * spread, value + 1.959963984540054 * spread)


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean Euclidean distance of all pairs of different rows (N, D)."""
    return float(torch.pdist(features.double()).mean())


def auroc(positives: Tensor, negatives: Tensor) -> float:
    """Chance that a positive (N,) scores above a negative (M,), ties counting half: the area under the ROC curve."""
    if min(len(positives), len(negatives)) < 1:
        raise ValueError("an area under the curve needs both classes")
    ranked = negatives.double().sort().values
    below = torch.searchsorted(ranked, positives.double(), side="left")
    up_to = torch.searchsorted(ranked, positives.double(), side="right")
    return float((below + up_to).double().mean() / (2 * len(ranked)))


def auroc_interval(positives: Tensor, negatives: Tensor) -> Interval:
    """The area under the ROC curve with the interval of Hanley & McNeil 1982, eq. 1, cut to [0, 1]."""
    area = auroc(positives, negatives)
    q1, q2 = area / (2 - area), 2 * area * area / (1 + area)
    n, m = len(positives), len(negatives)
    variance = (area * (1 - area) + (n - 1) * (q1 - area**2) + (m - 1) * (q2 - area**2)) / (n * m)
    half = 1.959963984540054 * math.sqrt(max(variance, 0.0))
    return Interval(area, max(0.0, area - half), min(1.0, area + half))


def calibration_error(probabilities: Tensor, labels: Tensor, *, bins: int = 15) -> float:
    """Expected calibration error of P(label = 1) (N,) in bins of equal width: Guo et al. 2017, eq. 3."""
    place = (probabilities * bins).long().clamp(max=bins - 1)
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, (probabilities - labels).double())
    return float(gap.abs().sum() / len(probabilities))
