"""What a recipe may say of scorers and rewards, and what its refusals teach."""

from pathlib import Path

import pytest

from realgen.core import config
from realgen.core.errors import ConfigError
from realgen.core.recipes import GenerateRecipe, ScoreRecipe
from realgen.core.spec import RewardSpec

SCORERS = {name: {"name": "image_classifier"} for name in ("semantic", "feature", "align", "other")}
REWARD = {
    "weights": {"real": 1, "align": 0.5},
    "ensembles": {"real": {"scorers": ["semantic", "feature"]}},
    "constraints": {"other": {"low": 0.2}},
}


def recipe(kind="score", **fields):
    values = {"kind": kind, "scorers": SCORERS, "reward": REWARD, **fields}
    if kind == "generate":
        values["generator"] = {"name": "flux"}
    return config.from_mapping(values, where="mine")


def refused(said, **fields):
    with pytest.raises(ConfigError, match=said) as caught:
        recipe(**fields)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("kind", "made"), [("score", ScoreRecipe), ("generate", GenerateRecipe)])
def test_a_recipe_names_scorers_and_how_they_are_weighed(kind, made):
    found = recipe(kind)
    assert isinstance(found, made)
    assert found.rewarded == {"semantic", "feature", "align", "other"}
    assert found.reward.ensembles["real"].temperature == 0.1
    assert found.reward.max_unscored == 0.1


def test_without_a_reward_nothing_is_rewarded():
    assert recipe(reward=None).rewarded == set()
    assert recipe(scorers={}, reward=None).scorers == {}


def test_a_scorer_outside_of_the_reward_only_looks():
    found = recipe(reward={"weights": {"align": 1}})
    assert found.rewarded == {"align"}
    assert set(found.scorers) == set(SCORERS)


def test_a_recipe_survives_being_written_and_read():
    found = recipe()
    assert config.from_mapping(found.model_dump(mode="json"), where="dump") == found


@pytest.mark.parametrize(
    "reward",
    [
        {"weights": {"semantik": 1}},
        {"weights": {"real": 1}, "ensembles": {"real": {"scorers": ["semantic", "semantik"]}}},
        {"weights": {"align": 1}, "constraints": {"semantik": {"low": 0}}},
    ],
)
def test_a_reward_of_a_scorer_that_is_not_there_is_refused(reward):
    refused("the reward names semantik, which is no scorer of this recipe", reward=reward)


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        ({"weights": {}}, "at least 1"),
        ({"weights": {"align": 0}}, "all weights are 0"),
        ({"weights": {"align": -1}}, "greater than or equal to 0"),
        ({"weights": {"align": float("nan")}}, "weights.align"),
        ({"weights": {"align": float("inf")}}, "weights.align"),
        ({**REWARD, "weights": {"align": 1}}, "the ensemble real has no weight"),
        ({**REWARD, "log_odds": ["real"]}, "log_odds names real, which is no scorer with a weight of its own"),
        ({**REWARD, "ensembles": {"real": {"scorers": []}}}, "at least 1"),
        ({**REWARD, "ensembles": {"real": {"scorers": ["align"], "temperature": 0}}}, "greater than 0"),
        ({**REWARD, "ensembles": {"real": {"scorers": ["align"], "temperature": float("inf")}}}, "temperature"),
        ({**REWARD, "constraints": {"other": {}}}, "a bound needs low, high or both"),
        ({**REWARD, "constraints": {"other": {"low": 2, "high": 1}}}, "no score is at least 2 and at most 1"),
        ({**REWARD, "constraints": {"other": {"low": float("nan")}}}, "constraints.other.low"),
        ({**REWARD, "max_unscored": 1.5}, "less than or equal to 1"),
        ({**REWARD, "wieghts": {}}, "unknown key 'reward.wieghts'"),
    ],
)
def test_a_reward_that_cannot_be_is_refused(reward, said):
    refused(said, reward=reward)


def test_a_part_of_weight_0_may_stand_beside_another():
    found = recipe(reward={"weights": {"align": 1, "semantic": 0}})
    assert found.rewarded == {"align", "semantic"}


def test_a_bound_may_be_a_single_value():
    spec = RewardSpec.model_validate({"weights": {"a": 1}, "constraints": {"a": {"low": 1, "high": 1}}})
    assert spec.constraints["a"].low == spec.constraints["a"].high == 1.0


@pytest.mark.parametrize("key", ["scorer", "rewards", "generator"])
def test_an_unknown_key_of_a_score_recipe_is_refused(key):
    refused(f"unknown key '{key}'", **{key: {}})


@pytest.mark.parametrize("model", [RewardSpec, ScoreRecipe, GenerateRecipe])
def test_every_key_says_what_it_means(model):
    without = {"kind", "machine"}
    assert all(field.description for name, field in model.model_fields.items() if name not in without)


def test_a_path_in_the_home_folder_is_written_out(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = config.load("flow-tiny", overrides=["data=~/photos", "elaborations=[~/texts.txt, more.txt]"])
    assert recipe.data == tmp_path / "photos"
    assert recipe.elaborations == (tmp_path / "texts.txt", Path("more.txt"))
    with pytest.raises(ConfigError, match="no such home folder"):
        config.load("flow-tiny", overrides=["data=~nobody-of-that-name/photos"])
