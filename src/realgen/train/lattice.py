"""How much pictures follow the lattice of a transformer's tokens.

A transformer that draws a meadow token by token repeats itself from one token's square to the next, and the eye sees
cloth. It shows in the power spectrum, at whole numbers of cycles a square: photographs know nothing of tokens and have
no more power there than beside. A discriminator whose features follow objects, on pictures that are shifted before it
sees them, hardly minds.
"""

import torch
from torch import Tensor

HARMONICS = 4
"""Whole numbers of cycles a square that are looked at, along each axis."""
BESIDE = (-3, -2, 2, 3)
"""How many bins away the power beside is measured: a Hann window spreads a line over the bins next to it."""
LEAST_SQUARES = 8
"""Tokens a side below which a picture has no bins between one harmonic and the next."""


def lattice(pixels: Tensor, squares: int) -> Tensor:
    """Of pictures (B, 3, side, side) with `squares` tokens a side: a scalar, log of power over the power beside.

    Averaged over the lattice's frequencies; about 0 for photographs, 0.7 where there is twice as much power. Pictures
    count by how their power is spread, not by how much they have.
    """
    window = torch.hann_window(pixels.shape[-1], device=pixels.device)
    luma = pixels.mean(1)
    luma = (luma - luma.mean((1, 2), keepdim=True)) * window[:, None] * window
    power = torch.fft.rfft2(luma).abs().square()
    power = power[:, : (HARMONICS + 1) * squares, : (HARMONICS + 1) * squares]
    spread = (power / power[:, squares // 2 :].sum((1, 2), keepdim=True).clamp(min=1e-8)).mean(0)
    lines = torch.arange(HARMONICS + 1, device=pixels.device) * squares
    peaks = spread[lines][:, lines]
    down = torch.stack([spread[(lines + step).abs()][:, lines] for step in BESIDE]).mean(0)
    across = torch.stack([spread[lines][:, (lines + step).abs()] for step in BESIDE]).mean(0)
    both = torch.stack([spread[(lines + i).abs()][:, (lines + j).abs()] for i in BESIDE for j in BESIDE]).mean(0)
    # what is beside a line on an axis lies along the axis, where edges have their power
    beside = torch.cat([across[:1], torch.cat([down[1:, :1], both[1:, 1:]], 1)])
    ratio = (peaks.clamp(min=1e-12) / beside.clamp(min=1e-12)).log()
    return ratio.flatten()[1:].mean()
