"""Which recipe a command draws by: one that is named, that of a run that goes on, or what an image records."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from realgen.core.recipes import GenerateRecipe, Recipe
    from realgen.provenance import Record


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command line says of the recipe."""

    name: str | None
    profile: str | None
    overrides: Sequence[str] = ()
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the recipe that options of their own stand for, and their values."""

    @property
    def settings(self) -> list[str]:
        """All of them as KEY=VALUE; ConfigError where a flag and a KEY=VALUE say the same key."""
        for override in self.overrides:
            if (key := override.partition("=")[0]) in self.flags:
                raise ConfigError(f"{key} is given twice", hint="use the flag or KEY=VALUE, not both")
        return [*self.overrides, *(f"{key}={json.dumps(value)}" for key, value in self.flags.items())]


def load(asked: Asked, *, default: str) -> "GenerateRecipe":
    """The recipe that was asked for; ConfigError where it does not draw."""
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe

    name = asked.name or default
    recipe = config.load(name, profile=asked.profile, overrides=asked.settings)
    if not isinstance(recipe, GenerateRecipe):
        raise ConfigError(f"{name} is a recipe of kind {recipe.kind}", hint="generate needs kind: generate")
    return recipe


def of_run(folder: Path, recorded: Mapping[str, Any], asked: Asked) -> "GenerateRecipe":
    """The recipe of the run in `folder`, on the machine that was asked for; InputError where it would be another."""
    return _again(recorded, asked, where=folder, hint="leave that out, or start another run with --out")


def of_image(image: Path, record: "Record", asked: Asked) -> "GenerateRecipe":
    """The recipe that `image` records, on the machine that was asked for; InputError where it would be another."""
    return _again(record.recipe, asked, where=image, hint="leave that out: --from draws what the image records")


def _again(recorded: Mapping[str, Any], asked: Asked, *, where: Path, hint: str) -> "GenerateRecipe":
    """`recorded` with the asked machine; whatever else is asked must be what is recorded."""
    from realgen.core import config
    from realgen.core.recipes import GenerateRecipe

    before = config.from_mapping(recorded, where=str(where))
    if not isinstance(before, GenerateRecipe):
        raise InputError(f"{where} records no generate recipe", hint="give what realgen generate made")
    if asked.name is not None:
        now: Recipe = load(asked, default=asked.name)
    else:
        now = config.on_top(recorded, where=str(where), profile=asked.profile, overrides=asked.settings)
    if not isinstance(now, GenerateRecipe):
        raise ConfigError(f"{where} was drawn by a recipe of kind generate", hint="leave kind as it is")
    for key in type(before).model_fields:
        if key != "machine" and getattr(now, key) != getattr(before, key):
            raise InputError(f"{where} was drawn with another {key}", hint=hint)
    return now
