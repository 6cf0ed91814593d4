"""What a scoring server serves: the recipe's scorers, each with a fingerprint that says what exactly scores."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realgen import __version__
from realgen.core.errors import ConfigError
from realgen.core.protocols import Scorer
from realgen.core.recipes import GenerateRecipe, ScoreRecipe
from realgen.core.spec import Plug
from realgen.hub import card as cards
from realgen.hub import fetch
from realgen.hub.integrity import MANIFEST, sha256_of
from realgen.hub.names import expand
from realgen.hub.plugs import configure
from realgen.wiring.use import build_scorers


def load(recipe: GenerateRecipe | ScoreRecipe) -> dict[str, tuple[Scorer, str]]:
    """By name: the live scorer and its fingerprint. The files that cards name are fetched where they are missing."""
    scorers = build_scorers(recipe)
    return {name: (scorer, fingerprint(recipe.scorers[name])) for name, scorer in scorers.items()}


def fingerprint(plug: Plug) -> str:
    """The plug's name with a hash of its options, its weights' bytes and this program's version.

    Where two servers give the same, they give the same scores but for rounding. The paths of the files do not count.
    """
    options: dict[str, Any] = configure("scorers", plug).model_dump(mode="json")
    if plug.card is not None and options.get("model", "") is None:
        options["model"] = str(fetch.locate(cards.read(plug.card)))
    said = json.dumps([__version__, plug.name, _without_paths(options)], sort_keys=True)
    return f"{plug.card or plug.name}@{hashlib.sha256(said.encode()).hexdigest()[:16]}"


_MODELS = frozenset({"model", "base", "tower", "tokenizer"})
"""Options that name a folder, or a repository of the hub."""


def _without_paths(value: Any, *, is_model: bool = False) -> Any:
    """`value` with every path that exists, and every card of a plug within, replaced by the files' hashes."""
    if isinstance(value, Mapping):
        hashed = {key: _without_paths(inner, is_model=key in _MODELS) for key, inner in value.items()}
        if isinstance(card := value.get("card"), str) and (value.get("options") or {}).get("model") is None:
            hashed["card"] = _contents(fetch.locate(cards.read(card)))
        return hashed
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if isinstance(value, str) and (is_model or "/" in value) and _exists(value):
        return _contents(expand(value))
    return value


def _exists(text: str) -> bool:
    try:
        return expand(text).exists()
    except (ConfigError, OSError, ValueError):
        return False


def _contents(path: Path) -> dict[str, str]:
    if path.is_file():
        return {"": sha256_of(path)}
    files = (file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST)
    return {file.relative_to(path).as_posix(): sha256_of(file) for file in files}
