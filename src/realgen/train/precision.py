"""In which number format a training computes. Knows no model."""

import torch


def computing_in(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Matrix products and convolutions in `dtype`, weights and sums as they are; float32 changes nothing."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
