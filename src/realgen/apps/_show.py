"""What the command line prints: answers on stdout, everything else on stderr. Knows no logic."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core.errors import RealGenError
from realgen.core.types import Progress, Request, Rewrite, Sample

if TYPE_CHECKING:
    from realgen.catalogue import Finding
    from realgen.gallery import Gallery
    from realgen.provenance import Record


def note(text: str) -> None:
    """A line for the person, not for a pipe."""
    print(text, file=sys.stderr, flush=True)


def error(failure: RealGenError) -> None:
    """One line: what happened, and what to do."""
    hint = f" ({failure.hint})" if failure.hint else ""
    note(f"error: {' '.join(failure.message.split())}{hint}")


class Bar:
    """Progress over the pictures of a run, with the step within the batch in work."""

    def __init__(self, bar: Any, total: int) -> None:
        self._bar = bar
        self._task = bar.add_task("drawing", total=total, step="")

    def within(self, progress: Progress) -> None:
        """The batch in work has gone a step further."""
        self._bar.update(self._task, step=f"step {progress.done}/{progress.total}")

    def drawn(self, sample: Sample, path: Path) -> None:
        """One picture is finished."""
        self._bar.update(self._task, advance=1, step="")
        rewritten = "" if sample.text == sample.request.prompt else f"  {sample.text}"
        kept = f"  (prompt kept: {sample.note})" if sample.note else ""
        self._bar.console.print(f"{path}{rewritten}{kept}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(total: int) -> Iterator[Bar]:
    """A progress bar on stderr, for `total` pictures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}"))
    console = Console(stderr=True)
    with RichProgress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield Bar(bar, total)


@contextmanager
def transfer() -> Iterator[Callable[[Any], None]]:
    """A progress bar on stderr for a fetch; what it yields is told how far the fetch is."""
    from rich.console import Console
    from rich.progress import DownloadColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), *RichProgress.get_default_columns()[1:2], DownloadColumn())
    console = Console(stderr=True)
    with RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("fetching", total=None)
        yield lambda told: bar.update(task, description=told.stage, completed=told.done, total=told.total)


def finished(gallery: "Gallery", *, as_json: bool) -> None:
    """Where the pictures are."""
    images = [str(gallery.folder / entry.file) for entry in gallery.manifest.images]
    if as_json:
        sheet = gallery.manifest.contact_sheet
        print(
            json.dumps(
                {
                    "folder": str(gallery.folder),
                    "run": str(gallery.run_file),
                    "contact_sheet": str(gallery.folder / sheet) if sheet else None,
                    "images": [
                        {**entry.model_dump(mode="json"), "file": str(gallery.folder / entry.file)}
                        for entry in gallery.manifest.images
                    ],
                },
                indent=2,
            )
        )
    else:
        print(images[0] if len(images) == 1 else f"{gallery.folder} ({len(images)} pictures)")


def rewrites(requests: Sequence[Request], texts: Sequence[Rewrite], *, as_json: bool) -> None:
    """Each prompt's text; a prompt that was kept says why."""
    for request, rewritten in zip(requests, texts, strict=True):
        if as_json:
            print(json.dumps({"prompt": request.prompt, "seed": request.seed, **asdict(rewritten)}))
        else:
            print(rewritten.text)
            if rewritten.reason:
                note(f"prompt kept: {rewritten.reason}")


def record(image: Path, found: "Record", *, as_json: bool) -> None:
    """How an image was made."""
    fields = {"file": str(image), "made_by_ai": found.is_ai, **asdict(found)}
    if as_json:
        print(json.dumps(fields, indent=2))
        return
    for name, value in fields.items():
        print(f"{name.replace('_', ' '):20} {json.dumps(value) if isinstance(value, dict) else value}")


def rows(table: Sequence[Mapping[str, str]], *, as_json: bool) -> None:
    """A table, its columns as wide as they need."""
    if as_json:
        print(json.dumps(list(table), indent=2))
        return
    names = list(table[0]) if table else []
    widths = [max(len(row[name]) for row in table) for name in names]
    for row in table:
        print("  ".join(row[name].ljust(width) for name, width in zip(names, widths, strict=True)).rstrip())


def metrics(step: int, steps: int, values: Mapping[str, float]) -> None:
    """One line of a training."""
    print(f"{step}/{steps}  " + "  ".join(f"{name} {value:.5g}" for name, value in values.items()), flush=True)


def findings(found: "Sequence[Finding]", *, as_json: bool) -> None:
    """What the machine can do."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
        return
    for finding in found:
        sign = "ok     " if finding.is_good else "missing" if finding.is_needed else "-      "
        print(f"{sign}  {finding.what:28} {finding.detail}" + (f"  -> {finding.mend}" if finding.mend else ""))
