"""`realgen`: the command line. Parses words, calls wiring, prints answers; heavy imports wait until they are needed."""

import io
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from realgen.apps import _show as show
from realgen.apps._generate import generate, requests_of
from realgen.apps._options import (
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
from realgen.apps._recipe import Asked, load
from realgen.apps._score import score
from realgen.apps._serve import serve
from realgen.core.errors import ConfigError, InputError, RealGenError, for_person
from realgen.hub.names import expand

if TYPE_CHECKING:
    from realgen.core.recipes import Recipe

_PATH_AT_HOME = re.compile(r"(--(?:out|resume|from|prompts|recipe|profile))=(~(?:/.*)?)", re.DOTALL)

app = typer.Typer(
    name="realgen", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
app.command()(generate)
app.command()(score)
app.command()(serve)


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
    merged = load(Asked(recipe, profile, overrides), default="flux")
    wanted = requests_of(texts, prompts, seed=seed, num=num)
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
    """Run the command line; a RealGenError, or no memory, is one line and exit code 2, Ctrl-C is 130."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of what a text-to-image pipeline never uses
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars over weights too
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a name that the terminal's encoding does not hold
    try:
        sys.argv[1:] = _at_home(sys.argv[1:])
        app()
    except (RealGenError, MemoryError, RuntimeError, OSError) as error:
        if (told := for_person(error)) is None:
            raise
        show.error(told)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _at_home(words: list[str]) -> list[str]:
    """`--out=~/path` and its like, which shells leave as they are, with the home folder; nothing behind `--`."""
    end = words.index("--") if "--" in words else len(words)
    found = [_PATH_AT_HOME.fullmatch(word) for word in words[:end]]
    known = [f"{match[1]}={expand(match[2])}" if match else word for match, word in zip(found, words, strict=False)]
    return known + words[end:]


if __name__ == "__main__":
    main()
