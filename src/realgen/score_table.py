"""The scores of many pictures as a table: a row a picture, and each scorer's mean with its interval. Prints nothing."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from realgen.core.types import Metric, Score, ScorerInfo
from realgen.formulas import stats

LARGE = 2000
"""Values from which on the interval is the normal distribution's: a bootstrap would not differ, but need the memory."""


@dataclass(frozen=True, slots=True)
class Row:
    """One picture's scores by the scorer's name; `reason` says why it could not be read."""

    file: str
    prompt: str | None
    scores: Mapping[str, Score] = field(default_factory=dict)
    reason: str = ""


def summarise(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Metric]:
    """Each scorer's mean over the pictures that it scored, with a 95 % interval; NaN where there is none.

    `unscored` counts the readable pictures without a value. The interval is a percentile bootstrap of a fixed seed,
    the normal one for `LARGE` values and more; of a single value it is not known.
    """
    readable = [row.scores for row in rows if not row.reason]
    return {name: _metric([scores[name].value for scores in readable]) for name in names}


def as_json(rows: Sequence[Row], metrics: Mapping[str, Metric], infos: Mapping[str, ScorerInfo]) -> dict[str, Any]:
    """The table as plain values; what is not known is null."""
    return {
        "scorers": {name: {"info": _plain(asdict(infos[name])), **_plain(asdict(metrics[name]))} for name in metrics},
        "images": [asdict(row) for row in rows],
        "unreadable": sum(bool(row.reason) for row in rows),
    }


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """The table as CSV: file, prompt, a column a scorer (empty where unscored), and the reasons."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["file", "prompt", *names, "reason"])
    for row in rows:
        values = [row.scores[name].value if name in row.scores else None for name in names]
        writer.writerow([row.file, row.prompt or "", *values, row.reason or "; ".join(reasons(row))])
    return file.getvalue().encode(errors="backslashreplace").decode()


def reasons(row: Row) -> list[str]:
    """Why scorers left a picture unscored."""
    return [f"{name}: {score.reason or 'no reason given'}" for name, score in row.scores.items() if score.value is None]


def _metric(found: Sequence[float | None]) -> Metric:
    values = [value for value in found if value is not None]
    n, unscored = len(values), len(found) - len(values)
    if n < 2:
        return Metric(values[0] if values else math.nan, math.nan, math.nan, n=n, unscored=unscored)
    tensor = torch.tensor(values, dtype=torch.float64)
    if n < LARGE:
        mean, low, high = stats.bootstrap(tensor, generator=torch.Generator().manual_seed(0))
    else:
        mean, half = float(tensor.mean()), 1.96 * float(tensor.std()) / math.sqrt(n)
        low, high = mean - half, mean + half
    return Metric(mean, low, high, n=n, unscored=unscored)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    is_number = {name: not isinstance(value, float) or math.isfinite(value) for name, value in values.items()}
    return {name: value if is_number[name] else None for name, value in values.items()}
