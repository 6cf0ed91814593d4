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
