"""What commands share: their options, and which words of a command line are KEY=VALUE."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=.*", re.DOTALL)

Overrides = Annotated[list[str] | None, typer.Argument(help="KEY=VALUE pairs that override the recipe.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="PROMPT... [KEY=VALUE...]", help="What to draw; - reads stdin, a prompt a line."),
]
Paths = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PATH... [KEY=VALUE...]",
        help='Pictures, folders of them, patterns such as "shots/*.png", or the run.json of a run, with its prompts.',
    ),
]
RecipeName = Annotated[str, typer.Option("--recipe", help="A shipped recipe or a path; see realgen list recipes.")]
DrawnBy = Annotated[
    str | None, typer.Option("--recipe", help="A shipped recipe or a path, default tiny; see realgen list recipes.")
]
ProfileName = Annotated[str | None, typer.Option("--profile", help="What machine it runs on; shipped, or a path.")]
Count = Annotated[int, typer.Option("-n", "--num", min=1, help="Pictures a prompt, with seeds SEED, SEED+1, ...")]
BestOf = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="K", help="Keep the best of K seeds in a row, by the recipe's reward; -n N draws N x K."
    ),
]
Seed = Annotated[int, typer.Option(help="The first seed.")]
PromptFile = Annotated[
    str | None, typer.Option("--prompts", help="File of prompts: .txt, or .jsonl/.csv with prompt, seed, size, name.")
]
Raw = Annotated[bool, typer.Option("--raw", help="Draw the prompt as it stands, without rewriting.")]
Steps = Annotated[int | None, typer.Option(help="Denoiser evaluations a picture.")]
Guidance = Annotated[float | None, typer.Option(help="How closely the text is followed.")]
PixelSize = Annotated[str | None, typer.Option(metavar="WxH", help="Width and height in pixels.")]
Format = Annotated[str | None, typer.Option("--format", help="png, jpg or webp; default png.")]
Recorded = Annotated[
    bool, typer.Option("--record/--no-record", help="Write the prompt into the files; the AI mark always is.")
]
Signed = Annotated[
    tuple[Path, Path] | None,
    typer.Option("--sign", metavar="CHAIN KEY", help="Sign by C2PA: certificate chain and key, PEM."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def is_override(word: str) -> bool:
    """Whether a word reads as KEY=VALUE."""
    return _OVERRIDE.fullmatch(word) is not None


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts and KEY=VALUE overrides of a command line."""
    return _split(words, is_override)


def split_paths(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Paths and KEY=VALUE overrides of a command line; what is there as a file is a path, whatever it is called."""
    return _split(words, lambda word: is_override(word) and not Path(word).exists())


def _split(words: Sequence[str], is_setting: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    return [word for word in words if not is_setting(word)], [word for word in words if is_setting(word)]
