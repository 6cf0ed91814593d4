"""What flow backbones over diffusers' pipelines share: latents packed into tokens of 2x2 patches, levels, guidance.

Knows no particular model: each adds how it reads texts and what it predicts.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from realgen.core.errors import InputError
from realgen.core.protocols import Size
from realgen.formulas.flow import shift_of
from realgen.generators._texts import States, Texts

JOINT_ATTENTION = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
"""Layers of an attention over image and text tokens, as FLUX.1, SD3 and Qwen-Image name them."""


class PackedBackbone(ABC):
    """A pipeline with an autoencoder of images and dynamically shifted levels; tokens are 2x2 patches of latents."""

    lora_targets: tuple[str, ...]

    def __init__(
        self, pipeline: Any, *, text_encoders: Sequence[nn.Module], max_text_tokens: int, texts_at_once: int = 8
    ) -> None:
        self.pipeline = pipeline
        self.max_text_tokens = max_text_tokens
        self.module: nn.Module = pipeline.transformer
        self._texts = Texts(self._states, text_encoders, device=lambda: self._device, at_once=texts_at_once)

    @property
    def idle_layers(self) -> tuple[str, ...]:
        """Layers of `lora_targets` whose output nothing reads: none."""
        return ()

    @abstractmethod
    def _states(self, texts: list[str]) -> Iterable[States]:
        """What the text encoders make of each text."""

    def remember(self, texts: Sequence[str]) -> None:
        """Encode these texts for good and move the text encoders to the CPU; a new text still works, but slower."""
        self._texts.remember(texts)

    def check_size(self, size: Size) -> None:
        """Width and height must be positive multiples of a packed latent's side."""
        side = self.pipeline.vae_scale_factor * 2
        if any(edge < side or edge % side for edge in size):
            raise InputError(
                f"cannot draw {size[0]}x{size[1]} pixels: width and height must be multiples of {side}",
                hint=f"nearest: {max(side, round(size[0] / side) * side)}x{max(side, round(size[1] / side) * side)}",
            )

    def noise(self, seeds: Sequence[int], size: Size) -> Tensor:
        """Float32 noise, drawn on the CPU with one generator a seed, packed: (B, tokens, channels * 4)."""
        shape = (1, self._channels, *self._latent_shape(size))
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return pack(torch.cat(drawn)).to(self._device)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        """Noise levels (steps + 1,) of the checkpoint's own scheduler."""
        self.pipeline.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=self._shift(size))
        return self._levels

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """Packed latents (B, tokens, channels * 4) of images of one size: the posterior's mean."""
        vae = self.pipeline.vae
        mean = vae.encode(self._pixels(images)).latent_dist.mean
        return pack((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor)

    def decode(self, x: Tensor, size: Size) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1], float32."""
        vae = self.pipeline.vae
        pixels: Tensor = vae.decode(self.decoder_input(x, size).to(vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    def decoder_input(self, x: Tensor, size: Size) -> Tensor:
        """Packed latents as the autoencoder's decoder reads them (B, channels, H/8, W/8)."""
        config = self.pipeline.vae.config
        return self._unpacked(x, size) / config.scaling_factor + config.shift_factor

    @property
    def _channels(self) -> int:
        channels: int = self.pipeline.vae.config.latent_channels
        return channels

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.pipeline._execution_device  # noqa: SLF001 - where offload hooks compute
        return device

    @property
    def _levels(self) -> Tensor:
        levels: Tensor = self.pipeline.scheduler.sigmas.float().to(self._device)
        return levels

    def _latent_shape(self, size: Size) -> tuple[int, int]:
        side = self.pipeline.vae_scale_factor
        return size[1] // side, size[0] // side

    def _unpacked(self, x: Tensor, size: Size) -> Tensor:
        return unpack(x, *self._latent_shape(size))

    def _shift(self, size: Size) -> float:
        config = self.pipeline.scheduler.config
        height, width = self._latent_shape(size)
        return shift_of(
            (height // 2) * (width // 2),
            base=(config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
            top=(config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
        )

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.pipeline.image_processor.preprocess(list(images))
        return pixels.to(self._device, self.pipeline.vae.dtype)


def pack(latents: Tensor) -> Tensor:
    """(B, C, H, W) to tokens of 2x2 patches (B, H/2 * W/2, C * 4)."""
    batch, channels, height, width = latents.shape
    patches = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * (width // 2), channels * 4)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/2 * W/2, C * 4) back to latents (B, C, H, W)."""
    batch, _, channels = tokens.shape
    patches = tokens.view(batch, height // 2, width // 2, channels // 4, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels // 4, height, width)


def guidance_scales(guidance: float | Tensor, x: Tensor, *, none: float) -> Tensor | None:
    """Guidance, one number or one an image (B,), as (1 or B, 1, 1); None where all are `none`, no guidance, or less."""
    if not isinstance(guidance, Tensor):
        guidance = torch.tensor(guidance, dtype=torch.float32)
    if bool((guidance <= none).all()):
        return None
    return guidance.to(x.device, torch.float32).clamp_min(none).view(-1, 1, 1)
