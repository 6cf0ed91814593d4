"""The yardstick: it learns, sees only its categories, resumes exactly, and its augmentation keeps the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.train.classifier import SIDE, ClassifierTrainer, augment, build_classifier, prepare
from realgen.train.photographs import Photograph

COLOURS = {"plants": (30, 160, 40), "people": (220, 170, 150), "vehicles": (20, 20, 200)}


def photographs(count=8):
    rng = np.random.default_rng(0)
    return [
        Photograph("x", np.clip(rng.normal(colour, 20, (24, 24, 3)), 0, 255).astype(np.uint8), category, "", (), "")
        for category, colour in COLOURS.items()
        for _ in range(count)
    ]


def trainer_of(steps=24):
    torch.manual_seed(0)
    knobs = {"steps": steps, "batch": 8, "learning_rate": 2e-3, "ema_decay": 0.5, "seed": 0}
    return ClassifierTrainer(build_classifier(["people", "plants"]), photographs(), photographs(4), **knobs)


def test_it_learns_its_categories_and_leaves_out_others(tmp_path):
    trainer = trainer_of()
    assert len(trainer.labels) == 16
    losses = [trainer.step(index)["loss"] for index in range(24)]
    assert np.mean(losses[-6:]) < np.mean(losses[:6])
    assert trainer.evaluate()["accuracy"] > 0.8
    trainer.export(tmp_path)
    from transformers import ResNetForImageClassification

    assert ResNetForImageClassification.from_pretrained(tmp_path).config.id2label == {0: "people", 1: "plants"}


def test_a_resume_is_exact(tmp_path):
    whole, cut, resumed = trainer_of(), trainer_of(), trainer_of()
    for index in range(4):
        last = whole.step(index)
    for index in range(2):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(2, 4):
        again = resumed.step(index)
    assert again == last


def test_augmentation_moves_the_picture_and_keeps_its_range():
    pixels = prepare([Image.fromarray(photographs()[0].pixels)] * 4)
    moved = augment(pixels, np.random.default_rng(0))
    assert moved.shape == pixels.shape == (4, 3, SIDE, SIDE)
    assert moved.abs().max() <= 1
    assert not torch.equal(moved[0], moved[1])
    assert moved.mean().item() == pytest.approx(pixels.mean().item(), abs=0.4)
    assert torch.equal(moved, augment(pixels, np.random.default_rng(0)))
