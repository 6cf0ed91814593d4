"""How much pictures follow the lattice of a transformer's tokens.

A transformer that draws a meadow token by token puts the same strokes at the same places of each token's square, and
the eye sees cloth. Photographs know nothing of tokens: over many, edges are as strong at every place of the squares. A
discriminator whose features follow objects, on pictures that are shifted before it sees them, hardly minds.
"""

import torch
from torch import Tensor

LEAST = 1e-3
"""Mean strength of edges below which a picture has none to speak of."""


def lattice(pixels: Tensor, period: int) -> Tensor:
    """Of two or more pictures (B, 3, H, W) in [0, 1] with squares of `period` pixels: a scalar.

    How the strength of edges varies over the places of a square, as a share of its mean and squared: 0.01 where one
    place differs by a tenth from another. It is the product of what every other picture and what the rest has, so that
    chance cancels: photographs have 0 on average, and may have less.
    """
    luma = pixels.mean(1)
    down, across = luma.diff(dim=1).abs(), luma.diff(dim=2).abs()
    edges = torch.cat([down, down[:, -1:]], 1) + torch.cat([across, across[:, :, -1:]], 2)
    rows, columns = (side // period for side in edges.shape[1:])
    squares = edges[:, : rows * period, : columns * period].unflatten(2, (columns, period)).unflatten(1, (rows, period))
    places = squares.mean((1, 3))
    deviation = places / places.mean((1, 2), keepdim=True).clamp(min=LEAST) - 1
    return (deviation[::2].mean(0) * deviation[1::2].mean(0)).mean()
