"""LAION's aesthetic predictor: how much people like the look of a picture, whatever its prompt.

A head of linear layers on the unit embedding of CLIP ViT-L/14 (improved-aesthetic-predictor, the head trained on SAC,
LAION-Logos and AVA). People rated from 1 to 10 and photographs come out between about 4 and 7; the value is the head's
own, neither clipped nor scaled. The layers have no activation between them, so the head is one direction in the
embedding and a bias, whatever its depth: `info` holds the exact bounds that no picture can leave.
"""

from collections.abc import Mapping, Sequence

import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import CLIPModel

from realgen.core.errors import ConfigError, ModelError
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score, ScorerInfo
from realgen.scorers._checkpoint import find, read_tensors, shape_of
from realgen.scorers._clip import embed_images, load_clip
from realgen.scorers._pixels import Preprocess
from realgen.scorers._scoring import score_batch
from realgen.scorers._weights import fill

_LINEAR = (0, 2, 4, 6, 7)  # between them stood dropout, in training


class Options(Spec):
    """The head and the tower that it stands on."""

    model: str | None = None
    """Folder or file of the head; a card sets it."""

    tower: str = "openai/clip-vit-large-patch14"
    """Folder or hub id of the CLIP whose image embeddings the head was trained on."""


class Head(nn.Module):
    """Linear layers from an embedding (B, D) to a rating (B,)."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Identity() for _ in range(_LINEAR[-1] + 1)]
        for place, wide, narrow in zip(_LINEAR, sizes, sizes[1:], strict=False):
            layers[place] = nn.Linear(wide, narrow)
        self.layers = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Ratings (B,)."""
        ratings: Tensor = self.layers(embeddings)
        return ratings.squeeze(-1)


class Aesthetic:
    """A rating of each image alone."""

    def __init__(self, model: CLIPModel, head: Head, *, preprocess: Preprocess, batch: int, source: str) -> None:
        self._model, self._head, self._preprocess, self._batch = model, head, preprocess, batch
        low, high = bounds(head, model.config.projection_dim)
        self.info = ScorerInfo(low, high, is_detector=False, is_held_out=False, licence="unknown", source=source)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image; the prompts are not read."""
        return score_batch(images, prompts, self._values, prepare=self._preprocess, batch=self._batch)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """Ratings (B,) of pixels (B, 3, H, W) in [0, 1]."""
        return self._rate(self._preprocess.differentiable(pixels))

    def _values(self, prepared: list[Tensor], prompts: list[str]) -> list[float]:
        del prompts
        ratings: list[float] = self._rate(torch.stack(prepared)).tolist()
        return ratings

    def _rate(self, pixels: Tensor) -> Tensor:
        rated: Tensor = self._head(embed_images(self._model, pixels))
        return rated


@torch.no_grad()
def bounds(head: Head, width: int) -> tuple[float, float]:
    """The least and the greatest rating of a unit embedding: the head is affine, so bias ∓ length of the gradient."""
    weight = head.layers[0].weight
    bias = head(torch.zeros(1, width).to(weight))
    gradient = head(torch.eye(width).to(weight)) - bias
    length = gradient.norm() * (1 + 1e-5)  # rounding
    return (bias - length).item(), (bias + length).item()


def build(options: Options, machine: Machine) -> Aesthetic:
    """A scorer from options; ModelError where a file is missing, damaged, or head and tower do not fit."""
    if options.model is None:
        raise ConfigError("aesthetic: no model", hint="give card=laion-aesthetic or options.model=PATH")
    tensors = read_tensors(find(options.model))
    sizes = _sizes(tensors, options.model)
    in_float32 = machine.model_copy(update={"dtype": "float32"})
    head = fill(lambda: Head(sizes), tensors, source=options.model, machine=in_float32)
    model, preprocess = load_clip(find(options.tower), machine)
    if model.config.projection_dim != sizes[0]:
        raise ModelError(
            f"{options.model} reads embeddings of {sizes[0]}, {options.tower} writes {model.config.projection_dim}",
            hint="set options.tower to the CLIP that the head was trained on",
        )
    return Aesthetic(model, head, preprocess=preprocess, batch=machine.batch, source=options.model)


def _sizes(tensors: Mapping[str, Tensor], source: str) -> list[int]:
    shapes = [shape_of(tensors, f"layers.{place}.weight", source=source) for place in _LINEAR]
    return [shapes[0][1], *(shape[0] for shape in shapes)]
