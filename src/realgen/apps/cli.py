"""`realgen`: the command line. Parses words, calls wiring, prints answers; heavy imports wait until they are needed."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realgen.apps import _show as show
from realgen.apps._draw import draw
from realgen.apps._options import (
    BestOf,
    Count,
    Json,
    Overrides,
    ProfileName,
    PromptFile,
    RecipeName,
    Seed,
    Words,
    is_override,
    split_words,
)
from realgen.apps._score import score
from realgen.apps._serve import serve
from realgen.core.errors import ConfigError, InputError, RealGenError

if TYPE_CHECKING:
    from realgen.core.recipes import GenerateRecipe, Recipe
    from realgen.core.types import Request

app = typer.Typer(
    name="realgen", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
_NAME_A_REWARD = "--recipe one that has scorers and a reward, or reward.weights.NAME=1 for a scorer NAME"


@app.command()
def generate(
    words: Words = None,
    prompts: PromptFile = None,
    num: Count = 1,
    seed: Seed = 0,
    best_of: BestOf = None,
    raw: Annotated[bool, typer.Option("--raw", help="Draw the prompt as it stands, without rewriting.")] = False,
    steps: Annotated[int | None, typer.Option(help="Denoiser evaluations a picture.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely the text is followed.")] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Width and height in pixels.")] = None,
    recipe: RecipeName = "tiny",
    profile: ProfileName = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default outputs/DATE-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder; finished rows stay.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Draw again what this image's file records.")] = None,
    suffix: Annotated[str, typer.Option("--format", help="png, jpg or webp.")] = "png",
    record: Annotated[
        bool, typer.Option("--record/--no-record", help="Write the prompt into the files; the AI mark always is.")
    ] = True,
    sign: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="CHAIN KEY", help="Sign by C2PA: certificate chain and key, PEM."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw photographs from words."""
    from realgen import __version__, requests
    from realgen.gallery import Gallery
    from realgen.provenance import Signer

    texts, overrides = split_words(words or [])
    flags = {
        "prompt_optimizer": None if raw else ...,
        "generator.options.steps": steps if steps is not None else ...,
        "generator.options.guidance": guidance if guidance is not None else ...,
        "generator.options.size": list(requests.parse_size(size)) if size is not None else ...,
    }
    if source is not None:
        merged, wanted, optimizer = _recorded(source, texts, best_of)
    else:
        merged = _load_generate(recipe, profile, overrides, flags)
        if best_of is not None and merged.reward is None:
            raise ConfigError(f"the recipe {recipe} has no reward to prefer by", hint=_NAME_A_REWARD)
        wanted, optimizer = _requests(texts, prompts, seed=seed, num=num, stride=best_of or 1), None
    signer = Signer(*sign) if sign else None
    if resume is not None:
        gallery = Gallery.resume(resume, requests=wanted, signer=signer)
    else:
        gallery = Gallery.create(
            out,
            merged.model_dump(mode="json"),
            version=__version__,
            requests=wanted,
            records_prompts=record,
            suffix=f".{suffix}",
            signer=signer,
        )
    draw(merged, gallery, optimizer=optimizer, best_of=best_of)
    show.finished(gallery, as_json=as_json)


app.command()(score)
app.command()(serve)


def _requests(texts: Sequence[str], file: str | None, *, seed: int, num: int, stride: int = 1) -> "list[Request]":
    from realgen import requests

    if list(texts) == ["-"]:
        texts, file = [], "-"
    if file is None:
        return requests.from_words(texts, seed=seed, count=num, stride=stride)
    if texts:
        raise InputError("prompts on the command line and a file of prompts", hint="give one of them")
    return requests.read_requests(file, seed=seed, count=num, stride=stride)


def _load_generate(name: str, profile: str | None, overrides: Sequence[str], flags: dict[str, Any]) -> "GenerateRecipe":
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe

    given = {key: value for key, value in flags.items() if value is not ...}
    for override in overrides:
        key = override.partition("=")[0]
        if key in given:
            raise ConfigError(f"{key} is given twice", hint="use the flag or KEY=VALUE, not both")
    flagged = [f"{key}={json.dumps(value)}" for key, value in given.items()]
    recipe = config.load(name, profile=profile, overrides=[*overrides, *flagged])
    if not isinstance(recipe, GenerateRecipe):
        raise ConfigError(f"{name} is a recipe of kind {recipe.kind}", hint="generate needs kind: generate")
    return recipe


def _recorded(source: Path, texts: Sequence[str], best_of: int | None) -> "tuple[GenerateRecipe, list[Request], Any]":
    """Recipe, request and text of an image that realgen made."""
    from realgen import provenance
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe
    from realgen.core.types import Request, Rewrite

    for given, what in ((texts, "a prompt"), (best_of, "--best-of")):
        if given:
            raise InputError(f"{what} beside --from", hint="--from draws what the image records")
    record = provenance.read(source)
    if record.prompt is None or record.text is None:
        raise InputError(f"{source} does not record its prompt", hint="it was drawn with --no-record")
    recipe = config.from_mapping(record.recipe, where=str(source))
    if not isinstance(recipe, GenerateRecipe):
        raise InputError(f"{source} records no generate recipe", hint="give an image that realgen generate made")
    text = record.text
    return (
        recipe,
        [Request(record.prompt, record.seed, size=record.size)],
        lambda _, *, seeds: [Rewrite(text)] * len(seeds),
    )


@app.command()
def rewrite(
    words: Words = None,
    prompts: PromptFile = None,
    num: Count = 1,
    seed: Seed = 0,
    recipe: RecipeName = "flux",
    profile: ProfileName = None,
    as_json: Json = False,
) -> None:
    """Rewrite prompts into photographic texts, without drawing them."""
    texts, overrides = split_words(words or [])
    merged = _load_generate(recipe, profile, overrides, {})
    wanted = _requests(texts, prompts, seed=seed, num=num)
    if merged.prompt_optimizer is None:
        raise ConfigError(f"the recipe {recipe} has no prompt optimiser", hint="prompt_optimizer.name=template, say")
    from realgen import pipeline
    from realgen.wiring import use

    rewrites = pipeline.rewrite(wanted, None, optimizer=use.build_optimizer(merged))
    show.rewrites(wanted, rewrites, as_json=as_json)


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe or a path.")] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/RECIPE.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder from its checkpoint.")] = None,
    profile: ProfileName = None,
) -> None:
    """Train by a recipe, into a run folder that can be resumed."""
    from realgen.core import config
    from realgen.core.training_recipes import TrainRecipe
    from realgen.wiring import training

    if resume is not None:
        if recipe is not None and not is_override(recipe):
            raise InputError("a recipe beside --resume", hint="--resume continues with the run's own recipe")
        if out is not None:
            raise InputError("--out beside --resume", hint="a run goes on in its own folder")
        merged = training.recipe_of(resume, [word for word in (recipe, *(overrides or [])) if word], profile=profile)
        folder = resume
    elif recipe is not None:
        merged = config.load(recipe, profile=profile, overrides=overrides or [])
        folder = out or Path("runs") / Path(recipe).stem
    else:
        raise InputError("no recipe", hint="realgen train RECIPE, or realgen train --resume RUN")
    if not isinstance(merged, TrainRecipe):
        raise ConfigError(f"{recipe} is a recipe of kind {merged.kind}", hint="realgen generate --recipe draws with it")
    is_main = os.environ.get("RANK", "0") == "0"  # torchrun's: of many processes one speaks
    if is_main:
        show.note(f"realgen: training in {folder}")
    for step, metrics in training.train(merged, folder, resume=resume is not None):
        show.metrics(step, merged.steps, metrics)
    if is_main:
        show.note(f"finished: {folder / 'model'}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder of GRPO.")],
    out: Annotated[Path, typer.Option(help="Folder to write, which must be new or empty.")],
    raw: Annotated[bool, typer.Option("--raw", help="The weights as they are, not their average.")] = False,
    merged: Annotated[bool, typer.Option("--merged", help="The whole pipeline with the LoRA merged in.")] = False,
) -> None:
    """Write what a GRPO run has trained, from its last checkpoint."""
    from realgen.wiring import policy

    policy.export(run, out, is_raw=raw, is_merged=merged)
    show.note(f"wrote {out}")


@app.command()
def inspect(image: Annotated[Path, typer.Argument(help="An image that realgen made.")], as_json: Json = False) -> None:
    """Say how an image was made."""
    from realgen import provenance

    show.record(image, provenance.read(image), as_json=as_json)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="recipes, profiles, cards, prompt_optimizers, generators or scorers.")],
    as_json: Json = False,
) -> None:
    """List recipes, profiles, model cards, or the plug-ins of a room."""
    from realgen import catalogue

    show.rows(catalogue.rows(what), as_json=as_json)


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe or a path.")],
    overrides: Overrides = None,
    profile: ProfileName = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Load the models and say what a GRPO run will cost on this machine.")
    ] = False,
) -> None:
    """Validate a recipe without loading a model, and print it merged."""
    import yaml

    from realgen.core import config
    from realgen.wiring import use

    merged = config.load(recipe, profile=profile, overrides=overrides or [])
    use.check(merged)
    if plan:
        show.pairs(_plan(merged))
        return
    print(yaml.safe_dump(merged.model_dump(mode="json"), sort_keys=False), end="")


def _plan(recipe: "Recipe") -> list[tuple[str, str]]:
    from realgen.core.grpo_recipe import FlowGrpoRecipe

    if not isinstance(recipe, FlowGrpoRecipe):
        raise ConfigError(f"--plan of a recipe of kind {recipe.kind}", hint="it counts what kind: flow_grpo costs")
    from realgen.wiring.plan import plan

    return plan(recipe)


@app.command()
def fetch(card: Annotated[str, typer.Argument(help="A model card; see realgen list cards.")]) -> None:
    """Bring a model's files to this machine, check them, and print where they are."""
    from realgen.hub import card as cards
    from realgen.hub import fetch as hub

    with show.transfer() as tell:
        folder = hub.locate(cards.read(card), progress=tell)
    print(folder)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, what is missing, and the command that mends it."""
    from realgen import catalogue

    findings = catalogue.diagnose()
    show.findings(findings, as_json=as_json)
    if any(finding.is_needed and not finding.is_good for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Run the command line; a RealGenError is one line and exit code 2, Ctrl-C is 130."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of what a text-to-image pipeline never uses
    try:
        app()
    except RealGenError as error:
        show.error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
