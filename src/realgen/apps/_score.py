"""`realgen score`: pictures to a table of scores. Parses words and prints; the rest is done elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from realgen.apps import _show as show
from realgen.apps._options import Json, Paths, ProfileName, RecipeName, split_paths
from realgen.core.errors import ConfigError, InputError, out_of_memory

if TYPE_CHECKING:
    from realgen.core.protocols import Scorer
    from realgen.core.recipes import GenerateRecipe, ScoreRecipe
    from realgen.pictures import Found
    from realgen.score_table import Row


def score(
    words: Paths = None,
    prompt: Annotated[str, typer.Option(help="Prompt of the pictures that come without one.")] = "",
    recipe: RecipeName = "score",
    profile: ProfileName = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the table as CSV.")] = False,
) -> None:
    """Score pictures, each and on average; what cannot be read is listed and counted."""
    from realgen import pictures

    paths, overrides = split_paths(words or [])
    if not paths:
        raise InputError("no picture", hint="realgen score PATH...: pictures, folders, or the run.json of a run")
    if as_json and as_csv:
        raise InputError("--json and --csv", hint="give one of them")
    merged = _load(recipe, profile, overrides)
    found = pictures.find(paths)
    if all(item.reason for item in found):
        raise InputError(f"{found[0].name}: {found[0].reason}", hint="give pictures, folders, or the run.json of a run")
    show.note(f"realgen: {len(found)} to score by {', '.join(merged.scorers)}, loading")
    from realgen import score_table
    from realgen.wiring import use

    scorers = use.build_scorers(merged)
    rows: list[Row] = []
    failure = None
    with show.progress(len(found), "scoring") as bar:
        try:
            for row in _rows(found, scorers, prompt=prompt, batch=merged.machine.batch):
                rows.append(row)
                bar.advance()
        except (MemoryError, RuntimeError) as error:
            failure = out_of_memory(error)
            if failure is None or not rows:
                raise
    show.unscored(rows)
    if not any(score.value is not None for row in rows for score in row.scores.values()):
        raise failure or InputError(f"none of {len(rows)} could be scored", hint="the reasons are above")
    infos = {name: scorer.info for name, scorer in scorers.items()}
    show.cautions(infos)
    show.scores(rows, score_table.summarise(rows, list(scorers)), infos, as_json=as_json, as_csv=as_csv)
    if failure is not None:
        raise failure


def _load(name: str, profile: str | None, overrides: Sequence[str]) -> "ScoreRecipe | GenerateRecipe":
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe, ScoreRecipe

    recipe = config.load(name, profile=profile, overrides=overrides)
    if not isinstance(recipe, ScoreRecipe | GenerateRecipe):
        raise ConfigError(f"{name} is a recipe of kind {recipe.kind}", hint="score needs kind: score or generate")
    if not recipe.scorers:
        hint = "name some, such as scorers.NAME='{name: PLUGIN, card: CARD}': see realgen list scorers"
        raise ConfigError(f"the recipe {name} has no scorers", hint=hint)
    return recipe


def _rows(found: "Sequence[Found]", scorers: "Mapping[str, Scorer]", *, prompt: str, batch: int) -> "Iterator[Row]":
    """A row a picture, in order; at most `batch` pictures are in memory."""
    from realgen import pictures, pipeline
    from realgen.score_table import Row

    for start in range(0, len(found), batch):
        chunk = [pictures.read(item) for item in found[start : start + batch]]
        images = [picture.image for picture in chunk if picture.image is not None]
        prompts = [picture.prompt or prompt for picture in chunk if picture.image is not None]
        scored = zip(prompts, pipeline.score_images(images, prompts, scorers=scorers), strict=True)
        for picture in chunk:
            if picture.image is None:
                yield Row(picture.name, picture.prompt, reason=picture.reason)
            else:
                asked, scores = next(scored)
                yield Row(picture.name, asked or None, scores=scores)
