"""What a frozen flow sees in noised latents: the states of its image tokens after some of its blocks.

A network that has learned to take the noise out of photographs' latents knows what they are made of down to the
finest, where one that names objects looks through it: between photographs and pictures whose latents differ in their
plainest moments it may hardly see a difference.

Source: Sauer et al. 2024, arXiv 2403.12015 (LADD). Knows no particular model: it is handed a backbone and its blocks.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.protocols import FlowBackbone, Size


class FlowFeatures:
    """Maps of square noised latents after the `chosen` of `blocks`, given in the order in which they run.

    A block returns the tokens of text and image, the image's last: as one tensor, or as a pair.
    """

    def __init__(
        self, backbone: FlowBackbone, blocks: Sequence[nn.Module], chosen: Sequence[int], *, size: Size
    ) -> None:
        self.backbone, self.size = backbone, size
        self._seen: list[Tensor] = []
        backbone.module.requires_grad_(False).eval()
        for place in sorted(chosen):
            blocks[place].register_forward_hook(self._watch(is_last=place == max(chosen)))

    def __call__(self, latents: Tensor, sigma: Tensor, condition: Any) -> list[Tensor]:
        """Latents (B, tokens, C) at levels (B,) to maps (B, width, side, side), each place normalised; float32."""
        self._seen = []
        with suppress(_Enough):
            self.backbone.velocity(latents, sigma, condition, guidance=torch.ones_like(sigma), size=self.size)
        seen, self._seen = self._seen, []
        tokens = latents.shape[1]
        return [_as_map(states[:, -tokens:]) for states in seen]

    def _watch(self, *, is_last: bool) -> Callable[[nn.Module, Any, Any], None]:
        """A hook that keeps what a block returns; the last one stops the pass."""

        def watch(_block: nn.Module, _given: Any, returned: Any) -> None:
            self._seen.append(returned[-1] if isinstance(returned, tuple) else returned)
            if is_last:
                raise _Enough

        return watch


class _Enough(Exception):  # noqa: N818
    """All that was asked for has been seen: the blocks after it need not run."""


def _as_map(states: Tensor) -> Tensor:
    side = round(states.shape[1] ** 0.5)
    normalised = F.layer_norm(states.float(), states.shape[2:])
    return normalised.transpose(1, 2).unflatten(2, (side, side))
