import pytest
import torch

from realgen.formulas.flow import log_density
from realgen.train.flow_policy import Moment, Replayed
from realgen.train.objective import distance, likelihood_ratio


def step(shift):
    generator = torch.Generator().manual_seed(0)
    x, old, noise = (torch.randn(2, 4, 3, generator=generator) for _ in range(3))
    following, mean = old + 0.5 * noise, old + shift
    moment = Moment(0, x, following, old, log_density(following, old, 0.5), 0.5, -0.25)
    return moment, Replayed(mean, log_density(following, mean, 0.5), x + 2, x, old)


@pytest.mark.parametrize("kind", ["plain", "guard", "guard_batch"])
def test_every_ratio_is_one_where_nothing_moved_and_not_where_it_did(kind):
    assert torch.equal(likelihood_ratio(*reversed(step(0.0)), kind), torch.ones(2))
    assert (likelihood_ratio(*reversed(step(0.1)), kind) != 1).all()


def test_distances_by_hand():
    """Velocities 2 apart: 4. Means 0.1 apart: 0.01 / (2 d^2), d = 0.5; without the step's length d = 0.5 / 0.5."""
    moment, now = step(0.1)
    assert distance(now, moment, "velocity").tolist() == pytest.approx([4, 4])
    assert distance(now, moment, "step").tolist() == pytest.approx([0.02, 0.02], rel=1e-4)
    assert distance(now, moment, "mean").tolist() == pytest.approx([0.005, 0.005], rel=1e-4)
