"""A checkpoint that a person names, found and read, and a module that holds exactly its tensors. Knows no model."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from realgen.core.errors import ModelError
from realgen.hub.card import Card, HubSource
from realgen.hub.convert import read_weights
from realgen.hub.fetch import locate
from realgen.hub.names import find_local

_FILES = ("*.json", "*.safetensors", "*.txt")

Module = TypeVar("Module", bound=nn.Module)


def find(model: str) -> Path:
    """The folder or file `model`; a hub id is fetched into the hub library's cache. ModelError where there is none."""
    if (path := find_local(model)) is not None:
        return path
    source = HubSource(kind="hub", repo=model, allow_patterns=_FILES)
    card = Card(name=model, summary="", room="scorers", plugin="", licence="", source=source, min_memory_gb=1)
    try:
        return locate(card)
    except ModelError as error:
        raise ModelError(error.message, hint=f"go online, or give a folder that holds {model}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a folder or a file by name, on the CPU; in a folder, model.safetensors goes before all else."""
    single = path / "model.safetensors"
    return read_weights(single if single.is_file() else path)


def assemble(make: Callable[[], Module], tensors: Mapping[str, Tensor], *, source: str) -> Module:
    """`make()` with these tensors as its weights, frozen, in evaluation mode; no random weights are ever drawn.

    Raises ModelError, naming them, for tensors that are missing, that have no place, or that have another shape.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = make()
    wanted = {key: value.shape for key, value in module.state_dict().items()}
    hint = "is it whole, and made for this plug-in?"
    if missing := wanted.keys() - tensors.keys():
        raise ModelError(f"{source} lacks {_names(missing)}", hint=hint)
    if extra := tensors.keys() - wanted.keys():
        raise ModelError(f"{source} holds {_names(extra)}, which this model has no place for", hint=hint)
    if wrong := [key for key, shape in wanted.items() if tensors[key].shape != shape]:
        first = f"{wrong[0]}, {tuple(tensors[wrong[0]].shape)} instead of {tuple(wanted[wrong[0]])}"
        raise ModelError(f"{source} holds {len(wrong)} tensors of another shape: {first}", hint=hint)
    module.load_state_dict(dict(tensors), assign=True)
    frozen: Module = module.requires_grad_(False).eval()
    return frozen


def shape_of(tensors: Mapping[str, Tensor], key: str, *, source: str) -> torch.Size:
    """The shape of a tensor; ModelError where it is missing."""
    if key not in tensors:
        raise ModelError(f"{source} lacks {key}", hint="is it whole, and made for this plug-in?")
    return tensors[key].shape


def _names(keys: Iterable[str]) -> str:
    ranked = sorted(keys)
    return ", ".join(ranked[:3]) + (f" and {len(ranked) - 3} more" if len(ranked) > 3 else "")
