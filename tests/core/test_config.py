"""Closed configuration: precedence, overrides, and errors that name the key and the nearest known one."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from realgen.core import config
from realgen.core.errors import ConfigError

leaves = st.dictionaries(st.sampled_from("xyz"), st.integers(), max_size=3)
nested = st.dictionaries(st.sampled_from("abc"), leaves, max_size=3)
layers = st.tuples(leaves, nested).map(lambda pair: {**pair[0], **pair[1]})
"""Layers of one shape: a key is a mapping in all of them, or in none."""


@given(layers, layers, layers)
def test_merging_is_associative(a, b, c):
    assert config.merge(config.merge(a, b), c) == config.merge(a, config.merge(b, c))


@given(layers, layers)
def test_merging_changes_neither_side(a, b):
    before = repr((a, b))
    config.merge(a, b)
    assert repr((a, b)) == before


def test_field_default_then_recipe_then_profile_then_override(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("kind: generate\ngenerator: {name: flux}\nmachine: {batch: 2}\n")
    profile = tmp_path / "box.yaml"
    profile.write_text("machine: {batch: 3, device: cpu}\n")
    assert config.load(str(recipe)).machine.batch == 2
    assert config.load(str(recipe)).machine.dtype == "auto"
    assert config.load(str(recipe), profile=str(profile)).machine.batch == 3
    merged = config.load(str(recipe), profile=str(profile), overrides=["machine.batch=4"])
    assert (merged.machine.batch, merged.machine.device) == (4, "cpu")


@pytest.mark.parametrize(
    ("override", "wrong", "known"),
    [
        ("generater.name=flux", "generater", "generator"),
        ("generator.optoins.steps=3", "generator.optoins", "options"),
        ("machine.dytpe=float32", "machine.dytpe", "dtype"),
    ],
)
def test_a_misspelt_key_is_an_error_that_names_the_right_one(override, wrong, known):
    with pytest.raises(ConfigError) as caught:
        config.load("tiny", overrides=[override])
    assert repr(wrong) in caught.value.message
    assert f"did you mean '{known}'" in caught.value.hint


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ConfigError) as caught:
        config.load("tinny")
    assert "tiny" in caught.value.hint


def test_a_wrong_value_says_where_and_what():
    with pytest.raises(ConfigError) as caught:
        config.load("tiny", overrides=["machine.batch=0"])
    assert "machine.batch" in caught.value.message
    assert "greater than or equal to 1" in caught.value.message


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=1", "a=[1", "a=2024-13-45", "a=0x_", "a=" + "[" * 5000])
def test_unreadable_overrides_are_refused(text):
    with pytest.raises(ConfigError):
        config.parse_override(text)


def test_override_values_are_yaml():
    assert config.parse_override("a.b=[1, 2]") == {"a": {"b": [1, 2]}}
    assert config.parse_override("a=null") == {"a": None}
    assert config.parse_override("a=x=y") == {"a": "x=y"}


@pytest.mark.parametrize("name", config.shipped("recipes"))
@pytest.mark.parametrize("profile", [None, *config.shipped("profiles")])
def test_every_recipe_and_profile_validates_and_survives_a_round_trip(name, profile):
    merged = config.load(name, profile=profile)
    dumped = yaml.safe_load(yaml.safe_dump(merged.model_dump(mode="json")))
    assert config.from_mapping(dumped, where="dump") == merged


@pytest.mark.parametrize("text", ["[1, 2]", "kind: [", "", "kind: nonsense"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError):
        config.load(str(file))


def test_a_profile_may_only_say_what_the_machine_is(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("seed: 3\n")
    with pytest.raises(ConfigError, match="profile"):
        config.load("tiny", profile=str(file))


def test_recipes_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        config.load("tiny").machine.batch = 3


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("generator.cadr=tiny", "did you mean 'card'?"),
        ("prompt_optimizer={name: template, optionss: {}}", "did you mean 'options'?"),
        ("machine.dtyp=float32", "did you mean 'dtype'?"),
        ("scorers={real: {nmae: residual}}", "did you mean 'name'?"),
        ("reward={weights: {a: 1}, ensembles: {a: {scorer: [b]}}}", "did you mean 'scorers'?"),
        ("sterps=1", "known: "),
    ],
)
def test_an_unknown_key_names_the_nearest_at_its_place(override, hint):
    with pytest.raises(ConfigError, match="unknown key") as error:
        config.load("tiny", overrides=[override])
    assert hint in error.value.hint
