from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn

import grpo
from realgen.train.geometry import Row
from realgen.train.self_checks import SelfCheckError, check_rewards, check_run
from realgen.train.world import World

PARTS = {"light": torch.tensor([[0.1, 0.2], [0.3, 0.3]], dtype=torch.float64)}
WINDOW = range(2)


@pytest.fixture
def run(random_flux):
    recipe = grpo.recipe_of()
    trainer = grpo.build_trainer(random_flux, recipe)
    rows = [Row(0, 0, 0), Row(1, 0, 1)]
    drawn = trainer.policy.rollout(rows, ["a cat", "a cat"], rollout=0, window=WINDOW)
    return recipe, trainer.policy, trainer.trained, drawn


def test_a_good_run_passes_and_keeps_its_weights(run):
    recipe, policy, trained, drawn = run
    before = {name: value.detach().clone() for name, value in trained.items()}
    figures = check_run(recipe, policy, trained, [[drawn]], WINDOW, World())
    assert figures["ratio_drift"] == 0
    assert min(figures["moved_output"], figures["moved_kl"], figures["moved_ratio"]) > 0
    assert all(torch.equal(value, before[name]) for name, value in trained.items())
    assert all(value.grad is None for value in trained.values())


class Elsewhere(World):
    def gather(self, values):
        return [*values, 7]


def test_windows_that_differ(run):
    with pytest.raises(SelfCheckError, match="the processes train different steps"):
        check_run(*run[:3], [[run[3]]], WINDOW, Elsewhere())


@pytest.mark.parametrize("same_latent", [False, True])
def test_noise_that_is_shared(run, monkeypatch, same_latent):
    recipe, policy, trained, _ = run
    monkeypatch.setattr(policy, "same_latent", same_latent)
    drawn = policy.rollout([Row(0, 0, 0), Row(1, 0, 0)], ["a cat", "a cat"], rollout=0, window=WINDOW)
    with pytest.raises(SelfCheckError, match="were given the same noise"):
        check_run(recipe, policy, trained, [[drawn]], WINDOW, World())


def test_a_group_that_begins_from_one_latent_passes(run, monkeypatch):
    recipe, policy, trained, _ = run
    monkeypatch.setattr(policy, "same_latent", True)
    drawn = policy.rollout([Row(0, 0, 0), Row(1, 0, 1)], ["a cat", "a cat"], rollout=0, window=WINDOW)
    check_run(recipe, policy, trained, [[drawn]], WINDOW, World())


def test_a_reward_that_does_not_vary():
    flat = PARTS | {"flat": torch.tensor([[0.5, 0.5], [0.1, torch.nan]], dtype=torch.float64)}
    with pytest.raises(SelfCheckError, match="the reward flat is the same"):
        check_rewards(flat)
    assert check_rewards(PARTS)["deviation_light"] == pytest.approx(0.05)


def test_a_ratio_that_is_not_one(run):
    recipe, policy, trained, drawn = run
    rounded = replace(
        drawn, moments=[replace(one, following=one.following.bfloat16().float()) for one in drawn.moments]
    )
    with pytest.raises(SelfCheckError, match="before any update the ratio is off"):
        check_run(
            recipe.model_copy(update={"clip": 2e-6, "ratio": "plain"}), policy, trained, [[rounded]], WINDOW, World()
        )


def test_a_reference_that_is_the_policy_itself(run):
    recipe, policy, trained, drawn = run
    policy.reference = nullcontext
    with pytest.raises(SelfCheckError, match="do not change what is drawn"):
        check_run(recipe, policy, trained, [[drawn]], WINDOW, World())


def test_a_weight_without_a_gradient(run):
    recipe, policy, trained, drawn = run
    idle = trained | {"idle": nn.Parameter(torch.zeros(2))}
    with pytest.raises(SelfCheckError, match="the first idle"):
        check_run(recipe, policy, idle, [[drawn]], WINDOW, World())
