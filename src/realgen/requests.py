"""Prompts to Requests: from words on the command line, or from a .txt, .jsonl or .csv file.

Everything a person gave is checked here, before anything is drawn. Knows no model: whether a text fits a generator
and a size divides, the generator says.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from realgen.core.errors import InputError
from realgen.core.types import MAX_SEED, MAX_SIDE, Request

MAX_CHARACTERS = 2_000
"""The longest prompt, in characters."""

COLUMNS = ("prompt", "seed", "size", "name")
_DEVICE_NAMES = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
_IMAGE_SUFFIX = re.compile(r"\.(png|jpe?g|webp)$", re.IGNORECASE)
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: str
    where: str
    seed: int | None = None
    size: tuple[int, int] | None = None
    name: str = ""


def from_words(prompts: Sequence[str], *, seed: int, count: int = 1, stride: int = 1) -> list[Request]:
    """`count` requests a prompt, with seeds `seed`, `seed + stride`, ...; prompts are stripped of outer blanks.

    A search that draws `stride` candidates a request so never draws one twice.
    """
    wheres = ["the prompt"] if len(prompts) == 1 else [f"prompt {i}" for i in range(1, len(prompts) + 1)]
    rows = [_Row(_check_prompt(prompt, where), where) for prompt, where in zip(prompts, wheres, strict=True)]
    if not rows:
        raise InputError("there is no prompt", hint="say what to draw, such as: a portrait of an old fisherman at dawn")
    return _expand(rows, seed=seed, count=count, stride=stride)


def read_requests(path: str | Path, *, seed: int, count: int = 1, stride: int = 1) -> list[Request]:
    """The requests of a prompt file; `-` reads lines of text from stdin.

    .txt is a prompt a line (blank lines and lines starting with # are skipped); .jsonl and .csv have the columns
    prompt, seed, size ("128x96", or [128, 96] in JSON) and name. A row's own seed takes the place of `seed`.
    """
    where = "stdin" if str(path) == "-" else str(path)
    suffix = ".txt" if where == "stdin" else Path(path).suffix.lower()
    readers: dict[str, Callable[[str, str], Iterator[_Row]]]
    readers = {".txt": _text_rows, ".jsonl": _json_rows, ".csv": _csv_rows}
    if suffix not in readers:
        raise InputError(f"{where}: unknown kind of prompt file", hint=f"known: {', '.join(readers)}")
    rows = list(readers[suffix](_decode(_read_bytes(path), where), where))
    if not rows:
        raise InputError(f"{where}: it holds no prompt", hint="write one prompt a line")
    return _expand(rows, seed=seed, count=count, stride=stride)


def parse_size(text: str) -> tuple[int, int]:
    """`128x96` as (128, 96): width and height in pixels."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*[xX\u00d7]\s*([0-9]{1,9})\s*", text)
    if match is None:
        raise InputError(f"cannot read the size {text!r:.40}", hint="write WIDTHxHEIGHT, such as 128x96")
    return _check_size(int(match[1]), int(match[2]))


def file_stem(name: str) -> str:
    """`name` as a file name without its suffix that every file system takes; a path is refused."""
    if re.search(r"[/\\\0]", name):
        raise InputError(f"the name {name!r:.60} is a path", hint="give a plain file name: --out names the folder")
    kept = "".join(c if c.isprintable() and c not in '<>:"|?*' else "_" for c in _IMAGE_SUFFIX.sub("", name.strip()))
    stem = kept.encode()[:120].decode(errors="ignore").strip(" .")
    if not stem:
        raise InputError(f"the name {name!r:.60} leaves no file name", hint="use letters and digits")
    return f"_{stem}" if stem.partition(".")[0].upper() in _DEVICE_NAMES else stem


def _expand(rows: Iterable[_Row], *, seed: int, count: int, stride: int) -> list[Request]:
    if count < 1:
        raise InputError(f"cannot draw {count} images of a prompt", hint="ask for at least 1")
    drawn = count * stride
    _check_seed(seed, drawn, "the seed")
    requests = []
    for row in rows:
        first = seed if row.seed is None else _check_seed(row.seed, drawn, f"{row.where}: the seed")
        requests += [Request(row.prompt, first + i, row.name, row.size) for i in range(0, drawn, stride)]
    return requests


def _read_bytes(path: str | Path) -> bytes:
    if str(path) == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or "it cannot be read"
        raise InputError(f"{path}: {reason}", hint="give a file of prompts: .txt, .jsonl or .csv") from error


def _decode(data: bytes, where: str) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(re.findall(rb"\r\n|\r|\n", data[: error.start])) + 1
        message = f"{where}:{line}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8"
        raise InputError(message, hint="save the file as UTF-8") from error
    nul = text.find("\0")
    if nul >= 0:
        line = len(_LINE_END.findall(text[:nul])) + 1
        message = f"{where}:{line}: a NUL byte, so this is no UTF-8 text"
        raise InputError(message, hint="save the file as UTF-8, not UTF-16 or binary")
    return text.removeprefix("\ufeff")


def _text_rows(text: str, where: str) -> Iterator[_Row]:
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if line.strip() and not line.startswith("#"):
            yield _Row(_check_prompt(line, f"{where}:{number}"), f"{where}:{number}")


def _json_rows(text: str, where: str) -> Iterator[_Row]:
    for number, line in enumerate(_LINE_END.split(text), start=1):
        if not line.strip():
            continue
        here = f"{where}:{number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{here}: not JSON: {error}", hint='write {"prompt": "..."} on each line') from error
        if not isinstance(values, dict):
            raise InputError(f"{here}: not a JSON object", hint='write {"prompt": "..."} on each line')
        _check_columns(values, here)
        yield _row(values, here)


def _csv_rows(text: str, where: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    while (cells := _next_cells(reader, where)) is not None:
        start, values = cells
        here = f"{where}:{start}"
        if not any(cell.strip() for cell in values):
            continue
        if not header:
            header = [name.strip() for name in values]
            _check_columns(header, here)
        elif len(values) > len(header):
            hint = "put a prompt that holds a comma in double quotes"
            raise InputError(f"{here}: {len(values)} cells under {len(header)} columns", hint=hint)
        else:
            yield _row(_typed_cells(dict(zip(header, values, strict=False)), here), here)


def _next_cells(reader: Any, where: str) -> tuple[int, list[str]] | None:
    start = reader.line_num + 1
    try:
        return start, next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        raise InputError(f"{where}:{start}: not CSV: {error}", hint="close every double quote") from error


def _typed_cells(cells: Mapping[str, str], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {name: cell for name, cell in cells.items() if cell.strip() or name == "prompt"}
    if "seed" in values:
        seed = values["seed"].strip()
        if not re.fullmatch(r"-?[0-9]{1,30}", seed):
            _refuse(where, "seed", seed, "a whole number")
        values["seed"] = int(seed)
    return values


def _check_columns(names: Iterable[str], where: str) -> None:
    named = list(names)
    unknown = [name for name in named if name not in COLUMNS]
    known = f"known: {', '.join(COLUMNS)}"
    if unknown:
        raise InputError(f"{where}: unknown column {', '.join(map(repr, unknown)):.80}", hint=known)
    if len(set(named)) < len(named):
        raise InputError(f"{where}: a column is there twice", hint=known)
    if "prompt" not in named:
        raise InputError(f"{where}: no column 'prompt'", hint=known)


def _row(values: Mapping[str, Any], where: str) -> _Row:
    prompt, seed, name = values["prompt"], values.get("seed"), values.get("name")
    if not isinstance(prompt, str):
        _refuse(where, "prompt", prompt, "text")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        _refuse(where, "seed", seed, "a whole number")
    if name is not None and not isinstance(name, str):
        _refuse(where, "name", name, "text")
    try:
        if name:
            file_stem(name)
        size = _size(values.get("size"), where)
    except InputError as error:
        raise InputError(f"{where}: {error.message.removeprefix(f'{where}: ')}", hint=error.hint) from error
    return _Row(_check_prompt(prompt, where), where, seed=seed, size=size, name=name or "")


def _size(value: object, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return parse_size(value)
    if not isinstance(value, list) or [type(side) for side in value] != [int, int]:
        _refuse(where, "size", value, '"128x96" or [128, 96]')
    return _check_size(*value)


def _refuse(where: str, column: str, value: object, wanted: str) -> NoReturn:
    raise InputError(f"{where}: the {column} is {value!r:.40}", hint=f"it must be {wanted}")


def _check_prompt(prompt: str, where: str) -> str:
    stripped = prompt.strip()
    if not stripped:
        raise InputError(f"{where}: the prompt is empty", hint="say what to draw")
    if len(stripped) > MAX_CHARACTERS:
        message = f"{where}: the prompt has {len(stripped):,} characters; the limit is {MAX_CHARACTERS:,}"
        raise InputError(message, hint="shorten it: a generator reads a few dozen to a few hundred words")
    if re.search(r"[\0\ud800-\udfff]", stripped):
        raise InputError(f"{where}: the prompt holds a character that is no text (NUL or half a surrogate pair)")
    return stripped


def _check_seed(seed: int, count: int, what: str) -> int:
    if seed < 0:
        raise InputError(f"{what} is {seed}", hint="a seed is 0 or more")
    if seed + count - 1 > MAX_SEED:
        raise InputError(f"{what} is {seed}, too large for {count} images", hint=f"the largest seed is {MAX_SEED}")
    return seed


def _check_size(width: int, height: int) -> tuple[int, int]:
    if not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
        raise InputError(f"the size is {width}x{height}", hint=f"a side is 1 to {MAX_SIDE} pixels")
    return width, height
