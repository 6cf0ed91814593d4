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


# ---- stochastic steps -----------------------------------------------------------------------------------


def latents(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 5, 4, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("step", [flow.sde_step, flow.cps_step])
def test_without_noise_a_stochastic_step_is_eulers(step):
    x, v, noise = latents()
    sigmas = flow.shifted_sigmas(8, 0.5)
    for index in range(8):
        taken, euler = step(x, v, sigmas, index, noise=noise, eta=0.0), flow.ode_step(x, v, sigmas, index)
        assert torch.equal(taken.x, euler.x)
        assert taken.deviation == 0


@pytest.mark.parametrize("index", range(1, 8))
def test_the_sde_step_is_flow_grpos_short_form(index):
    """Below 1, std^2 (1 - s) / (2 s) = eta^2 / 2: mean = x (1 + eta^2 dt / (2 (1 - s))) + (1 + eta^2 / 2) v dt."""
    x, v, noise = latents()
    sigmas, eta = flow.shifted_sigmas(8, 0.5), 0.9
    s, dt = sigmas[index].item(), (sigmas[index + 1] - sigmas[index]).item()
    taken = flow.sde_step(x, v, sigmas, index, noise=noise, eta=eta)
    mean = x * (1 + eta**2 * dt / (2 * (1 - s))) + (1 + eta**2 / 2) * v * dt
    torch.testing.assert_close(taken.mean, mean, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(taken.x, mean + eta * math.sqrt(-s * dt / (1 - s)) * noise, atol=1e-5, rtol=1e-5)


def test_the_first_sde_step_by_hand():
    """s = 1, s' = 0.8, eta = 0.5: std^2 = 0.25 * 1 / 0.2 = 1.25; mean = 0.875 x - 0.2 v; deviation = sqrt(0.25)."""
    x, v, noise = latents()
    taken = flow.sde_step(x, v, torch.tensor([1.0, 0.8, 0.0]), 0, noise=noise, eta=0.5)
    torch.testing.assert_close(taken.mean, 0.875 * x - 0.2 * v)
    assert taken.deviation == pytest.approx(0.5)
    torch.testing.assert_close(taken.x, taken.mean + 0.5 * noise)


def test_noise_of_flux_at_1024_pixels():
    """Deviations at noise 0.9 over 28 steps, as published: 0.900 0.917 0.653 ... 0.134."""
    x, v, noise = latents(1)
    sigmas = flow.shifted_sigmas(28, 1.15)
    wanted = {0: 0.900, 1: 0.917, 2: 0.653, 5: 0.421, 10: 0.307, 14: 0.263, 20: 0.215, 26: 0.134}
    for index, deviation in wanted.items():
        found = flow.sde_step(x, v, sigmas, index, noise=noise, eta=0.9).deviation
        assert found == pytest.approx(deviation, abs=6e-4)


def gaussian_spread(step, *, sigma, dt, eta, scale=0.5):
    """Deviation after one step from an exact Gaussian flow, over what it should be: data N(0, scale^2)."""
    spread = lambda s: math.sqrt(s**2 + (1 - s) ** 2 * scale**2)  # noqa: E731
    x = torch.ones(1, 1, dtype=torch.float64)
    v = x * (sigma - (1 - sigma) * scale**2) / spread(sigma) ** 2
    taken = step(x, v, torch.tensor([1.0, sigma, sigma - dt], dtype=torch.float64), 1, noise=0 * x, eta=eta)
    found = math.hypot(taken.mean.item() * spread(sigma), taken.deviation)
    return found / spread(sigma - dt)


@pytest.mark.parametrize("sigma", [0.3, 0.6, 0.85])
def test_the_sde_step_keeps_a_gaussians_spread_to_second_order(sigma):
    coarse = gaussian_spread(flow.sde_step, sigma=sigma, dt=0.02, eta=0.9) - 1
    fine = gaussian_spread(flow.sde_step, sigma=sigma, dt=0.01, eta=0.9) - 1
    assert coarse / fine == pytest.approx(4, rel=0.15)
    assert abs(fine) < 2e-3


def test_the_published_first_step_widens_the_spread():
    """With the second level in place of 1 in the quotient; noise 0.9, 28 steps: 8 to 10 % too wide."""
    sigmas = flow.shifted_sigmas(28, 1.15).double()
    x = torch.ones(1, 1, dtype=torch.float64)
    taken = flow.sde_step(x, x, sigmas, 0, noise=0 * x, eta=0.9)  # at sigma 1 v is x less the data's mean, 0
    second = sigmas[1].item()
    found = math.hypot(taken.mean.item(), taken.deviation) / math.hypot(second, (1 - second) * 0.5)
    assert found == pytest.approx(1.09, abs=0.01)


def test_cps_keeps_the_coefficients_of_data_and_noise():
    """With x = (1 - s) data + s old: mean = (1 - s') data + k old, and k^2 + std^2 = s'^2."""
    data, old, noise = latents()
    sigmas = torch.tensor([1.0, 0.7, 0.4, 0.0])
    taken = flow.cps_step(0.3 * data + 0.7 * old, old - data, sigmas, 1, noise=noise, eta=0.6)
    kept = math.sqrt(0.4**2 - taken.deviation**2)
    assert taken.deviation == pytest.approx(0.4 * math.sin(0.3 * math.pi))
    torch.testing.assert_close(taken.mean, 0.6 * data + kept * old, atol=1e-5, rtol=1e-5)
    last = flow.cps_step(data, old, sigmas, 2, noise=noise, eta=0.6)
    assert last.deviation == 0
    torch.testing.assert_close(last.x, data - 0.4 * old)


@pytest.mark.parametrize("deviation", [0.05, 0.9, 3.0])
def test_log_density_is_the_normals(deviation):
    mean, x, _ = latents()
    normal = torch.distributions.Normal(mean, deviation)
    torch.testing.assert_close(flow.log_density(x, mean, deviation), normal.log_prob(x).mean((1, 2)))


def test_log_density_sends_its_gradient_to_the_mean_alone():
    x, mean, _ = (tensor.requires_grad_() for tensor in latents())
    flow.log_density(x, mean, 0.5).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(mean.grad, (x - mean).detach() / 0.25 / 20)


def test_step_kl_is_torchs():
    one, other, _ = latents()
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(one, 0.4), normal(other, 0.4)).mean((1, 2))
    torch.testing.assert_close(flow.step_kl(one, other, 0.4), wanted)
    torch.testing.assert_close(flow.velocity_kl(one, other), 2 * 0.4**2 * wanted)


def test_a_deterministic_step_has_no_density():
    x, mean, _ = latents()
    for of in (flow.log_density, flow.step_kl):
        with pytest.raises(ValueError, match="deterministic"):
            of(x, mean, 0.0)


def test_one_loop_takes_both_kinds_of_step():
    x, v, noise = latents()
    sigmas = flow.shifted_sigmas(6, 0.5)

    def step(x, v, sigmas, index):
        if 1 <= index < 3:
            return flow.sde_step(x, v, sigmas, index, noise=noise, eta=0.7)
        return flow.ode_step(x, v, sigmas, index)

    taken = list(flow.trajectory(lambda x, sigma: v, x, sigmas, step))
    assert [one.deviation > 0 for one in taken] == [False, True, True, False, False, False]
