"""From YAML to recipes: layers merged, overrides parsed, errors explained. Knows no plug-in's own options.

Precedence, and that is all of it: field default < recipe < profile < KEY=VALUE.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from realgen.core.errors import ConfigError
from realgen.core.recipes import Recipe
from realgen.core.spec import Machine, Spec

SpecType = TypeVar("SpecType", bound="Spec")

_KINDS = {str(kind.model_fields["kind"].annotation).split("'")[1]: kind for kind in get_args(Recipe)}
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""What PyYAML raises: the month 13 is a ValueError of its own."""

_RECIPE: TypeAdapter[Recipe] = TypeAdapter(
    Annotated[Recipe, Field(discriminator="kind")], config=ConfigDict(defer_build=True)
)


class Profile(Spec):
    """What machine a recipe runs on."""

    machine: Machine = Machine()


def load(name: str, *, profile: str | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """The merged, validated recipe `name` (shipped, or a path), with a profile and KEY=VALUE overrides on top."""
    return on_top(read_layer("recipes", name), where=f"recipe {name}", profile=profile, overrides=overrides)


def on_top(
    recipe: Mapping[str, Any], *, where: str, profile: str | None = None, overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe that `recipe` makes with a profile and KEY=VALUE overrides over it, validated."""
    layers = [] if profile is None else [read_profile(profile)]
    layers += [parse_override(text) for text in overrides]
    merged = dict(recipe)
    for layer in layers:
        merged = merge(merged, layer)
    return from_mapping(merged, where=where)


def read_profile(name: str) -> dict[str, Any]:
    """A profile, shipped or by path, as a validated layer."""
    layer = read_layer("profiles", name)
    validate(Profile, layer, where=f"profile {name}")
    return layer


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
    except _NOT_YAML as error:
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
    except _NOT_YAML as error:
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
    found = error.errors()
    first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # a typo hides a needed key
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
    """Keys that may stand at `path` of a recipe, as far as its records say; a mapping's own keys may be any."""
    here: Any = _KINDS.get(str(values.get("kind")))
    for part in path:
        if _is_spec(here):
            here = here.model_fields[part].annotation if part in here.model_fields else None
        else:
            here = next((inner for inner in get_args(here) if inner not in {str, type(None)}), None)
        if not _is_spec(here) and type(None) in get_args(here):
            here = next(inner for inner in get_args(here) if inner is not type(None))
    return list(here.model_fields) if _is_spec(here) else []


def _is_spec(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Spec)


def _suggest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known)
    return f"did you mean {close[0]!r}? known: {listed}" if close else f"known: {listed}"
