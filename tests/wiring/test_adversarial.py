"""Adversarial post-training from its recipe: through the run folder, as LoRA, and what cannot be read."""

import pytest
import torch
from diffusers import FluxPipeline

from realgen.core import config
from realgen.core.errors import ConfigError, ModelError
from realgen.wiring import training
from wiring.cut import assert_resumed_as_uncut


def recipe_of(model, data, eye, *overrides):
    small = ["steps=3", "batch=4", "period=2", "warmup=1", "trajectory_steps=[4]", "size=[32, 32]", "lattice_weight=0"]
    machine = ["max_text_tokens=32", "machine={device: cpu, dtype: float32}", "preview_prompts=[a, b]"]
    given = [f"model='{model}'", f"data='{data}'", f"eye='{eye}'"]
    return config.load("adversarial-tiny", overrides=[*given, *small, *machine, *overrides])


def test_a_run_writes_what_diffusers_opens_and_its_pictures(random_flux, data, eye, tmp_path):
    large = ["size=[128, 128]", "lattice_weight=1"]
    recipe = recipe_of(random_flux, data, eye, "evaluate_every=2", "export_dtype=float32", "snapshots=[]", *large)
    logged = list(training.train(recipe, tmp_path / "run", resume=False))
    assert [step for step, _ in logged] == [3]
    assert {"discriminator", "adversarial", "anchor", "lattice"} <= logged[-1][1].keys()
    before, after = (
        FluxPipeline.from_pretrained(folder).transformer.state_dict()
        for folder in (random_flux, tmp_path / "run/model")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert list((tmp_path / "run").glob("samples/*.png"))


def test_a_run_that_was_cut_ends_byte_for_byte_as_the_uncut_one(random_flux, data, eye, tmp_path):
    recipe = recipe_of(random_flux, data, eye, "evaluate_every=0", "snapshots=[]")
    list(training.train(recipe, tmp_path / "whole", resume=False))
    assert_resumed_as_uncut(recipe, tmp_path / "cut", tmp_path / "whole")


def test_as_lora(random_flux, data, eye, tmp_path):
    trainer = training.build_trainer(
        recipe_of(random_flux, data, eye, "lora_rank=2", "trained_share=1", "warmup=0"), tmp_path
    )
    learned = [name for name, one in trainer.module.named_parameters() if one.requires_grad]
    assert learned
    assert all("lora" in name for name in learned)
    trainer.step(0)
    trainer.export(tmp_path / "lora")
    assert (tmp_path / "lora/pytorch_lora_weights.safetensors").is_file()


def test_an_eye_that_is_none_is_said_in_one_line(random_flux, data, tmp_path):
    with pytest.raises(ModelError, match="no EfficientNet-Lite"):
        training.build_trainer(recipe_of(random_flux, data, tmp_path / "none.pth"), tmp_path)


def test_a_lora_has_no_weights_before(random_flux, data, eye):
    with pytest.raises(ConfigError, match="lora_scale"):
        recipe_of(random_flux, data, eye, "lora_rank=2")


def test_captions_are_made_longer_for_both_sides(random_flux, data, eye, tmp_path):
    (tmp_path / "long.txt").write_text("a rose, seen from above, in the soft light of a late morning\n")
    options = [f"elaborations=['{tmp_path / 'long.txt'}']", "elaborated=1", "warmup=0"]
    trainer = training.build_trainer(recipe_of(random_flux, data, eye, *options), tmp_path)
    plain = [trainer.data.batch(index, count=count, caption_dropout=0.0).captions for index, count in ((0, 6), (1, 4))]
    longer = [trainer.elaborate(captions, index) for index, captions in enumerate(plain)]
    assert [trainer.trajectories.texts(0, 6), trainer._photographs(0)[1]] == longer
    assert longer != plain
