"""Recipes to live objects: cards under options, and recipes that cannot be."""

import pytest

from realgen import wiring
from realgen.core import config
from realgen.core.config import Plug
from realgen.core.errors import ConfigError, InputError, ModelError


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
