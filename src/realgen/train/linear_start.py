"""A linear starting point for a convolutional autoencoder: the principal components of its 8x8 patches.

A fresh `AutoencoderKL` needs hours on a CPU to become as good as a plain linear projection of patches.
Here it starts *as* that projection: every residual branch is silent (its last convolution is zero), the
encoder's strided convolutions form the components level by level, and each convolution of the decoder is the
least-squares prediction of the next finer level. Two facts make the end of each half linear:
`silu(x) - silu(-x) = x`, and a GroupNorm over {x, -x, K, -K} divides by a nearly constant number when K is large.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.errors import ConfigError

_CONSTANT = 8.0  # K above, in units of a feature's deviation


def start_linear(model: AutoencoderKL, images: Tensor) -> None:
    """Make `model` encode and decode by principal components of `images` (N, 3, H, W) in [-1, 1]."""
    widths = model.config["block_out_channels"]
    if len(widths) < 2 or widths[-1] != widths[-2]:
        raise ConfigError(f"widths {list(widths)} cannot start linear", hint="the last two must be equal")
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "conv2") and hasattr(module, "conv1"):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
        levels = _start_encoder(model, images)
        _start_decoder(model, levels)


def _components(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Top components of non-overlapping 2x2 patches: weight (count, C, 2, 2) and their means (count,)."""
    patches = F.unfold(features, 2, stride=2).transpose(1, 2).flatten(0, 1).double()  # (N, C*4)
    mean = patches.mean(0)
    vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches)).eigenvectors.flip(1)[:, :count]
    weight = vectors.T.reshape(-1, features.shape[1], 2, 2)
    return weight.float(), (vectors.T @ mean).float()


def _start_encoder(model: AutoencoderKL, images: Tensor) -> list[Tensor]:
    """Set the encoder; returns the features of each level, coarsest (the latents) first."""
    encoder, z = model.encoder, model.config["latent_channels"]
    _put_identity(encoder.conv_in, 3)
    levels = [images]
    for index, block in enumerate(encoder.down_blocks[:-1]):
        conv = block.downsamplers[0].conv
        inputs = levels[0]
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            _put_identity(shortcut, inputs.shape[1])
        is_last = index == len(encoder.down_blocks) - 2
        spare = 2 * z + _num_constants(encoder.conv_norm_out, z) if is_last else 0
        weight, mean = _components(inputs, min(4 * inputs.shape[1], conv.out_channels - (spare - z if is_last else 0)))
        features = F.conv2d(inputs, weight, stride=2) - mean[:, None, None]
        if is_last:
            # Half way between raw components (coarse ones dominate) and white ones (all equal), unit mean square.
            deviation = features.std((0, 2, 3))
            scale = deviation.rsqrt() / deviation[:z].mean().sqrt()
            weight, mean, features = weight * scale[:, None, None, None], mean * scale, features * scale[:, None, None]
            _put_paired(conv, encoder.conv_norm_out, weight, -mean, z)
            _put_readout(encoder.conv_norm_out, encoder.conv_out, z, features)
        else:
            conv.weight[: len(weight)] = 0
            conv.weight[: len(weight), : inputs.shape[1], :2, :2] = weight
            conv.bias[: len(weight)] = -mean
        levels.insert(0, features)
    return [levels[0][:, :z], *levels]


def _start_decoder(model: AutoencoderKL, levels: list[Tensor]) -> None:
    """Each convolution predicts the next finer level from what the one before predicted."""
    decoder = model.decoder
    latents, *targets = levels
    features = _put_regression(decoder.conv_in, latents, targets[0])
    for index, block in enumerate(decoder.up_blocks):
        shortcut = block.resnets[0].conv_shortcut
        if block.upsamplers is None:
            groups = decoder.conv_norm_out
            _put_paired(shortcut, groups, torch.eye(3)[:, :, None, None], torch.zeros(3), 3)
            _put_readout(groups, decoder.conv_out, 3, features)
            return
        if shortcut is not None:
            _put_identity(shortcut, features.shape[1])
        finer = F.interpolate(features, scale_factor=2.0, mode="nearest")
        features = _put_regression(block.upsamplers[0].conv, finer, targets[index + 1])


def _put_identity(conv: nn.Conv2d, count: int) -> None:
    centre = conv.kernel_size[0] // 2
    conv.weight[:count] = 0
    conv.bias[:count] = 0
    conv.weight[range(count), range(count), centre, centre] = 1


def _put_regression(conv: nn.Conv2d, inputs: Tensor, targets: Tensor) -> Tensor:
    """Least squares of `targets` on the 3x3 neighbourhood of `inputs`; returns the prediction."""
    columns = F.unfold(inputs, 3, padding=1).transpose(1, 2).flatten(0, 1)  # (N, C*9)
    columns = torch.cat([columns, torch.ones(len(columns), 1)], 1)
    wanted = targets.permute(0, 2, 3, 1).flatten(0, 2)
    gram = (columns.T @ columns).double()
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram))
    solution = torch.linalg.solve(gram, (columns.T @ wanted).double()).float()  # (C*9 + 1, K)
    weight = solution[:-1].T.reshape(targets.shape[1], inputs.shape[1], 3, 3)
    conv.weight[: len(weight)] = 0
    conv.weight[: len(weight), : inputs.shape[1]] = weight
    conv.bias[: len(weight)] = solution[-1]
    return F.conv2d(inputs, weight, solution[-1], padding=1)


def _slots(norm: nn.GroupNorm, count: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Channels of +x, -x, +K and -K for `count` features, spread over the groups; ConfigError where they are small."""
    size = norm.num_channels // norm.num_groups
    per_group = -(-count // norm.num_groups)
    used = -(-count // per_group)
    plus = [group * size + member for group in range(used) for member in range(per_group)][:count]
    minus = [channel + per_group for channel in plus]
    if 2 * per_group + 2 > size:
        raise ConfigError(
            f"groups of {size} channels cannot start linear with {count} features in {norm.num_groups} groups",
            hint=f"widths of at least {(2 * per_group + 2) * norm.num_groups} there, or another number of groups",
        )
    high = [group * size + 2 * per_group for group in range(used)]
    return plus, minus, high, [channel + 1 for channel in high]


def _num_constants(norm: nn.GroupNorm, count: int) -> int:
    return 2 * len(_slots(norm, count)[2])


def _put_paired(conv: nn.Conv2d, norm: nn.GroupNorm, weight: Tensor, bias: Tensor, count: int) -> None:
    """The first `count` features as +x and -x beside +K and -K; further features where room is left."""
    plus, minus, high, low = _slots(norm, count)
    rest = [channel for channel in range(conv.out_channels) if channel not in {*plus, *minus, *high, *low}]
    rows = plus + minus + rest[: len(weight) - count]
    taps = weight.shape[-1]
    channels = weight.shape[1]
    conv.weight[rows + high + low] = 0
    conv.bias[high], conv.bias[low] = _CONSTANT, -_CONSTANT
    signed = torch.cat([weight[:count], -weight[:count], weight[count:]])
    conv.weight[rows, :channels, :taps, :taps] = signed
    conv.bias[rows] = torch.cat([bias[:count], -bias[:count], bias[count:]])


def _put_readout(norm: nn.GroupNorm, conv: nn.Conv2d, count: int, features: Tensor) -> None:
    """`conv(silu(norm(.)))` returns the first `count` features; further outputs start at zero, log-variances at -8."""
    plus, minus, high, _ = _slots(norm, count)
    size, per_group = norm.num_channels // norm.num_groups, plus.index(plus[-1]) // len(high) + 1
    square = features.square().mean((0, 2, 3))
    extra = features.shape[1] - count  # the rest of a group: small features, counted by their mean
    other = float(square[count:].mean()) * (size - 2 * per_group - 2) if extra else 0.0
    gain = ((2 * per_group * square[:count].mean() + 2 * _CONSTANT**2 + other) / size).sqrt()
    norm.weight[plus + minus] = gain
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    conv.bias[count:] = -8.0
    centre = conv.kernel_size[0] // 2
    conv.weight[range(count), plus, centre, centre] = 1
    conv.weight[range(count), minus, centre, centre] = -1
