"""Checkpoints become tensors and safetensors; whatever else is in them is refused and never executed."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from realgen.core.config import validate
from realgen.core.errors import ConfigError, ModelError
from realgen.hub.card import Card, HubSource
from realgen.hub.convert import convert_checkpoint, read_checkpoint, read_weights
from realgen.hub.fetch import Progress, is_present, locate

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


class Payload:
    """Pickled, it is a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "wrapped",
    [
        TENSORS,
        {"model": TENSORS, "optimizer": {"state": {}, "lr": 0.1}, "epoch": 3},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
        {"state_dict": {"model": TENSORS}},
        {"model": TENSORS, "args": argparse.Namespace(lr=1e-3, name="x")},
    ],
)
def test_tensors_are_read_without_their_wrappers(tmp_path: Path, wrapped: dict[str, Any], is_zip: bool) -> None:
    torch.save(wrapped, tmp_path / "c.pth", _use_new_zipfile_serialization=is_zip)
    assert same(read_checkpoint(tmp_path / "c.pth"))


def test_parameters_come_back_as_plain_tensors(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "c.pth")
    torch.save({"weight": torch.nn.Parameter(torch.ones(2))}, tmp_path / "d.pth")
    assert set(read_checkpoint(tmp_path / "c.pth")) == {"weight", "bias"}
    assert not read_checkpoint(tmp_path / "d.pth")["weight"].requires_grad


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_code_is_refused_by_name_and_never_runs(tmp_path: Path, form: str) -> None:
    trace, file = tmp_path / "it ran", tmp_path / "c.pth"
    payload = {"model": TENSORS, "hook": Payload(trace)}
    if form == "bare":
        file.write_bytes(pickle.dumps(Payload(trace)))
    else:
        torch.save(payload, file, _use_new_zipfile_serialization=form == "zip")
    for read in (read_checkpoint, read_weights):
        with pytest.raises(ModelError, match=r"it was refused, and nothing in it was executed") as caught:
            read(file)
        assert not trace.exists()
        assert "safetensors" in caught.value.hint
        assert "\n" not in caught.value.message
        assert form == "bare" or "mkdir" in caught.value.message
    with pytest.raises(ModelError):
        convert_checkpoint(file, tmp_path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Payload(trace)))  # the payload is a real one
    assert trace.exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_file_is_said_to_be_so(tmp_path: Path, damage: str, is_zip: bool) -> None:
    file = tmp_path / "c.pth"
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=is_zip)
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "text": b"<html>no such page</html>", "empty": b""}[damage])
    with pytest.raises(ModelError, match=r"c\.pth is damaged or no PyTorch checkpoint") as caught:
        read_weights(file)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}, torch.zeros(2), {3: torch.zeros(2)}])
def test_what_is_no_dictionary_of_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(ModelError, match="no tensors by name"):
        read_checkpoint(tmp_path / "c.pth")


def test_conversion_keeps_every_number_even_where_memory_is_shared(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    given = {"a": base, "tied": base, "view": base.view(3, 4).T, "half": torch.ones(3, dtype=torch.bfloat16)}
    torch.save({"model": given}, tmp_path / "c.pth")
    convert_checkpoint(tmp_path / "c.pth", tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in given.items())


def test_weights_are_found_in_a_file_or_a_folder_of_one(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    (tmp_path / "manifest.json").write_text("{}")
    assert same(read_weights(tmp_path / "w.safetensors"))
    assert same(read_weights(tmp_path))
    torch.save(TENSORS, tmp_path / "w.ckpt")
    assert same(read_weights(tmp_path / "w.ckpt"))
    with pytest.raises(ModelError, match=r"one file of weights; it holds: w\.ckpt, w\.safetensors"):
        read_weights(tmp_path)


def test_what_holds_no_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match="no known ending"):
        read_weights(tmp_path / "w.onnx")
    with pytest.raises(ModelError, match="no weights at"):
        read_weights(tmp_path / "nothing.pth")
    with pytest.raises(ModelError, match="it holds: none"):
        read_weights(tmp_path)
    save_file(TENSORS, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:-1])
    with pytest.raises(ModelError, match="damaged"):
        read_weights(tmp_path / "w.safetensors")


def make_card(source: dict[str, Any]) -> Card:
    fields = {"name": "m", "summary": "s.", "room": "scorers", "plugin": "omniaid", "licence": "MIT"}
    return Card.model_validate({**fields, "min_memory_gb": 1, "source": source})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that has one repository, with the patterns that it was asked for in `asked`."""
    monkeypatch.setenv("REALGEN_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "snapshot"

    def download(repo: str, *, local_files_only: bool, allow_patterns: list[str], **_: object) -> str:
        if local_files_only and not snapshot.exists():
            raise LocalEntryNotFoundError(repo)
        (snapshot / "ckpt").mkdir(parents=True, exist_ok=True)
        if "ckpt/c.pth" in allow_patterns:
            torch.save({"model": TENSORS}, snapshot / "ckpt" / "c.pth")
        return str(snapshot)

    def defaulted(repo: str, *, local_files_only: bool = False, **options: Any) -> str:
        return download(repo, local_files_only=local_files_only, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", defaulted)
    return tmp_path / "cache"


SOURCE = {"kind": "hub", "repo": "a/b", "file": "ckpt/c.pth", "convert": "checkpoint"}


def test_a_checkpoint_on_the_hub_becomes_a_folder_of_safetensors_once(hub: Path) -> None:
    card = make_card({**SOURCE, "revision": "0123456789abcdef"})
    assert not is_present(card)
    told: list[Progress] = []
    folder = locate(card, progress=told.append)
    assert folder == hub / "models" / "m-0123456789ab"
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "model.safetensors"]
    assert same(load_file(folder / "model.safetensors"))
    assert same(read_weights(folder))
    assert [progress.stage for progress in told] == ["fetching a/b from the Hugging Face hub", "converting c.pth"]
    assert is_present(card)
    told.clear()
    assert locate(card, progress=told.append) == folder
    assert not told


def test_a_converted_folder_that_was_changed_is_named(hub: Path) -> None:
    card = make_card(SOURCE)
    file = locate(card) / "model.safetensors"
    assert file.parent.name == "m-newest"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ModelError, match="SHA-256") as caught:
        locate(card)
    assert caught.value.hint == f"delete {file.parent} and run realgen fetch m"


def test_a_repository_without_the_file_is_named(hub: Path) -> None:
    with pytest.raises(ModelError, match=r"a/b holds no ckpt/other\.pth"):
        locate(make_card({**SOURCE, "file": "ckpt/other.pth"}))
    assert not (hub / "models").exists()


def test_a_conversion_that_fails_leaves_nothing(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trace = tmp_path / "other", tmp_path / "it ran"
    folder.mkdir()
    torch.save({"model": TENSORS, "hook": Payload(trace)}, folder / "c.pth")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ModelError, match="nothing in it was executed"):
        locate(make_card({**SOURCE, "file": "c.pth"}))
    assert not trace.exists()
    assert not list((hub / "models").iterdir())


def test_one_file_that_needs_no_conversion_is_used_where_it_lies(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "plain" / "sub"
    folder.mkdir(parents=True)
    save_file(TENSORS, folder / "w.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder.parent))
    assert locate(make_card({"kind": "hub", "repo": "a/b", "file": "sub/w.safetensors"})) == folder


def test_a_file_that_no_program_may_fetch_is_asked_for_and_then_used(hub: Path) -> None:
    card = make_card({"kind": "manual", "page": "https://example.org/weights", "file": "c.pth"})
    with pytest.raises(ModelError, match="m cannot be fetched by a program") as caught:
        locate(card)
    assert "https://example.org/weights" in caught.value.hint
    assert str(hub / "downloads") in caught.value.hint
    assert not is_present(card)
    (hub / "downloads").mkdir(parents=True)
    torch.save(TENSORS, hub / "downloads" / "c.pth")
    folder = locate(card)
    assert same(read_weights(folder))
    assert is_present(card)
    (hub / "downloads" / "c.pth").unlink()
    assert locate(card) == folder


def test_a_conversion_needs_its_file() -> None:
    with pytest.raises(ConfigError, match="convert needs the `file`"):
        validate(HubSource, {"kind": "hub", "repo": "a/b", "convert": "checkpoint"}, where="x")
