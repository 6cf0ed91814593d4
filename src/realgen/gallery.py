"""The output folder of a generate run: numbered images, a contact sheet, and run.json.

    FOLDER/0001.png ...         one file an image; a request's own name takes the number's place
    FOLDER/contact-sheet.png    all of them on one page
    FOLDER/run.json             what made them, rewritten whole after every image

Nothing that is there already is overwritten: a second run in one folder goes on counting and writes run-2.json. Knows
nothing of how an image is made.
"""

import contextlib
import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from realgen.core.errors import InputError, OutputError
from realgen.core.types import Origin, Request, Sample
from realgen.provenance import Signer, TakenError, check_suffix, mark, write_whole
from realgen.requests import file_stem
from realgen.run_file import Entry, RunFile, dump, load, newest

MAX_FRAMES = 240
"""The most images on a contact sheet; run.json lists them all."""

_NUMBERED = re.compile(r"(\d{4,})\.\w+")
_SHEET = "contact-sheet"


class Gallery:
    """The folder of one run; made by `create` or `resume`. `num_others` counts its images that answer no request."""

    def __init__(
        self,
        folder: Path,
        run_file: Path,
        manifest: RunFile,
        *,
        requests: Sequence[Request],
        signer: Signer | None,
        is_new: bool = False,
    ) -> None:
        self.folder = folder
        self.run_file = run_file
        self.manifest = manifest
        self._signer, self._is_new = signer, is_new
        done = [(entry.row, entry.prompt, entry.asked_seed) for entry in manifest.images]
        asked = {self._key(row, request): (row, request) for row, request in enumerate(requests)}
        finished = set(done)
        self._pending = [item for key, item in asked.items() if key not in finished]
        self.num_others = sum(key not in asked for key in done)
        self._next_row = max([len(requests), *(entry.row + 1 for entry in manifest.images)])

    @classmethod
    def create(
        cls,
        folder: Path | None,
        recipe: Mapping[str, Any],
        *,
        version: str,
        requests: Sequence[Request] = (),
        can_go_on: bool = True,
        best_of: int | None = None,
        records_prompts: bool = True,
        suffix: str = ".png",
        signer: Signer | None = None,
    ) -> "Gallery":
        """A new run in `folder`, or in a fresh `outputs/YYYYmmdd-HHMMSS`; raises before anything is drawn."""
        check_suffix(suffix)
        _check(requests, signer)
        folder = _make(folder) if folder is not None else fresh_folder(Path("outputs"), datetime.now())
        manifest = RunFile(
            version=version,
            created=datetime.now().astimezone().isoformat(timespec="seconds"),
            recipe=dict(recipe),
            requests=tuple(requests) if records_prompts and can_go_on else (),
            best_of=best_of,
            is_signed=signer is not None,
            records_prompts=records_prompts,
            suffix=suffix.lower(),
        )
        for stem in _variants("run"):
            try:
                write_whole(folder / f"{stem}.json", dump(manifest))
            except TakenError:
                continue
            break
        return cls(folder, folder / f"{stem}.json", manifest, requests=requests, signer=signer, is_new=True)

    @classmethod
    def resume(cls, folder: Path, *, requests: Sequence[Request] = (), signer: Signer | None = None) -> "Gallery":
        """The newest run in `folder`, with its own recipe and privacy; an image whose file is gone counts as undone.

        Without `requests` it goes on with those that it records. With them, they are its first rows, and it records
        those that waited there behind them.
        """
        _check(requests, signer)
        run_file = newest(folder)
        manifest = load(run_file)
        if manifest.is_signed and signer is None:
            raise InputError(f"the run in {folder} is signed", hint="give --sign CHAIN KEY again")
        kept = tuple(entry for entry in manifest.images if (folder / Path(entry.file).name).is_file())
        manifest = manifest.model_copy(update={"images": kept})
        if requests and manifest.records_prompts:
            recorded = (*requests, *manifest.requests[len(requests) :], *_displaced(manifest, requests))
            manifest = manifest.model_copy(update={"requests": recorded})
        return cls(folder, run_file, manifest, requests=requests or manifest.requests, signer=signer)

    @property
    def pending(self) -> list[Request]:
        """The requests that are not drawn yet, in order."""
        return [request for _, request in self._pending]

    def add(self, sample: Sample, *, seconds: float | None = None) -> Path:
        """Save the image under its number or name, list it in run.json, and return its path."""
        path = self._save(sample)
        row = self._take_row(sample.request if sample.choice is None else sample.choice.asked)
        recorded = self.manifest.records_prompts
        entry = Entry.of(sample, file=path.name, row=row, seconds=seconds, recorded=recorded)
        self._update(images=(*self.manifest.images, entry))
        return path

    def discard(self) -> None:
        """Take a run back that was just made and has no image: run.json, and the folder where nothing else is in it."""
        if self.manifest.images or not self._is_new:
            return
        with contextlib.suppress(OSError):
            self.run_file.unlink()
            self.folder.rmdir()

    def finish(self) -> Path | None:
        """Write run.json and the contact sheet of all images of the run, and return its path; None without images."""
        entries = self.manifest.images
        if not entries:
            self._update()
            return None
        sheet = draw_contact_sheet(self.folder, entries, heading=f"RealGen {self.manifest.version}")
        prompts = {entry.prompt for entry in entries}
        prompt = prompts.pop() if len(prompts) == 1 else None
        origin = Origin(entries[0].seed, self.manifest.version, self.manifest.recipe, prompt)
        path = self._save_sheet(sheet, origin)
        self._update(contact_sheet=path.name)
        return path

    def _save(self, sample: Sample) -> Path:
        manifest, request = self.manifest, sample.request
        prompt, text = (request.prompt, sample.text) if manifest.records_prompts else (None, None)
        origin = Origin(request.seed, manifest.version, manifest.recipe, prompt, text)
        for stem in self._stems(request.name):
            path = self.folder / f"{stem}{manifest.suffix}"
            if path.exists() or stem.casefold() == _SHEET:
                continue
            try:
                mark(sample.image, path, origin=origin, signer=self._signer)
            except TakenError:  # another process was faster
                continue
            return path
        raise AssertionError("the stems never end")

    def _save_sheet(self, sheet: Image.Image, origin: Origin) -> Path:
        own = self.manifest.contact_sheet
        if own is not None:
            path = self.folder / Path(own).name
            mark(sheet, path, origin=origin, signer=self._signer, replace=True)
            return path
        for stem in _variants(_SHEET):
            path = self.folder / f"{stem}.png"
            try:
                mark(sheet, path, origin=origin, signer=self._signer)
            except TakenError:
                continue
            return path
        raise AssertionError("the stems never end")

    def _stems(self, name: str) -> Iterator[str]:
        if name:
            return _variants(file_stem(name))
        numbers = (int(match[1]) for file in self.folder.iterdir() if (match := _NUMBERED.fullmatch(file.name)))
        return (f"{number:04d}" for number in itertools.count(max(numbers, default=0) + 1))

    def _take_row(self, request: Request) -> int:
        for index, (row, pending) in enumerate(self._pending):
            if pending == request:
                del self._pending[index]
                return row
        self._next_row += 1
        return self._next_row - 1

    def _key(self, row: int, request: Request) -> tuple[int, str | None, int]:
        return row, request.prompt if self.manifest.records_prompts else None, request.seed

    def _update(self, **changes: object) -> None:
        self.manifest = self.manifest.model_copy(update=changes)
        write_whole(self.run_file, dump(self.manifest), replace=True)


def fresh_folder(root: Path, now: datetime) -> Path:
    """A new folder `root/YYYYmmdd-HHMMSS`, with -2, -3, ... where that one is taken."""
    for name in _variants(f"{now:%Y%m%d-%H%M%S}"):
        try:
            (root / name).mkdir(parents=True)
        except FileExistsError as error:
            if not (root / name).exists():
                raise _unwritable(root, error) from error
            continue
        except OSError as error:
            raise _unwritable(root, error) from error
        return root / name
    raise AssertionError("the names never end")


def draw_contact_sheet(folder: Path, entries: Sequence[Entry], *, heading: str) -> Image.Image:
    """A page of frames on a dark ground, each with its prompt, file and seed below; at most `MAX_FRAMES`."""
    shown = entries[:MAX_FRAMES]
    images = [_thumbnail(folder / Path(entry.file).name) for entry in shown]
    width = max(128, *(image.width for image in images))
    captions = [wrap(entry.prompt or "", width, font=_font(14)) for entry in shown]
    columns = _num_columns([entry.prompt for entry in shown])
    rows = [slice(start, start + columns) for start in range(0, len(shown), columns)]
    heights = [max(image.height for image in images[row]) for row in rows]
    below = [_LABEL + _LINE * max(len(lines) for lines in captions[row]) for row in rows]
    page_width = 2 * _MARGIN + max(columns * (width + _GUTTER) - _GUTTER, _MIN_WIDTH)
    page_height = 2 * _MARGIN + _HEADING + sum(heights) + sum(below) + (len(rows) - 1) * _GUTTER
    page = Image.new("RGB", (page_width, page_height), _GROUND)
    pen = ImageDraw.Draw(page)
    _draw_heading(pen, page_width, left=heading, right=_counted(len(shown), len(entries)))
    bottom = _MARGIN + _HEADING
    for row, height, extra in zip(rows, heights, below, strict=True):
        bottom += height
        for column, (image, lines, entry) in enumerate(zip(images[row], captions[row], shown[row], strict=True)):
            left = _MARGIN + column * (width + _GUTTER)
            _draw_frame(page, pen, image, at=(left, bottom - image.height))
            label = wrap(_label(entry), width, font=_font(12), num_lines=1)
            _draw_caption(pen, lines, label=label[0], at=(left, bottom))
        bottom += extra + _GUTTER
    return page


def wrap(text: str, width: float, *, font: ImageFont.FreeTypeFont, num_lines: int = 2) -> list[str]:
    """`text` as at most `num_lines` lines no wider than `width` pixels; an ellipsis stands for what is left out."""
    words = _drawable(text[:400], font).split()
    lines: list[str] = []
    while words and len(lines) < num_lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= width:
            line += f" {words.pop(0)}"
        kept = _fit(line, width, font)
        if kept != line:
            words.insert(0, line[len(kept) :])
        lines.append(kept)
    if lines and (words or len(text) > 400):
        kept = _fit(lines[-1], width - font.getlength("…"), font)
        lines[-1] = kept.rstrip(" ,.;:-…") + "…"
    return lines


_MARGIN, _GUTTER, _HEADING, _MIN_WIDTH = 64, 36, 56, 256
_LINE, _LABEL = 18, 27
_GROUND, _EDGE, _BRIGHT, _DIM = (24, 24, 25), (46, 46, 48), (214, 213, 210), (138, 137, 134)


def _drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Letters without the accents that Pillow's own font lacks; an ellipsis for a run of foreign script."""
    plain = unicodedata.normalize("NFKD", "".join(c if c.isprintable() else " " for c in text))
    missing = font.getmask("\uffff")
    boxes = {c for c in set(plain) if not c.isascii() and bytes(font.getmask(c)) == bytes(missing)}
    plain = plain.translate({0x2013: "-", 0x2014: "-"})
    kept = "".join("…" if c in boxes and not unicodedata.combining(c) else c for c in plain)
    return re.sub("…[… ]*…", "…", "".join(c for c in kept if not unicodedata.combining(c)))


def _thumbnail(path: Path) -> Image.Image:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"cannot read {path} for the contact sheet", hint="move it away and resume") from error
    longest = max(image.size)
    scale = 2.0 if longest <= 192 else min(1.0, 320 / longest)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS)


def _num_columns(prompts: Sequence[str | None]) -> int:
    """Keep the images of a prompt on one row where every prompt has as many; else fill a landscape page evenly."""
    groups = [len(list(group)) for _, group in itertools.groupby(prompts)]
    widest = min(8, len(prompts), math.ceil(math.sqrt(1.9 * len(prompts))))
    if len(groups) > 1 and len(set(groups)) == 1 and 2 <= groups[0] <= 8:
        return max(1, widest // groups[0]) * groups[0]
    num_rows = -(-len(prompts) // widest)
    return -(-len(prompts) // num_rows)


def _counted(shown: int, total: int) -> str:
    images = f"{total} image" if total == 1 else f"{total} images"
    return f"Made by AI · {images}" if shown == total else f"Made by AI · the first {shown} of {images}"


def _label(entry: Entry) -> str:
    label = f"{Path(entry.file).stem}  ·  seed {entry.seed}"
    return label if entry.search is None else f"{label}  ·  best of {len(entry.search.candidates)}"


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _draw_heading(pen: ImageDraw.ImageDraw, page_width: int, *, left: str, right: str) -> None:
    baseline = _MARGIN + 10
    pen.text((_MARGIN, baseline), left, font=_font(17), fill=_BRIGHT, anchor="ls")
    pen.text((page_width - _MARGIN, baseline), right, font=_font(13), fill=_DIM, anchor="rs")
    pen.line((_MARGIN, baseline + 16, page_width - _MARGIN - 1, baseline + 16), fill=_EDGE)


def _draw_frame(page: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, *, at: tuple[int, int]) -> None:
    left, top = at
    page.paste(image, at)
    pen.rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=_EDGE)


def _draw_caption(pen: ImageDraw.ImageDraw, lines: Sequence[str], *, label: str, at: tuple[int, int]) -> None:
    left, baseline = at[0], at[1] + 24
    for line in lines:
        pen.text((left, baseline), line, font=_font(14), fill=_BRIGHT, anchor="ls")
        baseline += _LINE
    pen.text((left, baseline + 1), label, font=_font(12), fill=_DIM, anchor="ls")


def _fit(line: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    while len(line) > 1 and font.getlength(line) > width:
        line = line[:-1]
    return line


def _displaced(manifest: RunFile, requests: Sequence[Request]) -> list[Request]:
    """What waited in the first rows of a run, and is not among the requests that take its place."""
    done, asked = {(entry.row, entry.prompt, entry.asked_seed) for entry in manifest.images}, set(requests)
    rows = enumerate(manifest.requests[: len(requests)])
    return [one for row, one in rows if one not in asked and (row, one.prompt, one.seed) not in done]


def _variants(stem: str) -> Iterator[str]:
    return itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))


def _check(requests: Sequence[Request], signer: Signer | None) -> None:
    for request in requests:
        if request.name:
            file_stem(request.name)
    if signer is not None:
        signer.check()


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot make the folder {folder}: {error.strerror}", hint="choose another --out")
