"""The processes of a run: how many, which one this is, and what they tell each other. One process needs nothing.

Images are shared out; gradients are summed once an optimiser step, after accumulation. A sharded module sums its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True, slots=True)
class World:
    """The processes of a run."""

    rank: int = 0
    size: int = 1
    is_sharded: bool = False
    talk: distributed.ProcessGroup | None = None
    """The group that objects go through; None is the default one."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """The lists of all processes, one after the other in the order of their ranks."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, list(values), group=self.talk)
        return [value for part in parts for value in part]

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the processes, by name; every process must give the same names."""
        if self.size == 1:
            return dict(values)
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, dict(values), group=self.talk)
        return {name: sum(part[name] for part in parts) for name in values}

    def agree(self, flag: bool) -> bool:  # noqa: FBT001 - the one thing that is said
        """The main process's answer."""
        return bool(self.gather([flag])[0])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of all processes in place, in one message a device and number format."""
        if self.size == 1 or self.is_sharded:
            return
        groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            groups.setdefault((parameter.grad.device, parameter.grad.dtype), []).append(parameter.grad)
        for gradients in groups.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by so that gradients add up: a sharded module takes their mean over processes."""
        return float(self.size) if self.is_sharded else 1.0


def shard(module: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Split the weights of each block, and of what is left of the module, among the processes (FSDP2)."""
    for block in blocks:
        fully_shard(block)
    fully_shard(module)


def whole(tree: Any) -> Any:
    """A state with every sharded tensor put together, so that it is the same for any number of processes."""
    if isinstance(tree, DTensor):
        return tree.full_tensor()
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value) for value in tree)
    return tree


@torch.no_grad()
def put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a parameter, sharded or not."""
    target.copy_(split_as(value, target))


def split_as(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor as the target is kept: on its device, in its number format, sharded where it is."""
    value = value.to(device=target.device, dtype=target.dtype)
    if isinstance(target, DTensor):
        return distribute_tensor(value, target.device_mesh, target.placements)
    return value
