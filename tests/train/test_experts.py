"""Two experts by noise level become one flow: who teaches what, by how much, exact resume, an exported folder."""

import copy

import pytest
import torch
from diffusers import FluxPipeline

from realgen.train.experts import ExpertTrainer
from train.test_adversarial import backbone_of, moved, trajectories_of, weights_of

SIZE = (32, 32)


def trainer_of(folder, *, shifted=0.0, trajectory_steps=(4,), **options):
    """`late` answers as the learner does at first, plus `shifted`."""
    backbone, early, late = (backbone_of(folder, trains=trains) for trains in (True, False, False))
    with torch.no_grad():
        late.module.proj_out.bias += shifted
    knobs = {
        "boundary": 0.78,
        "steps": 40,
        "batch": 4,
        "learning_rate": 3e-3,
        "ema_decay": 0.5,
        "size": SIZE,
        "preview_prompts": ("a rose", "a cat"),
        **options,
    }
    trajectories = trajectories_of(backbone, early.encode, steps=trajectory_steps)
    trainer = ExpertTrainer(
        backbone, early, late, early.encode, trajectories, backbone.pipeline.save_pretrained, **knobs
    )
    trainer.dtype = torch.float32
    return trainer


def answers(trainer, flow, sigma):
    x = trainer.backbone.noise([5, 6], SIZE)
    with torch.no_grad():
        condition = trainer.encode(["a rose", "a cat"])
        return flow.velocity(x, torch.full((2,), sigma), condition, guidance=3.0, size=SIZE)


def test_whoever_agrees_with_both_has_nothing_to_learn(random_flux):
    metrics = trainer_of(random_flux).step(0)
    assert metrics.keys() == {"early_loss", "late_loss", "grad_norm"}
    assert all(value.item() == pytest.approx(0, abs=1e-8) for value in metrics.values())


def test_the_late_loss_is_the_squared_distance(random_flux):
    trainer = trainer_of(random_flux, shifted=0.5)
    early, late = (weights_of(one.module) for one in (trainer.early, trainer.late))
    metrics = trainer.step(0)
    assert metrics["late_loss"].item() == pytest.approx(0.25, abs=1e-4)
    assert metrics["early_loss"].item() == pytest.approx(0, abs=1e-8)
    assert moved(trainer.module, early)
    assert not moved(trainer.early.module, early)
    assert not moved(trainer.late.module, late)


@pytest.mark.parametrize(
    ("boundary", "taught"), [(0.01, {"early"}), (0.78, {"early", "late"}), (0.9999, {"early", "late"})]
)
def test_the_boundary_says_who_teaches(random_flux, boundary, taught):
    trainer = trainer_of(random_flux, boundary=boundary)
    parts = [part for index in range(3) for part in trainer._parts(trainer.trajectories.at(index))]
    assert {name for name, _, _ in parts} == taught
    assert sum(len(part.x) for _, _, part in parts) == 12
    for name, expert, part in parts:
        assert expert is (trainer.early if name == "early" else trainer.late)
        assert ((part.sigma > boundary) == (name == "early")).all()


def test_it_learns_the_late_answers_and_keeps_the_early_ones(random_flux):
    """Of one bias alone that cannot be had: levels are told apart by the modulation that is learned."""
    trainer = trainer_of(random_flux, shifted=0.5, ema_decay=0.0, steps=120)
    late = (answers(trainer, trainer.late, 0.3) - answers(trainer, trainer.backbone, 0.3)).square().mean()
    for index in range(90):
        trainer.step(index)
    after = (answers(trainer, trainer.late, 0.3) - answers(trainer, trainer.backbone, 0.3)).square().mean()
    early = (answers(trainer, trainer.early, 1.0) - answers(trainer, trainer.backbone, 1.0)).square().mean()
    assert late.item() == pytest.approx(0.25, abs=1e-4)
    assert after < 0.05
    assert early < 0.05


def test_a_resume_in_mid_period_is_exact(random_flux):
    whole, cut = (trainer_of(random_flux, shifted=0.5) for _ in range(2))
    for index in range(5):
        whole.step(index)
        if index < 4:
            cut.step(index)
    fresh = trainer_of(random_flux, shifted=0.5)
    fresh.load_state_dict(copy.deepcopy(cut.state_dict()))
    fresh.step(4)
    ours, theirs = fresh.module.state_dict(), whole.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert all(torch.equal(fresh.ema.shadow[name], value) for name, value in whole.ema.shadow.items())


def test_previews_and_export_are_the_averages(random_flux, tmp_path):
    trainer = trainer_of(random_flux, shifted=0.5)
    for index in range(3):
        trainer.step(index)
    assert [one.size for one in trainer.preview()] == [SIZE, SIZE]
    trainer.export(tmp_path)
    opened, name = FluxPipeline.from_pretrained(tmp_path).transformer.state_dict(), "proj_out.weight"
    torch.testing.assert_close(opened[name], trainer.ema.shadow[name])
    assert not torch.equal(opened[name], trainer.module.state_dict()[name])
    assert trainer.evaluate() == {}
