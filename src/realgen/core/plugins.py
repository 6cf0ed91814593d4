"""A plug-in is a file in a room: found by its name, described by its docstring, checked by its `Options`.

Listing reads the files as text; only `find` imports one.
"""

import ast
import difflib
import importlib
from collections.abc import Mapping
from importlib import resources
from types import ModuleType
from typing import Any

from realgen.core.config import validate
from realgen.core.errors import ConfigError
from realgen.core.spec import Spec

ROOMS = ("prompt_optimizers", "generators", "scorers")


def names(room: str) -> list[str]:
    """The plug-ins of a room."""
    if room not in ROOMS:
        raise ConfigError(f"unknown room {room!r}", hint=f"known: {', '.join(ROOMS)}")
    files = (file.name for file in (resources.files("realgen") / room).iterdir())
    return sorted(name.removesuffix(".py") for name in files if name.endswith(".py") and not name.startswith("_"))


def describe(room: str, name: str) -> str:
    """The first line of the plug-in's docstring, without importing it."""
    source = (resources.files("realgen") / room / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def find(room: str, name: str) -> ModuleType:
    """The plug-in's module."""
    known = names(room)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"no plug-in {name!r} in {room}", hint=f"{hint}known: {', '.join(known)}")
    return importlib.import_module(f"realgen.{room}.{name}")


def configure(room: str, name: str, options: Mapping[str, Any]) -> Spec:
    """The plug-in's options as its own closed record."""
    spec: type[Spec] = find(room, name).Options
    return validate(spec, options, where=f"options of {name}")
