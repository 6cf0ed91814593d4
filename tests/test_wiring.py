"""Recipes to live objects: cards under options, and recipes that cannot be."""

import json

import pytest
import torch
from PIL import Image

from realgen import wiring
from realgen.core import config
from realgen.core.config import Plug
from realgen.core.errors import ConfigError, InputError, ModelError
from realgen.train.run import Run


@pytest.mark.parametrize("name", config.shipped("recipes"))
@pytest.mark.parametrize("profile", [None, *config.shipped("profiles")])
def test_every_recipe_checks_with_every_profile(name, profile):
    wiring.check(config.load(name, profile=profile))


def test_the_number_of_recipes_and_profiles_is_the_number_on_disk():
    from pathlib import Path

    root = Path(config.__file__).parents[1]
    assert len(config.shipped("recipes")) == len(list((root / "recipes").glob("*.yaml"))) >= 6
    assert len(config.shipped("profiles")) == len(list((root / "profiles").glob("*.yaml"))) >= 3


def test_card_options_lie_between_the_plugins_and_the_recipes():
    options = wiring.configure("generators", Plug(name="flux", card="tiny", options={"steps": 5}))
    assert options.steps == 5
    assert options.size == (128, 128)
    assert options.max_text_tokens == 64
    assert options.lora_scale == 1.0


def test_a_card_of_another_plugin_is_refused():
    with pytest.raises(ConfigError, match="is for generators/flux"):
        wiring.configure("generators", Plug(name="pretrained", card="tiny"))


def test_an_unknown_card_is_refused():
    with pytest.raises(ModelError, match="no card"):
        wiring.configure("generators", Plug(name="flux", card="flux9"))


def test_a_generator_from_a_folder(random_flux):
    recipe = config.load(
        "tiny",
        overrides=[
            "generator.card=null",
            f"generator.options={{model: '{random_flux}', steps: 1, size: [32, 32], max_text_tokens: 32}}",
        ],
    )
    generator = wiring.build_generator(recipe)
    assert generator.max_text_tokens == 32
    assert wiring.build_optimizer(recipe) is None


def test_training_without_data_says_what_to_give(tmp_path):
    with pytest.raises(ConfigError, match="no photographs"):
        list(wiring.train(config.load("autoencoder-tiny"), tmp_path / "run", resume=False))


def test_resuming_keeps_the_recipe(tmp_path):
    from realgen.train.run import Run

    Run.create(tmp_path, config.load("autoencoder-tiny").model_dump(mode="json"))
    assert wiring.recipe_of(tmp_path, ["machine.threads=1"]).machine.threads == 1
    with pytest.raises(ConfigError, match="keeps its recipe"):
        wiring.recipe_of(tmp_path, ["steps=3"])
    with pytest.raises(InputError, match="holds no run"):
        wiring.recipe_of(tmp_path / "other", [])


# ---- trainings ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A folder of six small photographs of two categories in two splits."""
    folder = tmp_path_factory.mktemp("photographs")
    rows = []
    for index in range(12):
        category, colour = (("people", (200, 90, 60)), ("plants", (30, 160, 40)))[index % 2]
        file, split = f"{index}.png", "train" if index < 6 else "test"
        Image.new("RGB", (32, 32), (colour[0] + index, colour[1], colour[2])).save(folder / file)
        rows.append({"file": file, "split": split, "category": category, "cls": "rose", "captions": ["x"]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


CLASSIFIER = ["categories=[people, plants]", "steps=2", "batch=2", "evaluate_every=0"]


@pytest.fixture
def small_network(monkeypatch):
    """A network of four narrow layers in place of the yardstick's."""
    from transformers import ResNetConfig, ResNetForImageClassification

    from realgen.train import classifier

    def build(categories):
        labels = dict(enumerate(categories))
        numbers = {category: index for index, category in labels.items()}
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}
        return ResNetForImageClassification(ResNetConfig(**sizes, id2label=labels, label2id=numbers))

    monkeypatch.setattr(classifier, "build_classifier", build)


def classifier_recipe(folder, *overrides):
    return config.load("categories", overrides=[f"data={folder}", *CLASSIFIER, *overrides])


def test_a_classifier_s_trainer_from_its_recipe(small_network, photographs, tmp_path):
    recipe = classifier_recipe(photographs, "learning_rate=0.5", "ema_decay=0.25", "seed=5")
    trainer = wiring.build_trainer(recipe, tmp_path)
    assert trainer.model.config.id2label == {0: "people", 1: "plants"}
    assert trainer.labels.tolist() == trainer.held_out[1].tolist() == [0, 1] * 3
    assert (trainer.steps, trainer.batch, trainer.learning_rate, trainer.seed) == (2, 2, 0.5, 5)
    assert trainer.ema.decay == 0.25


def test_a_trainer_s_first_weights_follow_from_the_recipe_s_seed(small_network, photographs, tmp_path):
    first, same, other = (
        wiring.build_trainer(classifier_recipe(photographs, f"seed={seed}"), tmp_path).model.classifier[1].weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_training_runs_and_a_cut_one_is_resumed_to_the_same_weights(small_network, photographs, tmp_path):
    recipe = classifier_recipe(photographs)
    told = list(wiring.train(recipe, tmp_path / "whole", resume=False))
    assert [step for step, _ in told] == [2]
    weights = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="already holds a run"):
        list(wiring.train(recipe, tmp_path / "whole", resume=False))

    run = Run.create(tmp_path / "cut", recipe.model_dump(mode="json"))
    trainer = wiring.build_trainer(recipe, run.folder)
    trainer.step(0)
    run.save(1, trainer.state_dict())
    again = list(wiring.train(wiring.recipe_of(run.folder, []), run.folder, resume=True))
    assert [step for step, _ in again] == [2]
    assert (run.folder / "model" / "model.safetensors").read_bytes() == weights


def test_resuming_where_nothing_was_started_is_refused(photographs, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        list(wiring.train(classifier_recipe(photographs), tmp_path / "none", resume=True))


def flow_recipe(model, folder, *overrides):
    small = ["size=[32, 32]", "max_text_tokens=32", "steps=1", "batch=2", "evaluate_every=0", "snapshots=[]"]
    float32 = "machine={device: cpu, dtype: float32}"
    return config.load("flow-tiny", overrides=[f"model='{model}'", f"data='{folder}'", float32, *small, *overrides])


def test_a_flow_s_trainer_from_its_recipe(random_flux, photographs, tmp_path):
    trainer = wiring.build_trainer(flow_recipe(random_flux, photographs), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latents-test.pt", "latents-train.pt"]
    assert (len(trainer.data.photographs), len(trainer.held_out.photographs)) == (6, 6)
    assert set(trainer.optimizers) == {"flow", "texts"}
    assert trainer.teacher is None
    assert all(parameter.requires_grad for parameter in trainer.backbone.module.parameters())
    assert not any(parameter.requires_grad for parameter in trainer.backbone.pipeline.vae.parameters())


def test_distilling_has_a_frozen_teacher_of_its_own(random_flux, photographs, tmp_path):
    recipe = flow_recipe(random_flux, photographs, "distil_guidance=[1, 5]", "text_learning_rate=0")
    trainer = wiring.build_trainer(recipe, tmp_path)
    assert trainer.distil_guidance == (1.0, 5.0)
    assert set(trainer.optimizers) == {"flow"}
    assert trainer.teacher.module is not trainer.backbone.module
    trained = {id(parameter) for parameter in trainer.module.parameters()}
    assert not any(id(parameter) in trained for parameter in trainer.teacher.module.parameters())


def test_a_flow_training_exports_a_folder_that_a_generator_opens(random_flux, photographs, tmp_path):
    list(wiring.train(flow_recipe(random_flux, photographs), tmp_path / "run", resume=False))
    options = (
        f"generator.options={{model: '{tmp_path / 'run' / 'model'}', steps: 1, size: [32, 32], max_text_tokens: 32}}"
    )
    recipe = config.load("tiny", overrides=["generator.card=null", options])
    drawn = [item for item in wiring.build_generator(recipe)(["a"], seeds=[1]) if isinstance(item, Image.Image)]
    assert [image.size for image in drawn] == [(32, 32)]


def test_a_lora_training_exports_what_flux_loads(random_flux, photographs, tmp_path):
    recipe = flow_recipe(random_flux, photographs, "lora_rank=2", "text_learning_rate=0", "preview_prompts=[]")
    list(wiring.train(recipe, tmp_path / "run", resume=False))
    assert len(list((tmp_path / "run" / "model").iterdir())) == 1
    options = f"generator.options={{model: '{random_flux}', lora: '{tmp_path / 'run' / 'model'}', size: [32, 32]}}"
    generator = wiring.build_generator(config.load("tiny", overrides=["generator.card=null", options]))
    assert generator.backbone.pipeline.get_list_adapters() == {"transformer": ["lora"]}


def test_a_start_that_fails_leaves_the_folder_free(tmp_path):
    with pytest.raises(ConfigError, match="no photographs"):
        list(wiring.train(config.load("autoencoder-tiny"), tmp_path / "run", resume=False))
    assert not (tmp_path / "run" / "recipe.yaml").exists()
