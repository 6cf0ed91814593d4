"""In which number format a training computes. Knows no model."""

import torch


def computing_in(dtype: torch.dtype, device: str = "cpu") -> torch.autocast:
    """Matrix products and convolutions in `dtype`, weights and sums as they are; float32 changes nothing."""
    return torch.autocast(device, dtype, enabled=dtype is not torch.float32)
