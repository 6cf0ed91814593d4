"""A transformer made deeper without a change of what it answers: training goes on where it stood.

Each new block is a copy of one before it whose way back into the stream is closed (its output projection is zero), so
that it is the identity at first and has features to learn with at once.

Sources: Chen et al. 2016, arXiv 1511.05641 (function-preserving growth); Zhang et al. 2019, arXiv 1901.09321 (zero
output projections). Knows no model but the class.
"""

from copy import deepcopy

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from realgen.core.errors import ConfigError


@torch.no_grad()
def deepen(transformer: FluxTransformer2DModel, single_blocks: int) -> None:
    """Give `transformer` that many single blocks, the new ones spread evenly after those that it has.

    Raises ConfigError where it has more than that already.
    """
    old = list(transformer.single_transformer_blocks)
    if single_blocks < len(old):
        message = f"single_blocks={single_blocks}: the transformer has {len(old)}"
        raise ConfigError(message, hint=f"blocks can be added, not taken away: {len(old)} or more")
    more = single_blocks - len(old)
    grown: list[nn.Module] = []
    for place, block in enumerate(old):
        grown.append(block)
        here = (place + 1) * more // len(old) - place * more // len(old)
        grown += [_identity_like(block) for _ in range(here)]
    transformer.single_transformer_blocks = nn.ModuleList(grown)
    transformer.register_to_config(num_single_layers=single_blocks)


def _identity_like(block: nn.Module) -> nn.Module:
    copied = deepcopy(block)
    for parameter in copied.proj_out.parameters():
        parameter.zero_()
    return copied
