"""run.json: what made the images of one folder, how they scored, and why each was chosen. Reads and writes the record.

Knows nothing of how an image is made, nor whether its file is still there.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError

from realgen.core.errors import InputError
from realgen.core.spec import Spec
from realgen.core.types import Candidate, Choice, Request, Sample, Score
from realgen.provenance import TRAINED

_RUN_FILE = re.compile(r"run(?:-(\d+))?\.json")


class Search(Spec):
    """How the image was chosen: the best of its candidates, the first of which has the seed that was asked for."""

    asked_seed: int
    why: str
    candidates: tuple[Candidate, ...]

    @classmethod
    def of(cls, choice: Choice, *, with_reasons: bool) -> Self:
        """The record of a choice; an unscored candidate's reason can quote the prompt, and may be left out."""
        candidates = choice.candidates
        if not with_reasons:
            candidates = tuple(replace(candidate, reason="") for candidate in candidates)
        return cls(asked_seed=choice.asked.seed, why=choice.why, candidates=candidates)


class Entry(Spec):
    """One image in run.json; prompt, text, note and the reasons of the unscored are withheld where that was asked for.

    `row` and the seed that was asked for say which request it answers.
    """

    file: str
    row: int
    prompt: str | None
    text: str | None
    note: str | None
    seed: int
    size: tuple[int, int]
    seconds: float | None
    recorded: bool
    scores: dict[str, Score] = Field(default_factory=dict)
    search: Search | None = None

    @classmethod
    def of(cls, sample: Sample, *, file: str, row: int, seconds: float | None, recorded: bool) -> Self:
        """The record of a sample that was saved as `file`."""
        return cls(
            file=file,
            row=row,
            prompt=sample.request.prompt if recorded else None,
            text=sample.text if recorded else None,
            note=sample.note if recorded else None,
            seed=sample.request.seed,
            size=sample.image.size,
            seconds=None if seconds is None else round(seconds, 3),
            recorded=recorded,
            scores=_scores(sample.scores, with_reasons=recorded),
            search=None if sample.choice is None else Search.of(sample.choice, with_reasons=recorded),
        )

    @property
    def asked_seed(self) -> int:
        """The seed of the request: not the image's own where a search chose it."""
        return self.seed if self.search is None else self.search.asked_seed


class RunFile(Spec):
    """What run.json holds. `requests` is all that was asked for, drawn or not; empty where prompts are withheld."""

    model_config = ConfigDict(populate_by_name=True)

    schema_number: Literal[1] = Field(default=1, alias="schema")
    version: str
    created: str
    digital_source_type: str = TRAINED
    recipe: dict[str, Any]
    requests: tuple[Request, ...] = ()
    best_of: int | None = None
    is_signed: bool = False
    records_prompts: bool
    suffix: str
    contact_sheet: str | None = None
    images: tuple[Entry, ...] = ()

    @property
    def num_candidates(self) -> int | None:
        """How many candidates each image was chosen of, also where only its images say so; None without a search."""
        return self.best_of or max((len(one.search.candidates) for one in self.images if one.search), default=None)


def newest(folder: Path) -> Path:
    """The run.json, or the run-N.json of the largest N, of a folder; InputError where there is none."""
    files = folder.iterdir() if folder.is_dir() else ()
    found = [(int(match[1] or 1), file) for file in files if (match := _RUN_FILE.fullmatch(file.name))]
    if not found:
        raise InputError(f"{folder} holds no run (no run.json)", hint="give the folder that realgen generate made")
    return max(found)[1]


def load(path: Path) -> RunFile:
    """The record in `path`; InputError says what is wrong with it."""
    hint = "it was written by another version of RealGen, or changed: start a new run"
    try:
        return RunFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}", hint=hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}: {' '.join(str(error).split())}", hint=hint) from error


def dump(record: RunFile) -> bytes:
    """The file's bytes. What was asked for comes last: it can be long, stays as it is, and is written out but once."""
    said = record.model_dump(mode="json", by_alias=True, exclude={"requests"})
    text = json.dumps(said, ensure_ascii=False, indent=2).removesuffix("\n}")
    whole = f'{text},\n  "requests": {_listed(record.requests)}\n}}\n'
    return whole.encode(errors="backslashreplace")  # half a surrogate pair becomes its JSON escape


@lru_cache(maxsize=1)
def _listed(requests: tuple[Request, ...]) -> str:
    rows = ",\n    ".join(json.dumps(asdict(request), ensure_ascii=False) for request in requests)
    return f"[\n    {rows}\n  ]" if rows else "[]"


def _scores(scores: Mapping[str, Score], *, with_reasons: bool) -> dict[str, Score]:
    if with_reasons:
        return dict(scores)
    return {name: replace(score, reason="") for name, score in scores.items()}
