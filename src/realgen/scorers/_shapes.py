"""The sizes of a detector's tower, read from its tensors' shapes. Builds nothing."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from realgen.core.errors import ModelError

HEAD_SIZE = 64
"""Channels of an attention head, in CLIP ViT-L and in DINOv3 ViT-L; no tensor's shape tells it."""

_SHOWN = 3  # names in a message


@dataclass(frozen=True, slots=True)
class TowerShape:
    """The sizes of a tower that its tensors tell."""

    width: int
    num_layers: int
    mlp: int
    """Width of the hidden layer between."""
    patch: int
    """Side of a patch in pixels."""
    side: int = 224
    """Side of the picture in pixels; CLIP takes no other."""
    num_registers: int = 0
    """Register tokens of DINOv3."""


def clip_shape(tensors: Mapping[str, Tensor], *, root: str, layers: str, source: str) -> TowerShape:
    """A CLIP tower's sizes; `root` and `layers` are what its names start with."""
    patch = size_of(tensors, f"{root}embeddings.patch_embedding.weight", 3, source=source)
    positions = size_of(tensors, f"{root}embeddings.position_embedding.weight", 0, source=source)
    return TowerShape(
        width=_whole_heads(size_of(tensors, f"{root}embeddings.class_embedding", 0, source=source), source),
        num_layers=count(tensors, layers),
        mlp=size_of(tensors, f"{layers}0.mlp.fc1.weight", 0, source=source),
        patch=patch,
        side=patch * math.isqrt(positions - 1),
    )


def dino_shape(tensors: Mapping[str, Tensor], *, source: str) -> TowerShape:
    """A DINOv3 tower's sizes."""
    return TowerShape(
        width=_whole_heads(size_of(tensors, "embeddings.cls_token", 2, source=source), source),
        num_layers=count(tensors, "layer."),
        mlp=size_of(tensors, "layer.0.mlp.up_proj.weight", 0, source=source),
        patch=size_of(tensors, "embeddings.patch_embeddings.weight", 3, source=source),
        num_registers=size_of(tensors, "embeddings.register_tokens", 1, source=source),
    )


def size_of(tensors: Mapping[str, Tensor], name: str, dim: int, *, source: str) -> int:
    """Length of one dimension of one tensor; ModelError where there is no such tensor or dimension."""
    if name not in tensors or dim >= tensors[name].ndim:
        message = f"{source} is not for this plug-in: it lacks {name}, and holds {listed(tensors)}"
        raise ModelError(message, hint="give another file or plug-in")
    length: int = tensors[name].shape[dim]
    return length


def count(tensors: Iterable[str], prefix: str) -> int:
    """How many numbered parts `prefix0...`, `prefix1...` there are, by the highest number."""
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix))
    return 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _whole_heads(width: int, source: str) -> int:
    if width % HEAD_SIZE:
        raise ModelError(f"{source}: its width {width} is no multiple of {HEAD_SIZE}", hint="give another file")
    return width
