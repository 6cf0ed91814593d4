"""Where a model runs and in which number format. Loads no model."""

import torch

from realgen.core.errors import ConfigError
from realgen.core.spec import Machine


def pick_device(machine: Machine) -> torch.device:
    """The device asked for; auto takes CUDA (or ROCm), then MPS, then the CPU. ConfigError where it is not there."""
    has_cuda, has_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if machine.device == "auto":
        return torch.device("cuda" if has_cuda else "mps" if has_mps else "cpu")
    if (machine.device == "cuda" and not has_cuda) or (machine.device == "mps" and not has_mps):
        raise ConfigError(
            f"machine.device={machine.device}: torch sees no such device here",
            hint="use machine.device=auto, or install a torch that is built for it",
        )
    return torch.device(machine.device)


def keep_gradients_right(device: torch.device) -> None:
    """Switch off cuDNN's attention, whose gradients are wrong in bfloat16 (torch 2.11 on an H100); for this process."""
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def pick_dtype(machine: Machine, device: torch.device) -> torch.dtype:
    """The number format asked for; auto takes bfloat16 on CUDA and on CPUs that compute in it, else float32."""
    if machine.dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[machine.dtype]
    if device.type == "cuda" or (device.type == "cpu" and _cpu_has_bfloat16()):
        return torch.bfloat16
    return torch.float32


def _cpu_has_bfloat16() -> bool:
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001
