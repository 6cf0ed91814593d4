import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from realgen.core.errors import ModelError
from realgen.hub import integrity
from realgen.hub.integrity import check_folder, check_manifest, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    save_file({"a": torch.zeros(100), "b": torch.ones(3, 2)}, tmp_path / "part" / "w.safetensors")
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_a_whole_folder_passes(folder: Path) -> None:
    check_folder(folder)
    save_file({}, folder / "empty.safetensors")
    check_folder(folder)


@pytest.mark.parametrize("change", ["cut", "grown", "beheaded", "text", "empty"])
def test_a_damaged_file_is_named(folder: Path, change: str) -> None:
    file = folder / "part" / "w.safetensors"
    whole = file.read_bytes()
    damaged = {
        "cut": whole[:-1],
        "grown": whole + b"x",
        "beheaded": whole[:8] + b"?" * (len(whole) - 8),
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "empty": b"",
    }
    file.write_bytes(damaged[change])
    with pytest.raises(ModelError, match=r"w\.safetensors") as caught:
        check_folder(folder, hint="mend it")
    assert caught.value.hint == "mend it"


def test_a_missing_shard_or_folder_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "w.safetensors", "c": "w-2.safetensors"}}
    (folder / "part" / "w.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"w-2\.safetensors is missing"):
        check_folder(folder)
    (folder / "part" / "w.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        check_folder(folder)
    with pytest.raises(ModelError, match="no model folder"):
        check_folder(folder / "nowhere")
    (folder / "bare").mkdir()
    with pytest.raises(ModelError, match="holds no safetensors"):
        check_folder(folder / "bare")


def test_a_manifest_notices_every_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(folder)
    check_manifest(folder, hint="h")
    file = folder / "part" / "w.safetensors"
    whole, changed_at = file.read_bytes(), file.stat().st_mtime_ns
    tampered = whole[:-1] + b"\x01"
    file.write_bytes(tampered)
    os.utime(file, ns=(changed_at, changed_at))
    with pytest.raises(ModelError, match="SHA-256 differs"):  # small: hashed always
        check_manifest(folder, hint="h")
    monkeypatch.setattr(integrity, "_ALWAYS_HASHED", 0)
    os.utime(file, ns=(changed_at, changed_at + 1))
    with pytest.raises(ModelError, match="SHA-256 differs"):  # large: hashed where it was written to
        check_manifest(folder, hint="h")
    file.write_bytes(whole[:-4])
    with pytest.raises(ModelError, match="instead of"):
        check_manifest(folder, hint="h")
    file.unlink()
    with pytest.raises(ModelError, match="missing"):
        check_manifest(folder, hint="h")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match=r"manifest\.json cannot be read"):
        check_manifest(folder, hint="h")
