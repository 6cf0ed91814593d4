"""The recipe of a run that goes on, or of an image: the recorded one, on the machine that is asked for."""

from pathlib import Path

import pytest

from realgen.apps._recipe import Asked, load, of_run
from realgen.core import config
from realgen.core.errors import ConfigError, InputError

RECORDED = config.load("tiny", overrides=["machine.batch=3", "generator.options.steps=5"]).model_dump(mode="json")
HERE = Path("here")


def test_a_flag_and_its_key_are_not_both_said():
    asked = Asked("tiny", None, ["generator.options.steps=3"], {"generator.options.steps": 4})
    with pytest.raises(ConfigError, match="given twice"):
        load(asked, default="tiny")


def test_only_what_draws_is_a_recipe_to_draw_by():
    with pytest.raises(ConfigError, match="kind score"):
        load(Asked("score", None), default="tiny")


def test_the_recorded_recipe_goes_on_where_nothing_is_asked():
    assert of_run(HERE, RECORDED, Asked(None, None)).model_dump(mode="json") == RECORDED


def test_what_is_asked_again_may_be_what_is_recorded():
    asked = Asked("tiny", "cpu", ["machine.batch=1"], {"generator.options.steps": 5})
    recipe = of_run(HERE, RECORDED, asked)
    assert recipe.machine.batch == 1
    assert recipe.generator.options["steps"] == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked("tiny", None), "another generator"),
        (Asked(None, None, ["generator.options.steps=6"]), "another generator"),
        (Asked(None, None, ["prompt_optimizer={name: template}"]), "another prompt_optimizer"),
    ],
)
def test_another_recipe_is_refused(asked, said):
    with pytest.raises(InputError, match=said):
        of_run(HERE, RECORDED, asked)


def test_what_records_another_kind_does_not_go_on():
    score = config.load("score").model_dump(mode="json")
    with pytest.raises(InputError, match="no generate recipe"):
        of_run(HERE, score, Asked(None, None))
