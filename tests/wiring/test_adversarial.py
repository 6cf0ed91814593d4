"""Adversarial post-training from its recipe: through the run folder, as LoRA, and what cannot be read."""

import pytest
import torch
from diffusers import FluxPipeline

from realgen.core import config
from realgen.core.errors import ConfigError, ModelError
from realgen.wiring import training
from wiring.cut import assert_resumed_as_uncut


def recipe_of(model, data, eye, *overrides):
    small = ["steps=3", "batch=4", "period=2", "warmup=1", "trajectory_steps=[4]", "size=[32, 32]"]
    both = ["pictures.lattice_weight=0", "latents={blocks: [0, 1], width: 8}"]
    machine = ["max_text_tokens=32", "machine={device: cpu, dtype: float32}", "preview_prompts=[a, b]"]
    given = [f"model='{model}'", f"data='{data}'", f"eye='{eye}'"]
    return config.load("adversarial-tiny", overrides=[*given, *small, *both, *machine, *overrides])


def test_a_run_writes_what_diffusers_opens_and_its_pictures(random_flux, data, eye, tmp_path):
    large = ["size=[128, 128]", "pictures.lattice_weight=1"]
    recipe = recipe_of(random_flux, data, eye, "evaluate_every=2", "export_dtype=float32", "snapshots=[]", *large)
    logged = list(training.train(recipe, tmp_path / "run", resume=False))
    assert [step for step, _ in logged] == [3]
    wanted = {"pictures_discriminator", "latents_discriminator", "latents_adversarial", "anchor", "pictures_lattice"}
    assert wanted <= logged[-1][1].keys()
    before, after = (
        FluxPipeline.from_pretrained(folder).transformer.state_dict()
        for folder in (random_flux, tmp_path / "run/model")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert list((tmp_path / "run").glob("samples/*.png"))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("unrolled=2",),
        ("unrolled=3", "kept_steps=1", "pictures=null", "enlarged={side: 64, older: 2}"),
        ("finished_from=[1, 2]", "pictures=null", "latents=null", "enlarged={side: 64, older: 2}"),
    ],
)
def test_a_run_that_was_cut_ends_byte_for_byte_as_the_uncut_one(random_flux, data, eye, tmp_path, options):
    recipe = recipe_of(random_flux, data, eye, "evaluate_every=0", "snapshots=[]", *options)
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


def test_pictures_too_small_for_a_lattice(random_flux, data, eye, tmp_path):
    with pytest.raises(ConfigError, match="tokens a side"):
        training.build_trainer(recipe_of(random_flux, data, eye, "pictures.lattice_weight=1"), tmp_path)


def test_blocks_that_are_not_there(random_flux, data, eye, tmp_path):
    with pytest.raises(ConfigError, match=r"latents.blocks: \[0, 9\], where the flow has \d blocks"):
        training.build_trainer(recipe_of(random_flux, data, eye, "latents.blocks=[0, 9]"), tmp_path)


@pytest.mark.parametrize(("gone", "left"), [("pictures", "latents"), ("latents", "pictures")])
def test_one_opponent_may_be_left_out(random_flux, data, eye, tmp_path, gone, left):
    trainer = training.build_trainer(recipe_of(random_flux, data, eye, f"{gone}=null", "warmup=0"), tmp_path)
    assert {f"{left}_adversarial", "anchor"} <= trainer.step(0).keys()
    assert trainer.opponents.keys() == {left}


@pytest.mark.parametrize("options", [("kept_steps=1",), ("unrolled=2", "kept_steps=2")])
def test_something_has_to_be_learned_before_what_is_kept(random_flux, data, eye, options):
    with pytest.raises(ConfigError, match=r"kept_steps=\d: give more in unrolled"):
        recipe_of(random_flux, data, eye, *options)


@pytest.mark.parametrize("options", [("unrolled=5",), ("unrolled=2", "trajectory_steps=[4, 8]")])
def test_more_steps_than_are_drawn_can_not_be_unrolled(random_flux, data, eye, options):
    with pytest.raises(ConfigError, match=r"unrolled=\d of \[[\d, ]+\] steps"):
        recipe_of(random_flux, data, eye, *options)


@pytest.mark.parametrize("options", [("finished_from=[4]",), ("finished_from=[0]",), ("trajectory_steps=[4, 8]",)])
def test_what_is_finished_was_begun_and_has_steps_left(random_flux, data, eye, options):
    with pytest.raises(ConfigError, match=r"finished_from=\[\d\] of \[[\d, ]+\] steps: give trajectory_steps=\[N\]"):
        recipe_of(random_flux, data, eye, "finished_from=[2]", *options)


@pytest.mark.parametrize("option", ["unrolled=2", "batch=1"])
def test_drawings_that_were_begun_are_not_whole_and_have_two_halves(random_flux, data, eye, option):
    with pytest.raises(ConfigError, match="finished_from takes drawings that are begun already"):
        recipe_of(random_flux, data, eye, "finished_from=[2]", option)


@pytest.mark.parametrize(("weight", "held"), [(2, True), (0, False)])
def test_drawings_that_were_begun_from_photographs_are_held_against_them(
    random_flux, data, eye, tmp_path, weight, held
):
    options = ["finished_from=[2]", f"likeness_weight={weight}", "warmup=0", "enlarged={side: 64}"]
    trainer = training.build_trainer(recipe_of(random_flux, data, eye, *options), tmp_path)
    assert ("unlike" in trainer.step(0)) is held


def test_nobody_to_learn_against(random_flux, data, eye):
    with pytest.raises(ConfigError, match="nobody to learn against"):
        recipe_of(random_flux, data, eye, "pictures=null", "latents=null")


def test_a_lora_has_no_weights_before(random_flux, data, eye):
    with pytest.raises(ConfigError, match="lora_scale"):
        recipe_of(random_flux, data, eye, "lora_rank=2")


def test_captions_are_made_longer_for_both_sides(random_flux, data, eye, tmp_path):
    (tmp_path / "long.txt").write_text("a rose, seen from above, in the soft light of a late morning\n")
    options = [f"elaborations=['{tmp_path / 'long.txt'}']", "elaborated=1", "warmup=0"]
    trainer = training.build_trainer(recipe_of(random_flux, data, eye, *options), tmp_path)
    plain = [trainer.data.batch(index, count=count, caption_dropout=0.0).captions for index, count in ((0, 6), (1, 4))]
    longer = [trainer.elaborate(captions, index) for index, captions in enumerate(plain)]
    assert [trainer.answers.trajectories.texts(0, 6), trainer._photographs(0)[1]] == longer
    assert longer != plain
