"""Recipes and profiles as closed, typed records. Reads YAML; knows no plug-in's own options.

Precedence, and that is all of it: field default < recipe < profile < KEY=VALUE.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from realgen.core.errors import ConfigError

SpecType = TypeVar("SpecType", bound="Spec")


class Spec(BaseModel):
    """A closed, frozen record: an unknown key is an error, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Plug(Spec):
    """One plug-in of a room: its file, a model card for it, and its own options."""

    name: str
    """The plug-in's file name without `.py`."""

    card: str | None = None
    """The model card that names its files: see `realgen list cards`."""

    options: dict[str, Any] = Field(default_factory=dict)
    """The plug-in's own options: see `realgen list ROOM`."""


class Machine(Spec):
    """What a run is computed on. It may change rounding, never what is sampled."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live; auto takes CUDA (or ROCm), then MPS, then the CPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto takes bfloat16 where the device computes in it, else float32."""

    offload: Literal["none", "model", "sequential"] = "none"
    """Keep parts on the CPU until they are needed: whole models, or layer by layer (slow, smallest memory)."""

    quantize: Literal["none", "int8", "nf4"] = "none"
    """Load the transformer quantised by bitsandbytes (CUDA)."""

    vae_tiling: bool = False
    """Decode large images in tiles."""

    compile: bool = False
    """Compile what is trained by torch.compile: a minute or two later, then about a quarter faster on a CPU."""

    batch: int = Field(default=8, ge=1)
    """Images drawn at once."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves torch's own choice."""


class GenerateRecipe(Spec):
    """How prompts become images."""

    kind: Literal["generate"]

    prompt_optimizer: Plug | None = None
    """Rewrites the prompt; null draws the prompt as it stands."""

    generator: Plug
    """Draws the text."""

    machine: Machine = Machine()


class TrainRecipe(Spec):
    """What every training has."""

    data: Path | None = None
    """Folder of photographs with a manifest.jsonl."""

    steps: int = Field(ge=1)
    """Optimiser steps."""

    batch: int = Field(ge=1)
    """Samples an optimiser step."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, shared by Muon and AdamW."""

    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the weights' average, which is what is exported."""

    evaluate_every: int = Field(default=500, ge=0)
    """Steps between evaluations on held-out data, with pictures to look at; 0 is never."""

    save_minutes: float = Field(default=4, gt=0)
    """Minutes between checkpoints."""

    snapshots: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    """Shares of the steps at which the average is kept."""

    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn."""

    machine: Machine = Machine()


class AutoencoderRecipe(TrainRecipe):
    """Training of an autoencoder on photographs."""

    kind: Literal["autoencoder"]

    crop: int = Field(default=64, ge=16)
    """Side of a crop in pixels."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    """Channels of each level; each level after the first halves the picture."""

    groups: int = 8
    """Groups of each GroupNorm."""

    latent_channels: int = Field(default=16, ge=1)
    """Channels of the latents."""

    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the KL term against a standard normal; large values wash the colours out."""


class TextDistillationRecipe(TrainRecipe):
    """A fresh FLUX.1 folder around an autoencoder: tokenizers trained, text encoders distilled, the rest untrained."""

    kind: Literal["text_distillation"]

    autoencoder: Path
    """Folder of the trained autoencoder."""

    prompts: tuple[Path, ...] = ()
    """Files with a prompt a line, for the vocabulary."""

    teacher: Path
    """Folder of a sentence encoder of MiniLM's class."""


class FlowSftRecipe(TrainRecipe):
    """Flow-matching training of a generator on captioned photographs, from scratch or from a checkpoint."""

    kind: Literal["flow_sft"]

    model: str
    """The FLUX.1 folder or hub id to start from."""

    size: tuple[int, int] = (128, 128)
    """Width and height in pixels; photographs of another size are resized."""

    max_text_tokens: int = Field(default=64, ge=1, le=512)
    """Text length that T5 is padded to."""

    text_learning_rate: float = Field(default=0.0, ge=0)
    """Peak learning rate of the text encoders; 0 keeps them frozen."""

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the empty text, so that guidance can be computed."""

    category_weights: dict[str, float] = Field(default_factory=dict)
    """How much more often a category is drawn than one of weight 1; `none` for photographs without one."""

    distil_guidance: tuple[float, float] | None = None
    """Distil classifier-free guidance of the model as it stands, at scales of this range, into its embedding."""

    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters; 0 trains all weights."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts drawn at every evaluation."""


class ClassifierRecipe(TrainRecipe):
    """Training of a classifier of photographs by category, the yardstick for a generator."""

    kind: Literal["classifier"]

    categories: tuple[str, ...] = Field(min_length=2)
    """The categories that it tells apart; photographs of others are left out."""


Recipe = GenerateRecipe | AutoencoderRecipe | TextDistillationRecipe | FlowSftRecipe | ClassifierRecipe
_KINDS = {str(kind.model_fields["kind"].annotation).split("'")[1]: kind for kind in get_args(Recipe)}
_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])


class Profile(Spec):
    """What machine a recipe runs on."""

    machine: Machine = Machine()


def load(name: str, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The merged, validated recipe `name` (shipped, or a path), with a profile and KEY=VALUE overrides on top."""
    layers = [read_layer("recipes", name)]
    if profile is not None:
        layers.append(read_layer("profiles", profile))
        validate(Profile, layers[-1], where=f"profile {profile}")
    layers += [parse_override(text) for text in overrides]
    merged: dict[str, Any] = {}
    for layer in layers:
        merged = merge(merged, layer)
    return from_mapping(merged, where=f"recipe {name}")


def from_mapping(values: Mapping[str, Any], *, where: str) -> Recipe:
    """A merged recipe as its typed record."""
    try:
        return _RECIPE.validate_python(dict(values))
    except ValidationError as error:
        raise _explain(error, where, values) from error


def shipped(folder: Literal["recipes", "profiles"]) -> list[str]:
    """Names of the recipes or profiles in the package."""
    root = resources.files("realgen") / folder
    return sorted(file.name.removesuffix(".yaml") for file in root.iterdir() if file.name.endswith(".yaml"))


def read_layer(folder: Literal["recipes", "profiles"], name: str) -> dict[str, Any]:
    """A shipped file by name, or any YAML file by path, as a mapping."""
    try:
        loaded = yaml.safe_load(read_text(folder, name))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}", hint="mend the file") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{name} holds no mapping", hint="start it with `kind: ...`")
    return loaded


def read_text(folder: Literal["recipes", "profiles"], name: str) -> str:
    """The text of a shipped file by name, or of any file by path."""
    path = Path(name)
    is_path = path.suffix in {".yaml", ".yml"} or "/" in name
    try:
        return (path if is_path else resources.files("realgen") / folder / f"{name}.yaml").read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        hint = "no such file" if is_path else _suggest(name, shipped(folder))
        raise ConfigError(f"unknown {folder.removesuffix('s')} {name!r}", hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {name}: {error}", hint="it must be a text file") from error


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=1` as {"a": {"b": 1}}; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator or not all(key.split(".")):
        raise ConfigError(f"cannot read {text!r}", hint="write KEY=VALUE, such as generator.options.steps=8")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key} is not YAML: {value!r}", hint="quote it") from error
    for part in reversed(key.split(".")):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return nested


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else in `over` replaces what is under it. Associative."""
    merged = dict(under)
    for key, value in over.items():
        held = merged.get(key)
        merged[key] = merge(held, value) if isinstance(held, Mapping) and isinstance(value, Mapping) else value
    return merged


def validate(spec: type[SpecType], values: Mapping[str, Any], *, where: str) -> SpecType:
    """`values` as a record of `spec`; a ConfigError names the first thing that is wrong."""
    try:
        return spec.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(error, where, values, known=list(spec.model_fields)) from error


def _explain(error: ValidationError, where: str, values: Mapping[str, Any], known: Sequence[str] = ()) -> ConfigError:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if path and path[0] in _KINDS:
        path = path[1:]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        names = known if len(path) == 1 and known else _fields_at(values, path[:-1])
        return ConfigError(f"{where}: unknown key {key!r}", hint=_suggest(path[-1], names))
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{where}: {key or 'value'}: {message}", hint=f"it is {first['input']!r:.60}")


def _fields_at(values: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    models: dict[str, type[Spec]] = {"generator": Plug, "prompt_optimizer": Plug, "machine": Machine}
    if path:
        return list(models[path[-1]].model_fields) if path[-1] in models else []
    kind = _KINDS.get(str(values.get("kind")))
    return list(kind.model_fields) if kind else []


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known)
    return f"did you mean {close[0]!r}? known: {listed}" if close else f"known: {listed}"
