import itertools
import json
import math

import pytest
import torch

import grpo
from realgen.core.errors import RealGenError
from realgen.core.spec import Bound, RewardSpec
from realgen.core.types import Score
from realgen.train.run import Run, drive


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.trained.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_step_moves_the_adapter_and_says_what_happened(random_flux):
    trainer = grpo.build_trainer(random_flux, grpo.recipe_of())
    before = weights(trainer)
    figures = trainer.step(0)
    after = weights(trainer)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert figures["grad_norm"] > 0
    assert figures["groups_dropped"] == 0
    assert 0 <= figures["score_light"] <= 1
    assert figures["log_ratio"] == 0, "the ratio is exactly 1 before any update"
    assert figures["clipped"] == 0
    assert figures["kl"] == 0, "a fresh adapter changes nothing"
    assert trainer.step(1)["kl"] > 0


def test_the_reward_that_is_asked_for_rises(random_flux):
    recipe = grpo.recipe_of(
        steps=30, learning_rate=2e-2, group=8, clip=1.0, ratio="plain", kl_weight=0.0, max_grad_norm=10.0, eta=1.0
    )
    trainer = grpo.build_trainer(random_flux, recipe)
    before = trainer.evaluate()["eval_light"]
    for index in range(30):
        trainer.step(index)
    trainer.ema.decay = 0
    trainer.ema.num_updates = 0
    trainer.ema.update(trainer.module)
    assert trainer.evaluate()["eval_light"] > before + 0.002


@pytest.mark.parametrize(
    ("sampler", "ratio", "kl"),
    [
        *itertools.product(["flow_sde"], ["plain", "guard", "guard_batch"], ["velocity", "step", "mean"]),
        *itertools.product(["cps"], ["plain"], ["velocity", "step"]),
    ],
)
def test_every_objective_steps(random_flux, sampler, ratio, kl):
    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(sampler=sampler, ratio=ratio, kl=kl, kl_weight=0.1))
    for index in range(2):
        figures = trainer.step(index)
    assert figures["grad_norm"] > 0
    assert figures["kl"] > 0


def test_micro_batches_change_nothing_but_rounding(random_flux):
    gradients = []
    for batch in (1, 4):
        machine = grpo.recipe_of().machine.model_copy(update={"batch": batch})
        trainer = grpo.build_trainer(random_flux, grpo.recipe_of(machine=machine, kl_weight=0.1, inner_epochs=2))
        trainer.step(0)  # away from zero, where half of the gradients are
        kept = {}
        trainer.world.__class__.sum_gradients  # noqa: B018
        original = trainer.optimizer.step
        trainer.optimizer.step = lambda kept=kept, trainer=trainer: kept.update(
            {name: value.grad.clone() for name, value in trainer.trained.items()}
        )
        trainer.step(1)
        trainer.optimizer.step = original
        gradients.append(kept)
    for name, one in gradients[0].items():
        other = gradients[1][name]
        assert float((one - other).norm()) <= 1e-3 * max(float(one.norm()), 1e-6), name  # scores are of rounded pixels


def test_two_updates_share_a_rollout(random_flux):
    drawn = []

    def score(images, prompts):
        drawn.append(list(prompts))
        return grpo.light(images, prompts)

    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(num_prompts=4, updates=2, steps=4), score=score)
    trainer.step(0)
    count = len(drawn)
    figures = trainer.step(1)
    assert len(drawn) == count == 4 * 4 // 2
    assert "score_light" not in figures
    trainer.step(2)
    assert len(drawn) == 2 * count


def test_groups_that_teach_nothing_are_dropped_and_counted(random_flux):
    def score(images, prompts):
        rows = grpo.light(images, prompts)
        return [
            row | {"light": Score(0.5)} if prompt == "a cat" else row for row, prompt in zip(rows, prompts, strict=True)
        ]

    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(num_prompts=6), score=score)
    assert trainer.step(0)["groups_dropped"] == 1


def test_unscored_images_are_left_out_and_too_many_stop_the_run(random_flux):
    state = {"share": 1}

    def score(images, prompts):
        rows = grpo.light(images, prompts)
        if state["share"]:
            state["share"] -= 1
            rows[0] = rows[0] | {"light": Score(None, "no opinion")}
        return rows

    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(num_prompts=6), score=score)
    assert trainer.step(0)["unscored"] == 1
    state["share"] = 6
    with pytest.raises(RealGenError, match="6 of a step's 24 images went unscored"):
        trainer.step(1)


def test_an_infinite_score_is_unscored_not_infinite(random_flux):
    def score(images, prompts):
        rows = grpo.light(images, prompts)
        rows[0] = rows[0] | {"light": Score(math.inf)}
        return rows

    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(), score=score)
    assert math.isfinite(trainer.step(0)["grad_norm"])
    assert all(value.isfinite().all() for value in trainer.trained.values())


def test_a_violated_bound_is_the_worst_of_its_group(random_flux):
    spec = RewardSpec(weights={"light": 1.0}, constraints={"red": Bound(high=-1.0)})
    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(reward=spec))
    with pytest.raises(RealGenError, match="the reward light is the same"):  # all are outside, so all are alike
        trainer.step(0)


def test_a_gradient_that_is_not_finite_is_skipped_and_stops_past_a_limit(random_flux, monkeypatch):
    trainer = grpo.build_trainer(random_flux, grpo.recipe_of(max_skipped=1))
    trainer.step(0)
    before = weights(trainer)

    def spoil(parameters):
        for parameter in parameters:
            parameter.grad.fill_(torch.nan)

    monkeypatch.setattr(type(trainer.world), "sum_gradients", lambda self, parameters: spoil(parameters))
    assert trainer.step(1)["skipped"] == 1
    assert same(before, weights(trainer))
    with pytest.raises(RealGenError, match="2 optimiser steps in a row"):
        trainer.step(2)
    assert same(before, weights(trainer))


def metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time" and "seconds" not in k} for line in lines]


def test_resume_continues_bit_for_bit(random_flux, tmp_path):
    recipe = grpo.recipe_of(num_prompts=2, updates=2, steps=6)

    def run(folder, *, stop=None):
        trainer = grpo.build_trainer(random_flux, recipe)
        target = Run.open(folder) if (folder / "recipe.yaml").exists() else Run.create(folder, {})
        how = {"log_every": 1, "evaluate_every": 2, "save_minutes": 1e-9, "period": 2, "best": "eval_total"}
        taken = drive(target, trainer, steps=6, **how)
        for step, _ in taken:
            if step == stop:
                taken.close()
                return trainer
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", stop=3)
    run(tmp_path / "cut", stop=5)
    cut = run(tmp_path / "cut")
    assert same(weights(whole), weights(cut))
    assert same(whole.ema.shadow, cut.ema.shadow)
    for held, other in zip(whole.optimizer.state.values(), cut.optimizer.state.values(), strict=True):
        assert same(held, other)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_scoring_beside_gives_the_same_run(random_flux):
    figures = []
    for beside in (False, True):
        trainer = grpo.build_trainer(random_flux, grpo.recipe_of(is_scoring_beside=beside))
        figures.append({k: v for k, v in trainer.step(0).items() if "seconds" not in k})
    assert figures[0] == figures[1]


def test_full_training_keeps_a_frozen_reference(random_flux):
    from realgen.train.reference import frozen_copy

    recipe = grpo.recipe_of(kl_weight=1.0)
    generator = grpo.load_generator(random_flux, recipe)
    module = generator.backbone.module
    module.requires_grad_(True)
    reference = frozen_copy(module)
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    with torch.no_grad():
        for value in module.parameters():
            value.add_(1)
    with reference():
        assert same(before, dict(module.named_parameters()))
    assert all(torch.equal(value, before[name] + 1) for name, value in module.named_parameters())
