"""The model that a policy is held near: the same module with its adapters off, or a frozen copy of its weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

Reference = Callable[[], AbstractContextManager[None]]
"""Within `reference()` the module computes as it did before training."""


def adapters_off(module: nn.Module) -> Reference:
    """The module without its PEFT adapters (diffusers' own switch)."""

    @contextmanager
    def reference() -> Iterator[None]:
        module.disable_adapters()  # type: ignore[operator]
        try:
            yield
        finally:
            module.enable_adapters()  # type: ignore[operator]

    return reference


def frozen_copy(module: nn.Module) -> Reference:
    """The module with the weights that it has now; they are kept a second time."""
    kept = {name: value.detach().clone() for name, value in module.named_parameters() if value.requires_grad}

    @contextmanager
    def reference() -> Iterator[None]:
        _exchange(module, kept)
        try:
            yield
        finally:
            _exchange(module, kept)

    return reference


@torch.no_grad()
def _exchange(module: nn.Module, kept: dict[str, Tensor]) -> None:
    for name, value in module.named_parameters():
        if name in kept:
            present = value.detach().clone()
            value.copy_(kept[name])
            kept[name] = present
