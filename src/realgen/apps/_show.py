"""What the command line prints: answers on stdout, everything else on stderr. Knows no logic."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from realgen.catalogue import Finding
    from realgen.core.errors import RealGenError
    from realgen.core.types import Metric, Progress, Request, Rewrite, Sample, ScorerInfo
    from realgen.gallery import Gallery
    from realgen.provenance import Record
    from realgen.score_table import Row


def note(text: str) -> None:
    """A line for the person, not for a pipe."""
    print(text, file=sys.stderr, flush=True)


def error(failure: "RealGenError") -> None:
    """One line: what happened, and what to do."""
    hint = f" ({failure.hint})" if failure.hint else ""
    note(f"error: {' '.join(failure.message.split())}{hint}")


class Bar:
    """Progress over the pictures of a run, with the step within the batch in work."""

    def __init__(self, bar: Any, total: int, doing: str = "drawing") -> None:
        self._bar = bar
        self._task = bar.add_task(doing, total=total, step="")

    def within(self, progress: "Progress") -> None:
        """The batch in work has gone a step further."""
        self._bar.update(self._task, step=f"step {progress.done}/{progress.total}")

    def drawn(self, sample: "Sample", path: Path) -> None:
        """One picture is finished."""
        self.advance()
        rewritten = "" if sample.text == sample.request.prompt else f"  {sample.text}"
        kept = f"  (prompt kept: {sample.note})" if sample.note else ""
        line = f"{path}{rewritten}{kept}{_chosen(sample)}"
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def advance(self) -> None:
        """One more is done."""
        self._bar.update(self._task, advance=1, step="")


def _chosen(sample: "Sample") -> str:
    if sample.choice is None:
        return ""
    why, seed = sample.choice.why, sample.request.seed
    reason = next((one.reason for one in sample.choice.candidates if one.seed == seed), "")
    return f"  (seed {seed}: {why}{': ' if reason else ''}{reason})"


@contextmanager
def progress(total: int, doing: str = "drawing") -> Iterator[Bar]:
    """A progress bar on stderr, for `total` pictures."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[step]}"))
    console = Console(stderr=True)
    with RichProgress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        yield Bar(bar, total, doing)


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


def unscored(rows: "Sequence[Row]") -> None:
    """What could not be read, a line each, and how many; what could not be scored, a line for each reason."""
    from realgen.score_table import reasons

    unreadable = [row for row in rows if row.reason]
    for row in unreadable:
        note(f"unreadable: {row.file}: {row.reason}")
    missed: dict[str, list[str]] = {}
    for row in rows:
        for reason in reasons(row):
            missed.setdefault(reason, []).append(row.file)
    for reason, files in missed.items():
        others = f" and {len(files) - 1} more" if len(files) > 1 else ""
        note(f"unscored: {files[0]}{others}: {reason}")
    if unreadable:
        note(f"{len(unreadable)} of {len(rows)} could not be read")


def cautions(infos: "Mapping[str, ScorerInfo]") -> None:
    """What scores are not good for, once for all scorers of which the same is said."""
    for caution in dict.fromkeys(info.caution for info in infos.values() if info.caution):
        names = ", ".join(name for name, info in infos.items() if info.caution == caution)
        note(f"{names}: {caution}")


def scores(
    rows: "Sequence[Row]",
    metrics: "Mapping[str, Metric]",
    infos: "Mapping[str, ScorerInfo]",
    *,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Each picture's scores, and each scorer's mean with its 95 % interval."""
    from realgen import score_table

    if as_json:
        print(json.dumps(score_table.as_json(rows, metrics, infos), indent=2))
    elif as_csv:
        print(score_table.as_csv(rows, list(metrics)), end="")
    else:
        _print_table(rows, metrics, infos)


def _print_table(rows: "Sequence[Row]", metrics: "Mapping[str, Metric]", infos: "Mapping[str, ScorerInfo]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_footer=True)
    table.add_column("picture", footer=Text("mean\n95 %\nscored"), overflow="fold")
    for name, metric in metrics.items():
        held_out = "\n(held out)" if infos[name].is_held_out else ""
        table.add_column(Text(f"{name}{held_out}"), footer=Text(_footer(metric)), justify="right", no_wrap=True)
    for row in rows:
        values = (row.scores[name].value if name in row.scores else None for name in metrics)
        table.add_row(Text(row.file), *("-" if value is None else f"{value:.4f}" for value in values))
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)  # into a pipe or a file, nothing is cut


def _footer(metric: "Metric") -> str:
    mean = f"{metric.value:.4f}" if metric.n else "-"
    interval = f"{metric.low:.4f} to {metric.high:.4f}" if metric.n > 1 else "-"
    return f"{mean}\n{interval}\n{metric.n}"


def rewrites(requests: "Sequence[Request]", texts: "Sequence[Rewrite]", *, as_json: bool) -> None:
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


def pairs(rows: "Sequence[tuple[str, str]]") -> None:
    """What, and how much of it, a line each."""
    width = max(len(what) for what, _ in rows)
    for what, how_much in rows:
        print(f"{what:{width}}  {how_much}")


def findings(found: "Sequence[Finding]", *, as_json: bool) -> None:
    """What the machine can do."""
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
        return
    for finding in found:
        sign = "ok     " if finding.is_good else "missing" if finding.is_needed else "-      "
        print(f"{sign}  {finding.what:28} {finding.detail}" + (f"  -> {finding.mend}" if finding.mend else ""))
