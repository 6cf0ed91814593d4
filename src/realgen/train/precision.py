"""In which number format a training computes. Knows no model."""

import torch


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Matrix products and convolutions in `dtype`, weights and sums as they are; float32 changes nothing.

    Rounded weights are not kept for the rest of the block: after an optimiser's step there they would be the old ones.
    """
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32, cache_enabled=False)
