"""A model is found by folder, file or hub id; a module holds exactly the tensors that it is given."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from realgen.core.errors import ModelError
from realgen.scorers import _checkpoint
from realgen.scorers._checkpoint import assemble, find, read_tensors, shape_of


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("places", torch.arange(4), persistent=False)


WEIGHTS = {"linear.weight": torch.ones(2, 3), "linear.bias": torch.zeros(2)}


def test_a_folder_and_a_file_are_found(tmp_path):
    (tmp_path / "x.pt").touch()
    assert find(str(tmp_path)) == tmp_path
    assert find(str(tmp_path / "x.pt")) == tmp_path / "x.pt"


@pytest.mark.parametrize("name", ["nowhere", "/no/where", "./no/where", "~/no-such-folder", "a/b/c", "../a"])
def test_what_is_neither_there_nor_a_hub_id_is_said(name):
    with pytest.raises(ModelError, match="no model at"):
        find(name)


def test_a_hub_id_is_fetched_without_pickles(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(_checkpoint, "locate", lambda card: seen.append(card.source) or tmp_path)
    assert find("owner/some-model.v2") == tmp_path
    assert seen[0].repo == "owner/some-model.v2"
    assert set(seen[0].allow_patterns) == {"*.json", "*.safetensors", "*.txt"}


def test_a_hub_id_that_cannot_be_had_gets_a_hint(monkeypatch):
    def offline(card):
        raise ModelError("cannot fetch it", hint="run realgen fetch owner/name")

    monkeypatch.setattr(_checkpoint, "locate", offline)
    with pytest.raises(ModelError, match="cannot fetch it") as caught:
        find("owner/name")
    assert caught.value.hint == "go online, or give a folder that holds owner/name"


def test_safetensors_go_before_a_pickle_in_one_folder(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"b": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_tensors(tmp_path).keys() == {"b"}
    assert read_tensors(tmp_path / "pytorch_model.bin").keys() == {"a"}


def test_a_module_holds_its_tensors_frozen_and_its_buffers():
    before = torch.get_rng_state()
    module = assemble(Small, WEIGHTS, source="x")
    assert torch.equal(module.linear.weight, WEIGHTS["linear.weight"])
    assert module.places.tolist() == [0, 1, 2, 3]
    assert not module.training
    assert not any(weight.requires_grad for weight in module.parameters())
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_missing_extra_or_of_another_shape_is_named():
    with pytest.raises(ModelError, match=r"x lacks linear\.bias, linear\.weight"):
        assemble(Small, {}, source="x")
    extra = {f"more.{index}": torch.zeros(1) for index in range(5)}
    with pytest.raises(ModelError, match=r"x holds more\.0, more\.1, more\.2 and 2 more, which"):
        assemble(Small, {**WEIGHTS, **extra}, source="x")
    with pytest.raises(ModelError, match=r"1 tensors of another shape: linear\.weight, \(3, 3\) instead of \(2, 3\)"):
        assemble(Small, {**WEIGHTS, "linear.weight": torch.ones(3, 3)}, source="x")


def test_a_shape_is_read_or_its_tensor_named():
    assert shape_of(WEIGHTS, "linear.weight", source="x") == (2, 3)
    with pytest.raises(ModelError, match=r"x lacks head\.weight"):
        shape_of(WEIGHTS, "head.weight", source="x")
