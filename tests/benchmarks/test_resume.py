"""Kills that leave nothing different, and differences that are seen."""

import json

import pytest
import torch
import yaml

import resume
from untrained import save_classifier


@pytest.fixture
def recipe(random_flux, tmp_path):
    path = resume.random_recipe(tmp_path)
    values = yaml.safe_load(path.read_text())
    options = {"model": str(random_flux), "steps": 3, "size": [32, 32], "max_text_tokens": 24, "guidance": 3.0}
    values |= {"generator": {"name": "flux", "options": options}, "prompts": values["eval_prompts"], "clip": 1e-2}
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_kills_leave_no_difference(recipe, tmp_path):
    report = resume.compare(recipe, tmp_path, kills=2, seed=1)
    assert report["differences"] == []
    assert len(report["killed_seconds_after_a_step"]) == 2


def leave(folder, *, loss, weight):
    (folder / "checkpoints/0000001").mkdir(parents=True)
    (folder / "model").mkdir()
    torch.save({"a": {"b": torch.tensor([weight])}, "n": 1}, folder / "checkpoints/0000001/state.pt")
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "time": loss, "seconds_x": loss, "loss": loss}) + "\n")
    (folder / "model/x.safetensors").write_bytes(bytes([int(weight)]))


def test_every_difference_is_named(tmp_path):
    leave(tmp_path / "one", loss=1.0, weight=1.0)
    leave(tmp_path / "other", loss=2.0, weight=3.0)
    leave(tmp_path / "same", loss=1.0, weight=1.0)
    assert resume.differences(tmp_path / "one", tmp_path / "same") == []
    assert resume.differences(tmp_path / "one", tmp_path / "other") == [
        "metrics.jsonl",
        "checkpoint: /a/b",
        "model/x.safetensors",
    ]


def test_untrained_classifiers_are_saved_whole(tmp_path):
    assert (save_classifier(tmp_path / "c", seed=0) / "model.safetensors").is_file()
