"""What every trainer of a single model shares: its state for an exact resume, and the export of its average."""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from realgen.train.run import Ema


class Optimizer(Protocol):
    """What is saved of an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """Its moments."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from them."""
        ...


class SingleModelTrainer:
    """One model with `save_pretrained`, its optimiser and its average; data and noise follow from the step."""

    dtype = torch.bfloat16
    """What matrix products and convolutions compute in; wiring sets the machine's."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, ema_decay: float) -> None:
        self._parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "ema": Ema(model, ema_decay)}
        self.model, self.ema = model, self._parts["ema"]

    @property
    def device(self) -> torch.device:
        """Where the model is, and so where it is fed."""
        return next(self.model.parameters()).device

    def export(self, folder: Path) -> None:
        """Write the average as a folder of the model's own library."""
        self.ema.swap(self.model)
        self.model.save_pretrained(folder)
        self.ema.swap(self.model)

    def state_dict(self) -> dict[str, Any]:
        """Model, optimiser and average."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
