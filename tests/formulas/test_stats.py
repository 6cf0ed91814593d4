"""Intervals and distances by hand, by chance, and where they cannot be."""

import math

import pytest
import torch

from realgen.formulas import stats


def test_wilson_by_hand():
    """50 of 100: centre 0.5, half width 1.96 / (1 + 0.038415) * sqrt(0.0025 + 0.000096) = 0.0962."""
    value, low, high = stats.proportion(50, 100)
    assert value == 0.5
    assert low == pytest.approx(0.4038, abs=1e-4)
    assert high == pytest.approx(0.5962, abs=1e-4)


def test_wilson_stays_in_range_at_the_ends():
    assert stats.proportion(0, 10).low == pytest.approx(0, abs=1e-12)
    assert stats.proportion(10, 10).high == pytest.approx(1)
    assert stats.proportion(10, 10).high <= 1
    assert stats.proportion(0, 10).high > 0.2


@pytest.mark.parametrize(("successes", "total"), [(3, 2), (-1, 5), (0, 0)])
def test_what_is_no_share_is_refused(successes, total):
    with pytest.raises(ValueError, match="no share"):
        stats.proportion(successes, total)


def test_the_bootstrap_is_close_to_the_normal_interval():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, low, high = stats.bootstrap(values, generator=torch.Generator().manual_seed(1))
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert value == pytest.approx(float(values.mean()))
    assert high - value == pytest.approx(half, rel=0.15)
    assert value - low == pytest.approx(half, rel=0.15)


def test_kernel_distance_by_hand():
    """x = {0, 1}, y = {1, 1}, D = 1: within x k(0,1) = 1, within y k(1,1) = 8, across (1 + 1 + 8 + 8) / 4 = 4.5."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    assert stats.kernel_distance(x, y) == pytest.approx(1 + 8 - 2 * 4.5)


def test_the_interval_of_a_kernel_distance_holds_it_and_most_repetitions():
    """Without replacement, a half's spread is that of the whole: var(half) - var(whole) = var(whole)."""
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randn(2, 80, 6, generator=generator) for _ in range(30)]
    intervals = [stats.kernel_distance_interval(x, y + 0.3, generator=generator) for x, y in draws]
    middle = sum(one.value for one in intervals) / len(intervals)
    assert all(one.low < one.value < one.high for one in intervals)
    assert sum(one.low <= middle <= one.high for one in intervals) >= 25


def test_kernel_distance_is_unbiased_and_grows_with_a_shift():
    generator = torch.Generator().manual_seed(0)
    same = [
        stats.kernel_distance(torch.randn(60, 8, generator=generator), torch.randn(60, 8, generator=generator))
        for _ in range(40)
    ]
    spread = torch.tensor(same).std() / 40**0.5
    assert abs(sum(same) / 40) < 3 * spread
    near = stats.kernel_distance(torch.randn(60, 8), torch.randn(60, 8) + 0.5)
    far = stats.kernel_distance(torch.randn(60, 8), torch.randn(60, 8) + 1.5)
    assert far > near > max(same)


def test_one_feature_is_too_few():
    with pytest.raises(ValueError, match="two features"):
        stats.kernel_distance(torch.zeros(1, 2), torch.zeros(5, 2))


def test_mean_pairwise_distance_by_hand():
    """A 3-4-5 triangle: (3 + 4 + 5) / 3 = 4."""
    corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert stats.mean_pairwise_distance(corners) == pytest.approx(4)


# ---- the area under the ROC curve -----------------------------------------------------------------------

ABNORMAL, NORMAL = (3, 2, 2, 11, 33), (33, 6, 6, 11, 2)
"""Hanley & McNeil 1982, table 1: 109 tomograms rated from 1, surely normal, to 5."""


def rated(counts):
    return torch.arange(1.0, 6).repeat_interleave(torch.tensor(counts))


def two_classes(n=40, m=70, *, levels=None, seed=0):
    """Scores of two overlapping classes; of few `levels`, so that many are alike."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=generator) + 1, torch.randn(m, generator=generator)
    return scores if levels is None else tuple((part * levels).round() for part in scores)


@pytest.mark.parametrize("levels", [None, 2, 0.5])
def test_the_area_is_its_definition_over_all_pairs(levels):
    positives, negatives = two_classes(levels=levels)
    pairs = [(p > n) + (p == n) / 2 for p in positives.tolist() for n in negatives.tolist()]
    assert levels is None or 0.5 in pairs
    assert stats.auroc(positives, negatives) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 1])
def test_the_area_is_scikit_learn_s(levels):
    metrics = pytest.importorskip("sklearn.metrics")
    positives, negatives = two_classes(levels=levels, seed=1)
    labels = [1] * len(positives) + [0] * len(negatives)
    wanted = metrics.roc_auc_score(labels, torch.cat([positives, negatives]))
    assert stats.auroc(positives, negatives) == pytest.approx(wanted, abs=1e-12)


def test_the_area_by_hand():
    """Of 2 x 2 pairs one is above, one below, two alike."""
    assert stats.auroc(torch.tensor([2.0, 1.0]), torch.tensor([1.0, 2.0])) == (0 + 1 + 2 / 2) / 4
    assert stats.auroc(torch.ones(3), torch.ones(5)) == 0.5
    assert stats.auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0])) == 1
    assert stats.auroc(torch.tensor([1.0]), torch.tensor([2.0, 3.0])) == 0


def test_the_area_turns_with_the_classes_and_keeps_under_what_keeps_the_order():
    positives, negatives = two_classes(levels=2)
    area = stats.auroc(positives, negatives)
    assert stats.auroc(negatives, positives) == pytest.approx(1 - area, abs=1e-12)
    assert stats.auroc((positives / 9).sigmoid().double(), (negatives / 9).sigmoid().double()) == pytest.approx(area)


@pytest.mark.parametrize(("positives", "negatives"), [(0, 3), (3, 0)])
def test_the_area_of_one_class_is_refused(positives, negatives):
    for figure in (stats.auroc, stats.auroc_interval):
        with pytest.raises(ValueError, match="both classes"):
            figure(torch.zeros(positives), torch.zeros(negatives))


def test_the_interval_of_the_area_as_published():
    """An area of 0.893 with a standard error of 0.032."""
    value, low, high = stats.auroc_interval(rated(ABNORMAL), rated(NORMAL))
    assert value == pytest.approx(0.893, abs=5e-4)
    assert (high - low) / 2 / 1.96 == pytest.approx(0.032, abs=6e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_holds_the_area_and_shrinks(seed):
    widths = []
    for count in (10, 40, 160, 640):
        scores = two_classes(count, count, seed=seed)
        value, low, high = stats.auroc_interval(*scores)
        assert 0 <= low < value < high <= 1
        assert value == stats.auroc(*scores)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert widths[1] / widths[3] == pytest.approx(4, rel=0.25)  # as the root of the count


def test_nineteen_of_twenty_intervals_hold_the_true_area():
    """Unit normals one apart: the area is the normal distribution's value at 1 / sqrt 2."""
    true = (1 + math.erf(0.5)) / 2
    found = [stats.auroc_interval(*two_classes(50, 50, seed=seed)) for seed in range(400)]
    assert sum(one.low <= true <= one.high for one in found) / 400 == pytest.approx(0.95, abs=0.035)


# ---- calibration ----------------------------------------------------------------------------------------


def test_the_calibration_error_by_hand():
    """Bins [0, 0.5) with 0.2 + 0.4 for one of two, and [0.5, 1] with 0.6 + 1 for one of two: (0.4 + 0.6) / 4."""
    probabilities, labels = torch.tensor([0.2, 0.4, 0.6, 1.0]), torch.tensor([0, 1, 0, 1])
    assert stats.calibration_error(probabilities, labels, bins=2) == pytest.approx((0.4 + 0.6) / 4)
    assert stats.calibration_error(probabilities, labels, bins=1) == pytest.approx(0.2 / 4)
    each = (0.2 + 0.6 + 0.6 + 0) / 4
    assert stats.calibration_error(probabilities, labels, bins=5) == pytest.approx(each)


def test_the_calibration_error_is_its_definition():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(500, generator=generator)
    labels = (torch.rand(500, generator=generator) < probabilities**2).long()
    total = 0.0
    for place in range(15):
        inside = (probabilities >= place / 15) & (probabilities < (place + 1) / 15)
        gap = labels[inside].double().mean() - probabilities[inside].double().mean()
        total += inside.double().mean().item() * abs(gap.item())
    assert stats.calibration_error(probabilities, labels) == pytest.approx(total, abs=1e-6)
    assert total > 0.1


def test_the_calibration_error_of_the_sure_and_right_and_of_the_sure_and_wrong():
    labels = torch.tensor([0, 1, 1, 0])
    assert stats.calibration_error(labels.float(), labels) == 0
    assert stats.calibration_error(1 - labels.float(), labels) == 1
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(20000, generator=generator)
    labels = torch.rand(20000, generator=generator) < probabilities
    assert stats.calibration_error(probabilities, labels.long()) < 0.02
