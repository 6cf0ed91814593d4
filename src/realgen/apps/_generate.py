"""`realgen generate`: words to pictures, a run that goes on, or a picture drawn again from what its file records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from realgen import __version__
from realgen.apps import _show as show
from realgen.apps._draw import draw
from realgen.apps._options import (
    BestOf,
    Count,
    DrawnBy,
    Format,
    Guidance,
    Json,
    PixelSize,
    ProfileName,
    PromptFile,
    Raw,
    Recorded,
    Seed,
    Signed,
    Steps,
    Words,
    split_words,
)
from realgen.apps._recipe import Asked, load, of_image, of_run
from realgen.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from realgen.core.recipes import GenerateRecipe
    from realgen.core.types import Request
    from realgen.gallery import Gallery

_NAME_A_REWARD = "--recipe one that has scorers and a reward, or reward.weights.NAME=1 for a scorer NAME"


def generate(
    words: Words = None,
    prompts: PromptFile = None,
    num: Count = 1,
    seed: Seed = 0,
    best_of: BestOf = None,
    raw: Raw = False,
    steps: Steps = None,
    guidance: Guidance = None,
    size: PixelSize = None,
    recipe: DrawnBy = None,
    profile: ProfileName = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default outputs/DATE-TIME.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue the run in this folder; finished rows stay.")] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Draw again what this image's file records.")] = None,
    suffix: Format = None,
    record: Recorded = True,
    sign: Signed = None,
    as_json: Json = False,
) -> None:
    """Draw photographs from words."""
    from realgen.gallery import Gallery
    from realgen.provenance import Signer

    texts, overrides = split_words(words or [])
    asked = Asked(recipe, profile, overrides, _flags(raw=raw, steps=steps, guidance=guidance, size=size))
    signer = Signer(*sign) if sign else None
    merged, optimizer = None, None
    if source is not None:
        alone = {"a prompt": texts, "--prompts": prompts, "-n": num > 1, "--seed": seed, "--best-of": best_of}
        _refuse("--from", alone | {"--resume": resume}, hint="--from draws what the image records")
        merged, wanted, optimizer = _recorded(source, asked)
    else:
        wanted = _asked(texts, prompts, seed=seed, num=num, stride=best_of or 1, goes_on=resume is not None)
    if resume is not None:
        kept = {"--out": out, "--format": suffix, "--no-record": not record}
        _refuse("--resume", kept, hint="a run goes on in its own folder, as it began")
        gallery = Gallery.resume(resume, requests=wanted, signer=signer)
        merged, best_of = _goes_on(gallery, asked, best_of=best_of, has_prompts=bool(wanted))
    merged = merged or load(asked, default="tiny")
    if best_of is not None and merged.reward is None:
        raise ConfigError(f"the recipe {recipe or 'tiny'} has no reward to prefer by", hint=_NAME_A_REWARD)
    if resume is None:
        gallery = Gallery.create(
            out,
            merged.model_dump(mode="json"),
            version=__version__,
            requests=wanted,
            can_go_on=source is None,
            best_of=best_of,
            records_prompts=record,
            suffix=f".{suffix or 'png'}",
            signer=signer,
        )
    draw(merged, gallery, optimizer=optimizer, best_of=best_of)
    show.finished(gallery, as_json=as_json)


def requests_of(texts: Sequence[str], file: str | None, *, seed: int, num: int, stride: int = 1) -> "list[Request]":
    """What a command line asks for, from its words or from a file; `-` reads stdin."""
    from realgen import requests

    if list(texts) == ["-"]:
        texts, file = [], "-"
    if file is None:
        return requests.from_words(texts, seed=seed, count=num, stride=stride)
    if texts:
        raise InputError("prompts on the command line and a file of prompts", hint="give one of them")
    return requests.read_requests(file, seed=seed, count=num, stride=stride)


def _asked(
    texts: Sequence[str], file: str | None, *, seed: int, num: int, stride: int, goes_on: bool
) -> "list[Request]":
    """What is asked for; nothing where a run goes on with what it records."""
    if texts or file is not None or not goes_on:
        return requests_of(texts, file, seed=seed, num=num, stride=stride)
    _refuse("--resume without prompts", {"-n": num > 1, "--seed": seed}, hint="say the prompts too")
    return []


def _flags(*, raw: bool, steps: int | None, guidance: float | None, size: str | None) -> dict[str, Any]:
    """The recipe's keys that were given as options."""
    from realgen.requests import parse_size

    options = {"steps": steps, "guidance": guidance, "size": None if size is None else list(parse_size(size))}
    given = {f"generator.options.{name}": value for name, value in options.items() if value is not None}
    return {"prompt_optimizer": None, **given} if raw else given


def _refuse(beside: str, given: Mapping[str, object], *, hint: str) -> None:
    for name, value in given.items():
        if value:
            raise InputError(f"{name} beside {beside}", hint=hint)


def _goes_on(
    gallery: "Gallery", asked: Asked, *, best_of: int | None, has_prompts: bool
) -> "tuple[GenerateRecipe, int | None]":
    """Recipe and --best-of of a run that goes on as it began; what it holds of other prompts stays, and is said."""
    folder, manifest = gallery.folder, gallery.manifest
    merged, before = of_run(folder, manifest.recipe, asked), manifest.num_candidates
    if not has_prompts and not manifest.requests:
        raise InputError(f"{folder} does not record its prompts", hint="say the same again that began it, and --resume")
    if best_of is None and not has_prompts:
        best_of = before
    if best_of != before:
        hint = "leave --best-of out" if before is None else f"give --best-of {before}"
        raise InputError(f"{folder} was drawn with another --best-of", hint=f"{hint}, or start another run")
    if gallery.num_others:
        show.note(f"realgen: {gallery.num_others} of its pictures answered other prompts, seeds or rows, and stay")
    return merged, best_of


def _recorded(source: Path, asked: Asked) -> "tuple[GenerateRecipe, list[Request], Any]":
    """Recipe, request and text of an image that realgen made."""
    from realgen import provenance
    from realgen.core.types import Request, Rewrite

    record = provenance.read(source)
    if record.prompt is None or record.text is None:
        hint = "it is a contact sheet, or was drawn with --no-record"
        raise InputError(f"{source} does not record its prompt", hint=hint)
    text = record.text
    return (
        of_image(source, record, asked),
        [Request(record.prompt, record.seed, size=record.size)],
        lambda _, *, seeds: [Rewrite(text)] * len(seeds),
    )
