"""Sigma schedules and the sampling loop, against diffusers' scheduler and flows whose path is known."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from realgen.formulas import flow


@pytest.mark.parametrize("steps", [1, 4, 20, 28])
@pytest.mark.parametrize("tokens", [16, 64, 256, 1024, 4096])
def test_sigmas_equal_the_schedulers(steps, tokens):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    mu = flow.shift_of(tokens)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    torch.testing.assert_close(flow.shifted_sigmas(steps, mu), scheduler.sigmas, atol=1e-6, rtol=0)


def test_sigmas_of_flux_at_1024_pixels_by_hand():
    """mu = 1.15; the second of 28 levels is e^1.15 / (e^1.15 + 28/27 - 1) = 3.15819 / 3.19523 = 0.98841."""
    assert flow.shift_of(4096) == pytest.approx(1.15)
    assert flow.shift_of(256) == pytest.approx(0.5)
    sigmas = flow.shifted_sigmas(28, 1.15)
    assert sigmas[0] == 1
    assert sigmas[1].item() == pytest.approx(0.98841, abs=1e-5)
    assert sigmas[27].item() == pytest.approx(0.1047, abs=1e-4)
    assert sigmas[28] == 0


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        flow.shifted_sigmas(0, 0.5)


@given(st.floats(0.001, 0.999), st.floats(-1, 2))
def test_shift_keeps_order_and_range(sigma, mu):
    low, high = flow.shift_sigma(torch.tensor([sigma, min(sigma + 1e-3, 0.9999)], dtype=torch.float64), mu)
    assert 0 < low <= high < 1
    assert flow.shift_sigma(torch.tensor(sigma, dtype=torch.float64), 0.0).item() == pytest.approx(sigma)


def test_a_straight_path_is_walked_exactly_in_any_number_of_steps():
    data, noise = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
    for steps in (1, 3, 10):
        *_, last = flow.trajectory(lambda x, sigma: noise - data, noise, flow.shifted_sigmas(steps, 0.5))
        torch.testing.assert_close(last.x, data, atol=1e-5, rtol=0)
        assert last.index == steps - 1
        assert last.deviation == 0


def test_the_gaussian_flow_converges_to_first_order():
    """Data N(0, s^2): v = x (sigma - (1 - sigma) s^2) / (sigma^2 + (1 - sigma)^2 s^2); x ends at s times the noise."""
    scale = 0.3

    def velocity(x, sigma):
        level = sigma.view(-1, 1)
        return x * (level - (1 - level) * scale**2) / (level**2 + (1 - level) ** 2 * scale**2)

    def error(steps):
        noise = torch.ones(1, 1)
        *_, last = flow.trajectory(velocity, noise, flow.shifted_sigmas(steps, 0.0))
        return abs(last.x.item() - scale)

    assert error(400) < 5e-3
    assert error(100) / error(400) == pytest.approx(4, rel=0.2)


def test_velocity_is_asked_at_each_level_with_one_sigma_an_image():
    asked = []

    def velocity(x, sigma):
        asked.append(sigma.clone())
        return torch.zeros_like(x)

    sigmas = flow.shifted_sigmas(3, 0.5)
    steps = list(flow.trajectory(velocity, torch.randn(4, 2), sigmas))
    assert [step.index for step in steps] == [0, 1, 2]
    assert all(sigma.shape == (4,) for sigma in asked)
    torch.testing.assert_close(torch.stack(asked)[:, 0], sigmas[:3])


def test_states_are_float32_whatever_the_model_answers():
    steps = flow.trajectory(lambda x, sigma: x.bfloat16(), torch.randn(1, 2).bfloat16(), flow.shifted_sigmas(2, 0.5))
    assert all(step.x.dtype == torch.float32 for step in steps)


def test_interpolation_is_the_line_from_data_to_noise():
    data, noise = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    x = flow.interpolate(data, noise, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(x[0], data[0])
    torch.testing.assert_close(x[1], (data[1] + noise[1]) / 2)
    torch.testing.assert_close(x[2], noise[2])


def test_another_step_joins_the_same_loop():
    def halfway(x, v, sigmas, index):
        return flow.FlowStep(index, x / 2, x / 2, math.sqrt(float(sigmas[index])))

    steps = list(flow.trajectory(lambda x, sigma: x, torch.ones(1, 1), flow.shifted_sigmas(3, 0.0), halfway))
    assert steps[-1].x.item() == pytest.approx(1 / 8)
    assert steps[0].deviation == 1
