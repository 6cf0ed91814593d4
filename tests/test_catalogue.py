"""What there is to choose from, and what the doctor says of a machine that lacks something."""

import pytest
import torch

from realgen import catalogue
from realgen.core import config, plugins
from realgen.core.errors import ConfigError
from realgen.hub import card as cards


def test_every_recipe_card_and_plugin_is_listed_with_a_description():
    assert [row["name"] for row in catalogue.rows("recipes")] == config.shipped("recipes")
    assert [row["name"] for row in catalogue.rows("cards")] == cards.names()
    for room in plugins.ROOMS:
        assert [row["name"] for row in catalogue.rows(room)] == plugins.names(room)
    for what in ("recipes", "profiles", "cards", *plugins.ROOMS):
        assert all(row["what"] for row in catalogue.rows(what))


def test_an_unknown_list_names_the_known():
    with pytest.raises(ConfigError) as caught:
        catalogue.rows("kitchens")
    assert "recipes" in caught.value.hint


def test_a_missing_extra_is_not_needed_but_mended(monkeypatch):
    monkeypatch.setattr(catalogue.importlib.util, "find_spec", lambda name: None)
    extras = {finding.what: finding for finding in catalogue.diagnose()}
    assert not extras["peft"].is_good
    assert not extras["peft"].is_needed
    assert extras["peft"].mend == 'pip install "realgen[train]"'


def test_a_model_that_a_gpu_holds_in_turns_is_said_to_be_so(monkeypatch):
    monkeypatch.setattr(catalogue, "memory_gb", lambda: 24.0)
    monkeypatch.setattr("realgen.hub.device.pick_device", lambda machine: torch.device("cuda"))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a GPU")
    found = {finding.what: finding for finding in catalogue.diagnose()}
    assert "--profile gpu-24gb" in found["model flux1-dev"].detail
    assert found["model tiny"].detail.endswith("of 24 GB")


def test_too_little_memory_is_said(monkeypatch):
    monkeypatch.setattr(catalogue, "memory_gb", lambda: 4.0)
    found = {finding.what: finding for finding in catalogue.diagnose()}
    assert not found["model flux1-dev"].is_good
    assert "too much for this machine" in found["model flux1-dev"].detail
    assert found["memory"].is_good


def test_a_folder_that_cannot_be_written_is_said(monkeypatch):
    monkeypatch.setattr(catalogue.os, "access", lambda *_: False)
    found = {finding.what: finding for finding in catalogue.diagnose()}
    assert not found["output folder"].is_good
    assert "--out" in found["output folder"].mend


def test_a_missing_package_is_needed(monkeypatch):
    def absent(name):
        raise catalogue.PackageNotFoundError(name)

    monkeypatch.setattr(catalogue, "version", absent)
    found = {finding.what: finding for finding in catalogue.diagnose()}
    assert found["torch"].is_needed
    assert not found["torch"].is_good
