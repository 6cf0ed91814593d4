"""A distilled flow learns from photographs at every guidance, and keeps what it is not taught."""

import pytest
import torch

from realgen.formulas.flow import interpolate
from realgen.train.flow_data import REWORDED, Batch
from realgen.train.own_guidance import PLAIN, OwnGuidance
from train.test_flow_sft import SIZE, backbone_of, data, trainer_of  # noqa: F401


def batch_of(sigmas, sources):
    torch.manual_seed(0)
    count = len(sigmas)
    clean, noise, sigma = torch.randn(count, 4, 16), torch.randn(count, 4, 16), torch.tensor(sigmas)
    captions = [f"text {i}" for i in range(count)]
    return Batch(captions, interpolate(clean, noise, sigma), sigma, noise - clean, sources=sources)


def lesson_of(own, random_flux, batch):
    flow, before = backbone_of(random_flux), backbone_of(random_flux, trains=False)
    for value in before.module.parameters():
        value.mul_(0.9)
    lesson = own.lesson(flow, before, batch, chance=torch.Generator().manual_seed(4), size=SIZE)
    return flow, before, lesson


@torch.no_grad()
def test_photographs_are_led_by_the_flows_own_guidance(random_flux):
    batch = batch_of([0.7, 0.9, 0.8, 0.95], ["people"] * 4)
    flow, _, lesson = lesson_of(OwnGuidance((2.0, 5.0)), random_flux, batch)
    text, nothing = (
        flow.velocity(batch.x, batch.sigma, flow.encode(texts), guidance=1.0, size=SIZE)
        for texts in (batch.captions, [""] * 4)
    )
    expected = batch.target + (lesson.guidance - 1).view(-1, 1, 1) * (text - nothing)
    torch.testing.assert_close(lesson.target, expected, atol=1e-5, rtol=1e-4)
    assert (text - nothing).abs().max() > 1e-3
    assert ((lesson.guidance == 1) | ((lesson.guidance >= 2) & (lesson.guidance <= 5))).all()
    assert lesson.weight.tolist() == [1] * 4
    assert not lesson.target.requires_grad


@torch.no_grad()
def test_details_and_what_is_not_taught_are_held(random_flux):
    batch = batch_of([0.3, 0.9, 0.9, 0.59], ["people", "plants", "none", "people"])
    own = OwnGuidance((1.0, 5.0), least_sigma=0.6, sources=("people",), held_weight=3.0)
    _, before, lesson = lesson_of(own, random_flux, batch)
    held = before.velocity(batch.x, batch.sigma, before.encode(batch.captions), guidance=lesson.guidance, size=SIZE)
    torch.testing.assert_close(lesson.target, held, atol=1e-5, rtol=1e-4)
    assert lesson.weight.tolist() == [3] * 4
    assert (lesson.guidance > 1).all()


@torch.no_grad()
def test_what_is_held_reads_the_captions_of_before(random_flux):
    batch = batch_of([0.3, 0.9], ["people"] * 2)._replace(taught=["old words", "other words"])
    _, before, lesson = lesson_of(OwnGuidance((1.0, 5.0), sources=("plants",)), random_flux, batch)
    held = before.velocity(batch.x, batch.sigma, before.encode(batch.taught), guidance=lesson.guidance, size=SIZE)
    torch.testing.assert_close(lesson.target, held, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sources", [(), ("people",)])
def test_what_is_worded_anew_is_held_everywhere(sources, random_flux):
    batch = batch_of([0.9, 0.9], ["people", REWORDED])
    _, _, lesson = lesson_of(OwnGuidance((1.0, 5.0), sources=sources), random_flux, batch)
    assert lesson.weight.tolist() == [1, 4]


@torch.no_grad()
def test_a_share_is_taught_without_guidance(random_flux):
    batch = batch_of([0.8] * 200, ["people"] * 200)
    _, _, lesson = lesson_of(OwnGuidance((2.0, 5.0)), random_flux, batch)
    plain = lesson.guidance == 1
    assert plain.float().mean().item() == pytest.approx(PLAIN, abs=0.1)
    torch.testing.assert_close(lesson.target[plain], batch.target[plain], atol=1e-6, rtol=0)


@torch.no_grad()
def test_guidance_is_told_and_not_felt_above_a_level(random_flux):
    batch = batch_of([0.7, 0.95, 0.7, 0.95], ["people", "people", "plants", "plants"])
    own = OwnGuidance((2.0, 5.0), sources=("people",), guided_below=0.9)
    _, before, lesson = lesson_of(own, random_flux, batch)
    _, _, everywhere = lesson_of(OwnGuidance((2.0, 5.0), sources=("people",)), random_flux, batch)
    torch.testing.assert_close(lesson.guidance, everywhere.guidance)
    torch.testing.assert_close(lesson.target[::2], everywhere.target[::2])
    torch.testing.assert_close(lesson.target[1], batch.target[1], atol=1e-6, rtol=0)
    plain = before.velocity(batch.x, batch.sigma, before.encode(batch.captions), guidance=1.0, size=SIZE)
    torch.testing.assert_close(lesson.target[3], plain[3], atol=1e-5, rtol=1e-4)
    assert lesson.guidance[3] > 1
    assert not torch.equal(lesson.target[3], everywhere.target[3])


def test_training_moves_the_flow_and_not_who_holds_it(random_flux, data):  # noqa: F811
    before = backbone_of(random_flux, trains=False)
    held = [value.clone() for value in before.module.parameters()]
    trainer = trainer_of(
        random_flux, data, teacher=before, own_guidance=OwnGuidance((1.0, 5.0)), text_learning_rate=0.0
    )
    losses = [float(trainer.step(index)["loss"]) for index in range(40)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert all(torch.equal(a, b) for a, b in zip(held, before.module.parameters(), strict=True))
    assert trainer.evaluate()["held_out_loss"] > 0


def test_held_alone_it_answers_as_before(random_flux, data):  # noqa: F811
    own = OwnGuidance((1.0, 5.0), sources=("nothing",))
    trainer = trainer_of(
        random_flux, data, teacher=backbone_of(random_flux, trains=False), own_guidance=own, text_learning_rate=0.0
    )
    assert float(trainer.step(0)["loss"]) < 1e-8


@torch.no_grad()
def test_what_was_made_longer_is_held_and_the_rest_is_taught(random_flux):
    batch = batch_of([0.7, 0.9, 0.8], ["people"] * 3).reworded(["text 0", "text 1, at dawn", "text 2"])
    assert batch.sources == ["people", REWORDED, "people"]
    _, before, lesson = lesson_of(OwnGuidance((1.0, 5.0)), random_flux, batch)
    short = before.encode([f"text {i}" for i in range(3)])
    held = before.velocity(batch.x, batch.sigma, short, guidance=lesson.guidance, size=SIZE)
    torch.testing.assert_close(lesson.target[1], held[1], atol=1e-5, rtol=1e-4)
    assert lesson.weight.tolist() == [1, 4, 1]


def test_a_text_worded_twice_is_taught_by_the_first():
    batch = batch_of([0.7], ["people"])._replace(taught=["older words"]).reworded(["text 0, at dawn"])
    assert batch.captions == ["text 0, at dawn"]
    assert batch.taught == ["older words"]
