"""Two experts from a recipe: through the run folder, cut and resumed, as LoRA."""

import pytest
import torch
from diffusers import FluxPipeline

from realgen.core import config
from realgen.core.errors import ConfigError
from realgen.wiring import training
from wiring.cut import assert_resumed_as_uncut


def recipe_of(model, data, *overrides):
    small = ["steps=3", "batch=4", "period=2", "trajectory_steps=[4]", "size=[32, 32]", "evaluate_every=0"]
    machine = ["max_text_tokens=32", "machine={device: cpu, dtype: float32}", "preview_prompts=[a, b]"]
    given = [f"model='{model}'", f"late='{model}'", f"data='{data}'"]
    return config.load("experts-tiny", overrides=[*given, *small, *machine, *overrides])


@pytest.fixture
def late(random_flux, tmp_path):
    pipeline = FluxPipeline.from_pretrained(random_flux)
    with torch.no_grad():
        pipeline.transformer.proj_out.bias += 0.5
    pipeline.save_pretrained(tmp_path / "late")
    return tmp_path / "late"


def test_a_run_that_was_cut_ends_byte_for_byte_as_the_uncut_one(random_flux, late, data, tmp_path):
    recipe = recipe_of(random_flux, data, f"late='{late}'")
    logged = list(training.train(recipe, tmp_path / "whole", resume=False))
    assert {"early_loss", "late_loss", "grad_norm"} <= logged[-1][1].keys()
    assert_resumed_as_uncut(recipe, tmp_path / "cut", tmp_path / "whole")
    before = FluxPipeline.from_pretrained(random_flux).transformer.state_dict()["proj_out.bias"]
    after = FluxPipeline.from_pretrained(tmp_path / "whole/model").transformer.state_dict()["proj_out.bias"]
    assert not torch.equal(before, after.to(before))


def test_as_lora(random_flux, late, data, tmp_path):
    trainer = training.build_trainer(recipe_of(random_flux, data, f"late='{late}'", "lora_rank=2"), tmp_path)
    learned = [name for name, one in trainer.module.named_parameters() if one.requires_grad]
    assert learned
    assert all("lora" in name for name in learned)
    trainer.step(0)
    trainer.export(tmp_path / "lora")
    assert (tmp_path / "lora/pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("boundary", [0, 1, 1.5])
def test_a_boundary_lies_between_noise_and_picture(random_flux, data, boundary):
    with pytest.raises(ConfigError, match="boundary"):
        recipe_of(random_flux, data, f"boundary={boundary}")


def test_some_captions_are_made_longer(random_flux, data, tmp_path):
    (tmp_path / "long.txt").write_text("a rose, seen from above, in the soft light of a late morning\n")
    recipe = recipe_of(random_flux, data, f"elaborations=['{tmp_path / 'long.txt'}']", "elaborated=1")
    plain, longer = (
        training.build_trainer(one, tmp_path).trajectories.texts(0, 6)
        for one in (recipe.model_copy(update={"elaborations": ()}), recipe)
    )
    assert plain != longer
    assert all(long.startswith(short) for short, long in zip(plain, longer, strict=True))
