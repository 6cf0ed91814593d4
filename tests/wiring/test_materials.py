"""What trainings start from: no data is said in one line, the embedded model is a pipeline's folder."""

from pathlib import Path

import pytest

from realgen.core.errors import ConfigError
from realgen.core.training_recipes import ClassifierRecipe
from realgen.wiring import materials


def test_a_recipe_without_photographs_says_what_to_give():
    recipe = ClassifierRecipe(kind="classifier", categories=("people", "plants"), steps=1, batch=1)
    with pytest.raises(ConfigError) as raised:
        materials.read_split(recipe, "train")
    assert "data=FOLDER" in str(raised.value.hint)


def test_the_embedded_model_is_a_pipeline_s_folder():
    assert (Path(materials.embedded()) / "model_index.json").is_file()
