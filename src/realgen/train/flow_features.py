"""What a frozen flow sees in noised latents: the states of its image tokens after some of its blocks.

A network that has learned to take the noise out of photographs' latents knows what they are made of down to the
finest, where one that names objects looks through it: between photographs and pictures whose latents differ in their
plainest moments it may hardly see a difference.

Source: Sauer et al. 2024, arXiv 2403.12015 (LADD). Knows no particular model: it is handed a backbone and its blocks.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.protocols import FlowBackbone, Size


class FlowFeatures:
    """Maps of square noised latents after each of `blocks`, which are some of the backbone's in the order they run in.

    A block returns the tokens of text and image, the image's last: as one tensor, or as a pair. Blocks after the last
    do not run. The backbone is frozen, and may serve others between two calls.
    """

    def __init__(self, backbone: FlowBackbone, blocks: Sequence[nn.Module], *, size: Size) -> None:
        self.backbone, self.blocks, self.size = backbone, blocks, size
        backbone.module.requires_grad_(False).eval()

    def __call__(self, latents: Tensor, sigma: Tensor, condition: Any) -> list[Tensor]:
        """Latents (B, tokens, C) at levels (B,) to maps (B, width, side, side), each place normalised; float32."""
        seen: list[Tensor] = []

        def watch(_block: nn.Module, _given: Any, returned: Any) -> None:
            states = returned[-1] if isinstance(returned, tuple) else returned
            seen.append(states[:, -latents.shape[1] :].float())
            if len(seen) == len(self.blocks):
                raise _Enough

        with ExitStack() as hooks, suppress(_Enough):
            for block in self.blocks:
                hooks.callback(block.register_forward_hook(watch).remove)
            self.backbone.velocity(latents, sigma, condition, guidance=torch.ones_like(sigma), size=self.size)
        return [as_map(F.layer_norm(states, states.shape[2:])) for states in seen]


class _Enough(Exception):  # noqa: N818
    """All that was asked for has been seen: the blocks after it need not run."""


def as_map(tokens: Tensor) -> Tensor:
    """Tokens of a square (B, side * side, C), row by row, to (B, C, side, side)."""
    side = round(tokens.shape[1] ** 0.5)
    return tokens.transpose(1, 2).unflatten(2, (side, side))
