"""What trainings start from: no data is said in one line, the embedded model is a pipeline's folder."""

from pathlib import Path

import pytest

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.core.training_recipes import ClassifierRecipe
from realgen.wiring import materials


def test_a_recipe_without_photographs_says_what_to_give():
    recipe = ClassifierRecipe(kind="classifier", categories=("people", "plants"), steps=1, batch=1)
    with pytest.raises(ConfigError) as raised:
        materials.read_split(recipe, "train")
    assert "data=FOLDER" in str(raised.value.hint)


def test_the_embedded_model_is_a_pipeline_s_folder():
    assert (Path(materials.embedded()) / "model_index.json").is_file()


def test_a_model_beside_another_brings_its_transformer_alone(random_flux):
    machine = Machine(device="cpu")
    pipeline = materials.load_flux(str(random_flux), machine)
    other = materials.load_flux(str(random_flux), machine, beside=pipeline)
    assert other.transformer is not pipeline.transformer
    assert other.components.keys() == pipeline.components.keys()
    own = [name for name, part in other.components.items() if part is not pipeline.components[name]]
    assert own == ["transformer"]
