"""Whether a model folder is whole. Knows nothing of where it came from.

Safetensors headers are compared with file sizes, shards with their index, and files with a manifest where we wrote one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from realgen.core.errors import ModelError

MANIFEST = "manifest.json"
_ALWAYS_HASHED = 16 * 2**20  # bytes; a larger file is hashed only where its time of change differs
_LONGEST_HEADER = 100_000_000  # bytes, as the safetensors library limits it


def check_folder(folder: Path, *, hint: str = "fetch or copy the model again") -> None:
    """Raise ModelError, naming the file, where a model folder is missing, empty or incomplete.

    Reads the safetensors headers and their indexes only: cheap for a model of any size.
    """
    if not folder.is_dir():
        raise ModelError(f"no model folder at {folder}", hint=hint)
    weights = sorted(folder.rglob("*.safetensors"))
    indexes = sorted(folder.rglob("*.safetensors.index.json"))
    for index in indexes:
        _check_shards(index, hint)
    for file in weights:
        check_safetensors(file, hint=hint)
    if not weights:
        raise ModelError(f"{folder} holds no safetensors weights", hint=hint)


def check_safetensors(file: Path, *, hint: str = "fetch or copy the model again") -> None:
    """Raise ModelError where a safetensors file is not as long as its header says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            num_header = int.from_bytes(stream.read(8), "little")
            if not 2 <= num_header <= min(size - 8, _LONGEST_HEADER):
                raise ModelError(f"{file} is truncated or is not a safetensors file ({size:,} bytes)", hint=hint)
            header = json.loads(stream.read(num_header))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror}", hint=hint) from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged: its header cannot be read", hint=hint) from error
    expected = 8 + num_header + max(ends, default=0)
    if size != expected:
        raise ModelError(f"{file} is damaged: {size:,} bytes instead of {expected:,}", hint=hint)


def _check_shards(index: Path, hint: str) -> None:
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} cannot be read", hint=hint) from error
    for shard in sorted(shards):
        if not (index.parent / shard).is_file():
            raise ModelError(f"{index.parent / shard} is missing", hint=hint)


def write_manifest(folder: Path) -> None:
    """Record size, time of change and SHA-256 of every file in `folder`; written last, it says that all is there."""
    files = {file.relative_to(folder).as_posix(): _entry(file) for file in _files(folder)}
    (folder / MANIFEST).write_text(json.dumps({"schema": 1, "files": files}, indent=1), encoding="utf-8")


def check_manifest(folder: Path, *, hint: str) -> None:
    """Raise ModelError, naming the file, where a folder is not what its manifest says.

    The size of every file is compared, and the SHA-256 of every file that is small or was written to since.
    """
    try:
        files: dict[str, dict[str, Any]] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            _check_entry(folder / name, entry, hint)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read", hint=hint) from error


def _check_entry(file: Path, entry: dict[str, Any], hint: str) -> None:
    if not file.is_file():
        raise ModelError(f"{file} is missing", hint=hint)
    found = file.stat()
    if found.st_size != entry["bytes"]:
        raise ModelError(f"{file} is damaged: {found.st_size:,} bytes instead of {entry['bytes']:,}", hint=hint)
    is_suspect = found.st_size <= _ALWAYS_HASHED or found.st_mtime_ns != entry["mtime_ns"]
    if is_suspect and sha256_of(file) != entry["sha256"]:
        raise ModelError(f"{file} is not the file that was fetched: its SHA-256 differs", hint=hint)


def _entry(file: Path) -> dict[str, Any]:
    found = file.stat()
    return {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "sha256": sha256_of(file)}


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
