"""The tensors of `options.model`, and a module that holds exactly them, where the machine says. Knows no detector."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.hub.convert import read_weights
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.names import expand
from realgen.scorers._checkpoint import Module, assemble


def open_weights(model: str | None, plugin: str) -> dict[str, Tensor]:
    """The tensors of a folder, a safetensors file or a PyTorch checkpoint, by name; ModelError where there are none."""
    if model is None:
        raise ConfigError(f"{plugin}: no model", hint="give a card, or options.model=FILE or FOLDER")
    return read_weights(expand(model))


def fill(make: Callable[[], Module], tensors: Mapping[str, Tensor], *, source: str, machine: Machine) -> Module:
    """`make()` with these tensors and no others, frozen, in evaluation mode; ModelError names what does not fit."""
    device, dtype = place_of(machine)
    placed = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    module: Module = assemble(make, placed, source=source).to(device)
    return module


def place_of(machine: Machine) -> tuple[torch.device, torch.dtype]:
    """Device and number format of a detector: float32 unless the machine asks for another, as its authors compute."""
    device = pick_device(machine)
    return device, torch.float32 if machine.dtype == "auto" else pick_dtype(machine, device)
