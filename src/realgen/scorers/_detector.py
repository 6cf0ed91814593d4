"""A network that tells real from generated, as a scorer: pictures or pixels in, P(real) out, higher is more real.

Knows no particular network.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from realgen.core.types import Score, ScorerInfo
from realgen.scorers._pixels import Preprocess
from realgen.scorers._scoring import score_batch


class ImageDetector:
    """P(real) in [0, 1] of pictures, and of pixels with gradients.

    `real` turns what the module answers into P(real) (B,). The module is frozen and in evaluation mode; a refresh
    unfreezes what `trainable_parameters` names.
    """

    def __init__(
        self,
        module: nn.Module,
        preprocess: Preprocess,
        *,
        real: Callable[[Any], Tensor],
        info: ScorerInfo,
        batch: int,
    ) -> None:
        self.module = module.requires_grad_(False).eval()
        self.preprocess, self.info = preprocess, info
        self._real, self._batch = real, batch

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """One P(real) an image, in order; the prompts are not read."""
        return score_batch(images, prompts, self._values, prepare=self.preprocess, batch=self._batch)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """P(real) (B,) of pixels (B, 3, H, W) in [0, 1], with gradients down to the pixels."""
        return self._of(self.preprocess.differentiable(pixels))

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """What a refresh of the detector trains, by name: everything."""
        return dict(self.module.named_parameters())

    @torch.no_grad()
    def _values(self, prepared: list[Tensor], prompts: list[str]) -> list[float]:
        del prompts
        values: list[float] = self._of(torch.stack(prepared)).tolist()
        return values

    def _of(self, inputs: Tensor) -> Tensor:
        return self._real(self.module(inputs.to(next(self.module.parameters()))))


def first_of_two(logits: Tensor) -> Tensor:
    """P(real) (B,) of logits (B, 2) in the published order: 0 is real, 1 is fake."""
    return widened(logits).softmax(dim=-1)[:, 0]


def widened(logits: Tensor) -> Tensor:
    """Logits in float32 at least: a probability in bfloat16 has two digits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
