"""How much of a change in each latent channel is seen in the picture. Knows no particular autoencoder."""

import torch
from torch import Tensor

from realgen.core.protocols import FlowBackbone, Size

CHANGE = 0.25
"""Deviation of the noise that is added to one channel, in units of the latents."""


@torch.no_grad()
def visibility(backbone: FlowBackbone, latents: Tensor, size: Size, *, seed: int = 0) -> Tensor:
    """Mean squared change of pixels by noise in each channel of packed latents (B, tokens, C), over its mean: (C,).

    An error in a latent costs a flow-matching loss the same in every channel; on the picture it may weigh twenty times
    as much in one as in another. Weighting by this is, to first order, the loss in pixels.
    """
    plain = backbone.decode(latents, size)
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for channel in range(latents.shape[2]):
        changed = latents.clone()
        noise = torch.randn(latents.shape[:2], generator=generator)
        changed[..., channel] += CHANGE * noise.to(latents)
        changes.append((backbone.decode(changed, size) - plain).square().mean())
    found = torch.stack(changes)
    return found / found.mean()
