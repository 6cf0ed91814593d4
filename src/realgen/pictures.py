"""Paths as a person gives them to pictures: files, folders, patterns, and the images that a run.json lists.

Finding reads no picture; `read` opens one at a time, so a large folder is never in memory at once. What cannot be
read is a Picture with a reason, not an error. Knows no scorer.
"""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL.Image import Image

from realgen import run_file
from realgen.core.errors import InputError
from realgen.core.images import decode

SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""What is taken for a picture inside a folder; a file that is named is read whatever it is called."""

MAX_BYTES = 500_000_000
"""The largest file that is read."""

_SHEET = re.compile(r"contact-sheet(-\d+)?\.\w+")


@dataclass(frozen=True, slots=True)
class Found:
    """Where a picture is, and the prompt it was drawn from where that is known; `reason`: why nothing is there."""

    path: Path
    prompt: str | None = None
    reason: str = ""

    @property
    def name(self) -> str:
        """The path as text, whatever bytes are in it."""
        return os.fsencode(self.path).decode(errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class Picture:
    """An RGB image, or why there is none."""

    name: str
    prompt: str | None
    image: Image | None
    reason: str = ""


def find(words: Iterable[str]) -> list[Found]:
    """The pictures that `words` name, in their order, each file once (with its prompt where any word knows it).

    A folder stands for the pictures in and below it by name, without contact sheets; a pattern such as "shots/*.png"
    or "**/*.jpg" for the pictures that it fits; a .json file is the run.json of a run, whose prompts are taken.
    """
    found: dict[Path, Found] = {}
    for word in words:
        for item in _expand(word):
            key = Path(os.path.realpath(item.path))
            held = found.get(key)
            if held is None:
                found[key] = item
            elif held.prompt is None and item.prompt is not None:
                found[key] = replace(held, prompt=item.prompt)
    return list(found.values())


def read(found: Found) -> Picture:
    """The picture, decoded; or the reason why it cannot be."""
    if found.reason:
        return Picture(found.name, found.prompt, image=None, reason=found.reason)
    try:
        return Picture(found.name, found.prompt, image=decode(_bytes_of(found.path)))
    except InputError as error:
        return Picture(found.name, found.prompt, image=None, reason=error.message)


def _expand(word: str) -> Iterator[Found]:
    path = Path(word)
    if path.is_dir():
        inside = [Found(file) for file in _below(path)]
        yield from inside or [Found(path, reason="no picture in this folder")]
    elif path.suffix.lower() == ".json":
        yield from _of_run(path)
    elif not path.exists() and glob.has_magic(word):
        fitting = (Path(name) for name in sorted(glob.glob(word, recursive=True)))  # noqa: PTH207 - may be absolute
        files = [Found(file) for file in fitting if _is_picture(file) and file.is_file()]
        yield from files or [Found(path, reason="no picture fits this pattern")]
    else:
        yield Found(path, reason="" if os.path.exists(path) else "No such file or directory")  # noqa: PTH110  nor raises it


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders.sort()
        yield from (file for name in sorted(files) if _is_picture(file := Path(parent) / name))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and _SHEET.fullmatch(file.name) is None


def _of_run(path: Path) -> Iterator[Found]:
    try:
        entries = run_file.load(path).images
    except InputError as error:
        yield Found(path, reason=error.message)
        return
    if not entries:
        yield Found(path, reason="this run has no pictures")
    for entry in entries:
        yield Found(path.parent / Path(entry.file).name, prompt=entry.prompt)


def _bytes_of(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise InputError("not a file")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"larger than {MAX_BYTES // 1_000_000} MB")
        return path.read_bytes()
    except OSError as error:
        raise InputError(error.strerror or "it cannot be read") from error
