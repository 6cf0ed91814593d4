"""Advantages, the clipped loss and the guarded ratio: by hand, by property, and against the density itself."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realgen.formulas import flow, grpo

NAN = float("nan")
VALUES = st.lists(st.lists(st.floats(-3, 3), min_size=4, max_size=4), min_size=1, max_size=3)


def test_advantages_by_hand():
    """Rewards 1 2 3 (mean 2, deviation sqrt(2/3) = 0.81650) and 0 0 3 (mean 1, deviation sqrt(2) = 1.41421).

    Normalised: -1.22459 0 1.22459 and -0.70706 -0.70706 1.41411 (1e-4 below the fraction). Weights 2 and 1, over 3:
    (-2.44919 - 0.70706) / 3 = -1.05208, -0.70706 / 3 = -0.23569, (2.44919 + 1.41411) / 3 = 1.28777.
    """
    rewards = {"real": torch.tensor([[1.0, 2, 3]]), "text": torch.tensor([[0.0, 0, 3]])}
    found = grpo.advantages(rewards, {"real": 2.0, "text": 1.0})
    torch.testing.assert_close(found.value, torch.tensor([[-1.05208, -0.23569, 1.28777]]), atol=2e-5, rtol=0)
    assert found.teaches.tolist() == [True]


def test_an_unscored_sample_counts_for_nothing():
    found = grpo.advantages({"real": torch.tensor([[0.2, NAN, 0.6], [NAN, NAN, 0.5]])}, {"real": 1.0})
    torch.testing.assert_close(found.value, torch.tensor([[-0.9995, 0, 0.9995], [0, 0, 0]]), atol=1e-5, rtol=0)
    assert found.teaches.tolist() == [True, False]


def test_a_group_of_equals_teaches_nothing():
    rewards = {"real": torch.tensor([[0.5, 0.5], [0.1, 0.2]]), "text": torch.tensor([[1.0, 1.0], [1.0, 1.0]])}
    found = grpo.advantages(rewards, {"real": 1.0, "text": 1.0})
    assert found.teaches.tolist() == [False, True]
    assert found.value[0].tolist() == [0, 0]


def test_the_deviation_of_all_samples_by_hand():
    """Groups 0 2 and 10 10: deviation of all is sqrt(mean of 30.25 12.25 20.25 20.25) = 4.55522; 1 / 4.55532."""
    found = grpo.advantages({"r": torch.tensor([[0.0, 2], [10, 10]])}, {"r": 1.0}, over_all=True)
    torch.testing.assert_close(found.value, torch.tensor([[-0.21952, 0.21952], [0, 0]]), atol=1e-5, rtol=0)


def test_advantages_are_clamped():
    values = torch.zeros(1, 64)
    values[0, 0] = 1.0
    assert grpo.advantages({"r": values}, {"r": 1.0}).value.max() == 5
    assert grpo.advantages({"r": values}, {"r": 1.0}, clamp=2).value.max() == 2


@given(VALUES, st.floats(-5, 5), st.floats(0.5, 4), st.permutations(range(4)))
@settings(max_examples=60)
def test_advantages_sum_to_nothing_and_know_no_shift_nor_order(values, shift, scale, order):
    rewards = torch.tensor(values, dtype=torch.float64).round(decimals=3)
    found = grpo.advantages({"r": rewards}, {"r": 1.0}).value
    assert found.sum(1).abs().max() < 1e-4
    moved = grpo.advantages({"r": rewards + shift}, {"r": 3.0}).value
    torch.testing.assert_close(moved, found, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(grpo.advantages({"r": rewards[:, list(order)]}, {"r": 1.0}).value, found[:, list(order)])


def test_nothing_to_reward_is_an_error():
    with pytest.raises(ValueError, match="positive weight"):
        grpo.advantages({"r": torch.zeros(1, 2)}, {"r": 0.0})


def test_the_clipped_loss_by_hand():
    """Clip 0.1. A = 1: ratio 1.2 counts as 1.1, 0.8 as itself. A = -1: 1.2 as itself, 0.8 as 0.9."""
    ratio, advantage = torch.tensor([1.2, 0.8, 1.2, 0.8]), torch.tensor([1.0, 1, -1, -1])
    term = grpo.clipped_loss(ratio, advantage, 0.1)
    torch.testing.assert_close(term.loss, torch.tensor([-1.1, -0.8, 1.2, 0.9]))
    assert term.is_clipped.tolist() == [True, False, False, True]


def test_where_it_is_clipped_there_is_no_gradient():
    ratio = torch.tensor([1.2, 0.8, 1.2, 0.8], requires_grad=True)
    grpo.clipped_loss(ratio, torch.tensor([1.0, 1, -1, -1]), 0.1).loss.sum().backward()
    assert ratio.grad.tolist() == [0, -1, 1, 0]


def step_of(shift, *, seed=0, deviation=0.3, count=4):
    """A step taken under the old policy, and the new policy's mean `shift` of a random direction away."""
    generator = torch.Generator().manual_seed(seed)
    old_mean, direction, noise = (torch.randn(count, 6, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    mean = old_mean + shift * direction
    x = old_mean + deviation * noise
    densities = [flow.log_density(x, one, deviation) for one in (mean, old_mean)]
    return densities, mean, old_mean, noise, torch.full((count,), deviation)


def test_the_ratio_is_one_where_nothing_moved():
    (density, old), mean, old_mean, _, deviation = step_of(0.0)
    assert torch.equal(grpo.plain_ratio(density, old), torch.ones(4))
    guarded = grpo.guarded_ratio(density, old, mean, old_mean, deviation=deviation)
    assert torch.equal(guarded, torch.ones_like(guarded))


def test_the_guarded_ratio_is_the_noises_share_of_the_drift():
    """log rho = mean over elements of noise (mu - mu_old): for each sample, whatever the others are."""
    (density, old), mean, old_mean, noise, deviation = step_of(0.05)
    ratio = grpo.guarded_ratio(density, old, mean, old_mean, deviation=deviation)
    wanted = (noise * (mean - old_mean)).mean((1, 2)).exp()
    torch.testing.assert_close(ratio.double(), wanted, atol=1e-6, rtol=0)
    for i in range(4):
        alone = grpo.guarded_ratio(
            density[i : i + 1], old[i : i + 1], mean[i : i + 1], old_mean[i : i + 1], deviation=deviation[:1]
        )
        assert alone.item() == pytest.approx(ratio[i].item(), abs=1e-6)


def test_the_guard_takes_the_bias_out_of_the_plain_ratio():
    logs = {"plain": [], "guarded": []}
    for seed in range(200):
        (density, old), mean, old_mean, _, deviation = step_of(0.1, seed=seed, deviation=0.1, count=1)
        logs["plain"].append(math.log(grpo.plain_ratio(density, old)))
        logs["guarded"].append(math.log(grpo.guarded_ratio(density, old, mean, old_mean, deviation=deviation)))
    mean = {name: sum(values) / 200 for name, values in logs.items()}
    assert mean["plain"] == pytest.approx(-0.5, abs=0.1)  # -|drift|^2 / (2 d^2) = -(0.1)^2 / (2 * 0.1^2)
    assert abs(mean["guarded"]) < 0.01


def test_the_references_mean_over_the_batch_mixes_samples():
    (density, old), mean, old_mean, _, deviation = step_of(0.05)
    mean = old_mean + (mean - old_mean) * torch.tensor([0.0, 1, 2, 3]).view(-1, 1, 1)
    mixed = grpo.guarded_ratio(density, old, mean, old_mean, deviation=deviation, over_batch=True)
    drift = (mean - old_mean).square().mean()
    wanted = ((density - old + drift / (2 * 0.3**2)) * 0.3).exp()
    torch.testing.assert_close(mixed.double(), wanted.double(), atol=1e-6, rtol=0)


def test_the_guards_weight_makes_steps_alike():
    assert [grpo.guard_weight(dt) for dt in (-0.1, -0.02)] == pytest.approx([10, 50])


def test_the_centred_ratio_is_the_guarded_one_without_its_rounding():
    (density, old), mean, old_mean, noise, deviation = step_of(0.05)
    following = old_mean + deviation[0] * noise
    centred = grpo.centred_ratio(following, mean, old_mean, deviation=float(deviation[0]))
    guarded = grpo.guarded_ratio(density, old, mean, old_mean, deviation=deviation)
    torch.testing.assert_close(centred.double(), guarded.double(), atol=1e-6, rtol=0)
    still = grpo.centred_ratio(following, old_mean, old_mean, deviation=float(deviation[0]))
    assert torch.equal(still, torch.ones_like(still))


def test_the_centred_ratio_resolves_what_two_densities_near_one_cannot():
    """Moved by 1e-6 of a direction, log rho is some 1e-7: a difference of float32 densities is off by as much."""
    generator = torch.Generator().manual_seed(0)
    old_mean, direction, noise = (torch.randn(8, 64, 64, generator=generator, dtype=torch.float64) for _ in range(3))
    mean, d = old_mean + 1e-5 * direction, 0.3
    following = old_mean + d * noise
    exact = (noise * (mean - old_mean)).mean((1, 2))
    centred = grpo.centred_ratio(following.float(), mean.float(), old_mean.float(), deviation=d).double().log()
    densities = [flow.log_density(following.float(), one.float(), d) for one in (mean, old_mean)]
    guarded = grpo.guarded_ratio(*densities, mean, old_mean, deviation=torch.full((8,), d)).double().log()
    assert (centred - exact).abs().max() <= (guarded - exact).abs().max()
    assert (centred - exact).abs().max() < 1e-7


def test_equal_scores_do_not_vary_whatever_their_mean_rounds_to():
    values = torch.tensor([[0.1] * 24, [0.7] * 23 + [0.8], [torch.nan] * 23 + [0.3]], dtype=torch.float64)
    assert grpo.is_varied(values).tolist() == [False, True, False]
    spread = grpo.spread(values)
    assert spread[0] < 1e-12
    assert spread[1] == pytest.approx(0.1 * math.sqrt(23) / 24)
    found = grpo.advantages({"a": values}, {"a": 1.0})
    assert found.teaches.tolist() == [False, True, False]
    assert not found.value[0].any()
