"""Half-drawn pictures: they are the states of the sampler's own trajectories."""

import pytest
import torch
from diffusers import FluxPipeline

from conftest import FLOAT32
from realgen.formulas.flow import trajectory
from realgen.generators._loading import load_pipeline
from realgen.generators.flux import FluxBackbone
from realgen.train.half_drawn import OwnTrajectories, half_draw

SIZE = (32, 32)
TEXTS = ["a rose", "a red rose in the rain", "a cat"]


@pytest.fixture
def backbone(random_flux):
    return FluxBackbone(load_pipeline(FluxPipeline, str(random_flux), FLOAT32), max_text_tokens=32)


def drawn_of(backbone, texts=TEXTS, batch=64, seed=0):
    guidance = torch.linspace(1, 5, len(texts))
    generator = torch.Generator().manual_seed(seed)
    return half_draw(
        backbone, backbone.encode, texts, steps=4, size=SIZE, guidance=guidance, generator=generator, batch=batch
    )


def test_a_state_for_every_text_before_every_step(backbone):
    drawn = drawn_of(backbone)
    sigmas = backbone.sigmas(4, SIZE)
    assert drawn.x.shape == (12, *backbone.noise([0], SIZE).shape[1:])
    assert drawn.texts == TEXTS * 4
    torch.testing.assert_close(drawn.sigma, sigmas[:-1].repeat_interleave(3))
    torch.testing.assert_close(drawn.guidance, torch.tensor([1.0, 3.0, 5.0] * 4))
    assert not drawn.x.requires_grad


def test_the_states_are_the_samplers(backbone):
    drawn = drawn_of(backbone)
    condition = backbone.encode(TEXTS[1:2])

    def velocity(x, sigma):
        return backbone.velocity(x, sigma, condition, guidance=3.0, size=SIZE)

    with torch.no_grad():
        steps = list(trajectory(velocity, drawn.x[1:2], backbone.sigmas(4, SIZE)))
    for index, step in enumerate(steps[:-1]):
        torch.testing.assert_close(drawn.x[4 + 3 * index], step.x[0], atol=1e-4, rtol=1e-4)


def test_the_first_states_are_standard_normal(backbone):
    first = drawn_of(backbone, TEXTS * 20).x[:60]
    assert first.mean().item() == pytest.approx(0, abs=0.05)
    assert first.std().item() == pytest.approx(1, abs=0.05)


def test_all_follows_from_the_chance(backbone):
    assert torch.equal(drawn_of(backbone).x, drawn_of(backbone).x)
    assert not torch.equal(drawn_of(backbone).x, drawn_of(backbone, seed=1).x)


def test_batches_hold_all_texts(backbone):
    drawn = drawn_of(backbone, batch=2)
    assert sorted(drawn.texts) == sorted(TEXTS * 4)
    assert drawn.texts[:2] == TEXTS[:2]
    assert drawn.sigma[:2].unique().numel() == 1


def test_some_of_them(backbone):
    drawn = drawn_of(backbone)
    some = drawn.at([7, 0])
    assert some.texts == [drawn.texts[7], drawn.texts[0]]
    for name in ("x", "sigma", "guidance"):
        assert torch.equal(getattr(some, name), getattr(drawn, name)[[7, 0]])


def test_own_trajectories_ask_for_as_many_texts_as_a_period_needs(backbone):
    asked = []

    def texts(number, count):
        asked.append((number, count))
        return ["a cat"] * count

    knobs = {"batch": 4, "period": 3, "steps": (5,), "guidance": (2.0, 3.0), "size": SIZE, "seed": 0}
    own = OwnTrajectories(backbone, backbone.encode, texts, **knobs)
    first = [own.at(index) for index in range(4)]
    assert asked == [(0, 3), (1, 3)]
    assert all(len(one.x) == 4 for one in first)
    assert all(2 <= one.guidance.min() <= one.guidance.max() <= 3 for one in first)
    again = OwnTrajectories(backbone, backbone.encode, texts, **knobs)
    assert torch.equal(again.at(2).x, first[2].x)
