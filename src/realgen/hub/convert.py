"""A published PyTorch checkpoint as plain tensors, and as a safetensors folder; nothing in it is ever executed.

A checkpoint is a pickle, which can hold any program. It is read by torch's restricted reader, which makes tensors and
plain containers alone, and argparse.Namespace, which training scripts leave in. Knows no models.
"""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core.errors import ModelError, unloadable
from realgen.hub.integrity import check_safetensors

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINTS = (".pth", ".pt", ".bin", ".ckpt")
"""How the names of PyTorch checkpoints end."""

_WRAPPERS = ("model", "state_dict")
_BROKEN = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)
_HINT = "fetch it again, or give another file"


def read_weights(path: Path) -> "dict[str, Tensor]":
    """Tensors by name, on the CPU, of a safetensors file, a PyTorch checkpoint, or a folder with one of them."""
    file = _only_file(path) if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"no weights at {path}", hint="give a .safetensors or .pth file, or a folder with one")
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        check_safetensors(file, hint=_HINT)
        tensors: dict[str, Tensor] = load_file(file)
        return tensors
    if file.suffix in CHECKPOINTS:
        return read_checkpoint(file)
    known = ", ".join((".safetensors", *CHECKPOINTS))
    raise ModelError(f"{file} has no known ending", hint=f"known: {known}")


def read_checkpoint(file: Path) -> "dict[str, Tensor]":
    """Tensors by name, on the CPU, without the wrappers `model`, `state_dict` and `module.`.

    Raises ModelError for a file that is damaged, that holds code, or that holds no tensors by name.
    """
    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        if not (zipfile.is_zipfile(file) or _is_pickle(file)):
            raise ModelError(f"{file} is damaged or no PyTorch checkpoint", hint=_HINT) from error
        code = re.search(r"GLOBAL (\S+)", str(error))
        held = f"{code[1]}, which is no tensor" if code else "more than tensors"
        message = f"{file} holds {held}: it was refused, and nothing in it was executed"
        raise ModelError(message, hint="ask its authors for a safetensors file") from error
    except _BROKEN as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise unloadable(error, f"{file} is damaged or no PyTorch checkpoint: {said}", hint=_HINT) from error
    return _unwrapped(loaded, file)


def convert_checkpoint(file: Path, folder: Path) -> None:
    """Write the tensors of a PyTorch checkpoint into `folder` as model.safetensors; ModelError as `read_checkpoint`."""
    import torch
    from safetensors.torch import save_file

    seen: set[int] = set()
    tensors = {}
    for name, tensor in read_checkpoint(file).items():
        storage = tensor.untyped_storage().data_ptr()
        is_shared = storage in seen  # which safetensors does not keep
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if is_shared else tensor.contiguous()
        seen.add(storage)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _only_file(folder: Path) -> Path:
    found = sorted(file for file in folder.iterdir() if file.suffix in {".safetensors", *CHECKPOINTS})
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found) or "none"
    raise ModelError(f"{folder} should hold one file of weights; it holds: {names}", hint="name the file itself")


def _is_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(1) == pickle.PROTO


def _unwrapped(loaded: Any, file: Path) -> "dict[str, Tensor]":
    import torch

    while isinstance(loaded, Mapping) and (inner := [key for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]):
        loaded = loaded[inner[0]]
    items = loaded.items() if isinstance(loaded, Mapping) else ()
    if not items or not all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in items):
        raise ModelError(f"{file} holds no tensors by name", hint="give the file of the weights alone")
    prefix = "module." if all(name.startswith("module.") for name in loaded) else ""
    return {name.removeprefix(prefix): tensor.detach() for name, tensor in loaded.items()}
