"""Before and after a run, and the best of several beside it, on a random model and scores worked by hand."""

import json
import sys

import pytest
import torch
import yaml
from PIL import Image

import post_training
import resume
from realgen.core import config
from realgen.core.types import Score
from realgen.wiring import training


@pytest.fixture(scope="module")
def run(random_flux, tmp_path_factory):
    folder = tmp_path_factory.mktemp("post")
    values = yaml.safe_load(resume.random_recipe(folder).read_text())
    options = {"model": str(random_flux), "steps": 3, "size": [32, 32], "max_text_tokens": 24, "guidance": 3.0}
    values |= {"generator": {"name": "flux", "options": options}, "prompts": values["eval_prompts"], "clip": 1e-2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    list(training.train(config.load(str(folder / "recipe.yaml")), folder / "run", resume=False))
    return folder / "run"


def test_a_run_is_reported_with_pictures_and_curves(run, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na house\n")
    args = [str(run), "--prompts", str(tmp_path / "prompts.txt"), "--seeds", "2", "--searched", "2"]
    monkeypatch.setattr(sys, "argv", ["post_training.py", *args, "--out", str(tmp_path / "out")])
    post_training.main()
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert set(report) == {"before", "run", "best of"}
    assert set(report["run"]) == set(report["before"]) >= {"sharpness"}
    assert all(low <= value <= high for value, low, high in report["run"].values())
    with Image.open(tmp_path / "out/pictures.png") as sheet:
        assert sheet.size == (2 * 2 * 32 + 8, 3 * 32)
    with Image.open(tmp_path / "out/curves.png") as curves:
        assert curves.width > 600
    more = [table for table in report["best of"].values() if any(value for value, _, _ in table.values())]
    assert more  # the best of several is not always the first


def test_evaluations_count_a_backward_pass_twice(run):
    recipe = post_training._recipe(run)
    rollouts = recipe.steps // recipe.period
    images = recipe.num_prompts * recipe.group
    wanted = rollouts * images * (3 + recipe.window.length * (4 if recipe.kl_weight else 3))
    assert post_training.evaluations(recipe) == wanted
    without = recipe.model_copy(update={"kl_weight": 0.0})
    assert post_training.evaluations(without) == rollouts * images * (3 + 3 * recipe.window.length)


def test_changes_are_means_over_prompts_and_leave_out_what_was_not_scored():
    before = {"real": torch.tensor([[0.1, 0.3], [0.2, 0.2], [float("nan")] * 2])}
    after = {"real": torch.tensor([[0.2, 0.6], [0.2, float("nan")], [0.5, 0.5]])}
    value, low, high = post_training.changes(before, after)["real"]
    assert value == pytest.approx(0.1)
    assert low == pytest.approx(0)
    assert high == pytest.approx(0.2)


def test_the_best_of_more_is_never_worse_by_the_reward(run, monkeypatch):
    recipe = post_training._recipe(run)
    name = next(iter(recipe.reward.weights))
    shades = iter([0.3, 0.1, 0.5, 0.2, 0.2, 0.6, 0.7, 0.1])
    monkeypatch.setattr(post_training, "draw", lambda recipe, prompts, seeds: [[None] * seeds for _ in prompts])
    scorer = lambda images, prompts: [Score(next(shades)) for _ in images]  # noqa: E731
    found = post_training.search(recipe, {name: scorer}, ["a", "b"], 4)
    assert found["2"][name].value == pytest.approx((0 + 0.4) / 2)
    assert found["4"][name].value == pytest.approx((0.2 + 0.5) / 2)
