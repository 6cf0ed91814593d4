"""Pictures that a flow draws, with the latents that they were decoded from: what a decoder learns from; and previews.

Knows no particular model.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from realgen.core.protocols import FlowBackbone, Size
from realgen.formulas.flow import Velocity, trajectory
from realgen.formulas.pixels import to_images
from realgen.train.fakes import asked
from realgen.train.photographs import Photograph

PREVIEW_STEPS = 8


def draw(
    backbone: FlowBackbone,
    photographs: Sequence[Photograph],
    *,
    count: int,
    steps: int,
    guidance: float,
    batch: int,
    seed: int,
) -> Tensor:
    """Packed latents (count, tokens, channels) of pictures, each for a caption of a photograph of its own.

    All photographs are of one size, and so are the pictures; all follows from `seed`.
    """
    _, captions, seeds = asked(backbone, photographs, np.random.default_rng((seed, 1)), count=count)
    size, found = size_of(photographs), []
    with torch.no_grad():
        for start in range(0, len(seeds), batch):
            condition = backbone.encode(captions[start : start + batch])
            x = backbone.noise(seeds[start : start + batch], size)
            velocity = partial(backbone.velocity, condition=condition, guidance=guidance, size=size)
            found.append(finished(velocity, x, backbone.sigmas(steps, size)).cpu())
    return torch.cat(found)


def finished(velocity: Velocity, x: Tensor, sigmas: Tensor) -> Tensor:
    """The last state of the trajectory from `x` (B, tokens, channels)."""
    for step in trajectory(velocity, x, sigmas):
        x = step.x
    return x


def previewed(
    backbone: FlowBackbone, encode: Callable[[Sequence[str]], Any], prompts: Sequence[str], *, size: Size
) -> list[Image.Image]:
    """A picture of each prompt in eight steps at guidance 3, seeds from 0."""
    backbone.module.eval()
    with torch.no_grad():
        velocity = partial(backbone.velocity, condition=encode(prompts), guidance=3.0, size=size)
        x = finished(velocity, backbone.noise(range(len(prompts)), size), backbone.sigmas(PREVIEW_STEPS, size))
        return to_images(backbone.decode(x, size))


def decoded(
    backbone: FlowBackbone, decoder_input: Callable[[Tensor, Size], Tensor], packed: Tensor, *, size: Size, batch: int
) -> tuple[Tensor, list[Photograph]]:
    """What the decoder reads of packed latents, (N, channels, h, w) on the CPU, and the pictures that it makes."""
    latents, pictures = [], []
    for chunk in packed.split(batch):
        x = chunk.to(next(backbone.module.parameters()).device)
        latents.append(decoder_input(x, size).cpu())
        with torch.no_grad():
            pictures += to_images(backbone.decode(x, size))
    return torch.cat(latents), [Photograph("", np.asarray(picture), None, "", (), "") for picture in pictures]


def size_of(photographs: Sequence[Photograph]) -> Size:
    """Width and height of photographs of one size."""
    height, width, _ = photographs[0].pixels.shape
    return width, height
