"""What there is to choose from, and what this machine can run. Looks; changes nothing and loads no model."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, cast

from realgen.core import config, plugins
from realgen.core.errors import ConfigError
from realgen.hub import card as cards

_EXTRAS = {"peft": "train", "c2pa": "c2pa", "fastapi": "serve"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    is_good: bool
    is_needed: bool
    detail: str
    mend: str = ""


def rows(what: str) -> list[dict[str, str]]:
    """The recipes, profiles, cards, or plug-ins of a room, a mapping each."""
    if what in {"recipes", "profiles"}:
        folder = cast("Literal['recipes', 'profiles']", what)
        return [_recipe_row(folder, name) for name in config.shipped(folder)]
    if what == "cards":
        return [_card_row(name) for name in cards.names()]
    if what in plugins.ROOMS:
        return [{"name": name, "what": plugins.describe(what, name)} for name in plugins.names(what)]
    known = ", ".join(("recipes", "profiles", "cards", *plugins.ROOMS))
    raise ConfigError(f"nothing to list called {what!r}", hint=f"known: {known}")


def _recipe_row(folder: Literal["recipes", "profiles"], name: str) -> dict[str, str]:
    text = config.read_text(folder, name)
    about = text.splitlines()[0].removeprefix("#").strip() if text.startswith("#") else ""
    kind = str(config.read_layer(folder, name).get("kind", ""))
    return {"name": name, "kind": kind, "what": about} if folder == "recipes" else {"name": name, "what": about}


def _card_row(name: str) -> dict[str, str]:
    from realgen.hub import fetch

    card = cards.read(name)
    return {
        "name": name,
        "plug-in": f"{card.room}/{card.plugin}",
        "here": "yes" if fetch.is_present(card) else "no",
        "memory": f"{card.min_memory_gb:g} GB",
        "licence": card.licence,
        "what": card.summary,
    }


def diagnose() -> list[Finding]:
    """Everything worth knowing before a first run."""
    return [*_packages(), *_hardware(), *_folders(), *_models()]


def _packages() -> Iterator[Finding]:
    yield Finding("Python", True, True, platform.python_version())
    for name in ("torch", "diffusers", "transformers"):
        try:
            yield Finding(name, True, True, version(name))
        except PackageNotFoundError:
            yield Finding(name, False, True, "not installed", "pip install realgen")
    for name, extra in _EXTRAS.items():
        has = importlib.util.find_spec(name) is not None
        yield Finding(
            name, has, False, "installed" if has else "not installed", "" if has else f'pip install "realgen[{extra}]"'
        )


def _hardware() -> Iterator[Finding]:
    import torch

    from realgen.core.spec import Machine
    from realgen.hub.device import pick_device, pick_dtype

    device = pick_device(Machine())
    dtype = str(pick_dtype(Machine(), device)).removeprefix("torch.")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    yield Finding("device", True, True, f"{device.type}: {name}, {dtype}, {torch.get_num_threads()} CPU threads")
    yield Finding(
        "memory", memory_gb() >= 2, True, f"{memory_gb():.1f} GB", "" if memory_gb() >= 2 else "close programs"
    )


def _folders() -> Iterator[Finding]:
    from realgen.hub.fetch import cache_folder

    for what, folder in (("output folder", Path.cwd()), ("cache folder", cache_folder())):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        is_good = os.access(there, os.W_OK)
        free = shutil.disk_usage(there).free / 1e9
        mend = "" if is_good else "choose another folder (--out, REALGEN_CACHE)"
        yield Finding(what, is_good, True, f"{folder}, {free:.0f} GB free", mend)


def _models() -> Iterator[Finding]:
    from realgen.hub import fetch

    for name in cards.names():
        card = cards.read(name)
        is_here, fits = fetch.is_present(card), memory_gb() >= card.min_memory_gb
        detail = f"needs {card.min_memory_gb:g} GB of {memory_gb():.0f} GB" + ("" if fits else _too_much(card))
        is_needed = card.source.kind == "package"
        mend = "" if is_here else "reinstall realgen" if is_needed else f"realgen fetch {name}"
        yield Finding(f"model {name}", is_here and fits, is_needed, detail, mend)


def _too_much(card: cards.Card) -> str:
    from realgen.core.spec import Machine
    from realgen.hub.device import pick_device

    if card.room == "generators" and pick_device(Machine()).type == "cuda" and memory_gb() > 20:
        return ": more than this GPU holds at once; --profile gpu-24gb draws in turns, with a transformer of 4 bits"
    return ": too much for this machine"


def memory_gb() -> float:
    """Memory for models, in GB: the first GPU's where there is one, else the machine's."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.get_device_properties(0).total_memory) / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
