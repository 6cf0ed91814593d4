"""FLUX.1 (dev, schnell, finetunes, and the embedded model) as a flow backbone over diffusers' own classes."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from diffusers import FluxPipeline
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from realgen.core.errors import ConfigError, InputError
from realgen.core.protocols import Size
from realgen.core.recipes import Machine, Spec
from realgen.formulas.flow import shift_of
from realgen.generators._flow import FlowGenerator
from realgen.generators._loading import load_pipeline

_CACHED_TEXTS = 256


class Options(Spec):
    """Options of the FLUX.1 generator."""

    model: str | None = None
    """Checkpoint folder or hub id; a card sets it."""

    steps: int = Field(default=28, ge=1)
    """Denoiser evaluations an image."""

    guidance: float = Field(default=3.5, ge=0)
    """Distilled guidance scale; models without a guidance embedding take no other value than 0."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height in pixels, multiples of 16."""

    max_text_tokens: int = Field(default=512, ge=1, le=512)
    """Text length that T5 is padded to, which must be the one the model was trained with."""

    lora: str | None = None
    """LoRA file or folder to load."""

    lora_scale: float = 1.0
    """Strength of the LoRA."""


class Condition(NamedTuple):
    """What FLUX.1 reads of a batch of texts."""

    embeds: Tensor
    """T5 states (B, tokens, width)."""
    pooled: Tensor
    """CLIP's pooled state (B, width)."""


def build(options: Options, machine: Machine) -> FlowGenerator:
    """A generator from options."""
    if options.model is None:
        raise ConfigError("flux: no model", hint="give generator.card=NAME or generator.options.model=PATH")
    pipeline = load_pipeline(FluxPipeline, options.model, machine, lora=options.lora, lora_scale=options.lora_scale)
    backbone = FluxBackbone(pipeline, max_text_tokens=options.max_text_tokens)
    if options.guidance and not pipeline.transformer.config.guidance_embeds:
        raise ConfigError(
            f"this model has no guidance embedding, so guidance {options.guidance} would do nothing",
            hint="set guidance 0",
        )
    return FlowGenerator(
        backbone, steps=options.steps, guidance=options.guidance, size=options.size, batch=machine.batch
    )


class FluxBackbone:
    """FLUX.1: packed latents (B, H/16 * W/16, channels * 4), distilled guidance, resolution-shifted noise levels."""

    def __init__(self, pipeline: FluxPipeline, *, max_text_tokens: int) -> None:
        self.pipeline = pipeline
        self.max_text_tokens = max_text_tokens
        self.module: nn.Module = pipeline.transformer
        self._texts: dict[str, tuple[Tensor, Tensor]] = {}

    def num_text_tokens(self, text: str) -> int:
        """T5 tokens of `text`, with the one that marks its end."""
        return len(self.pipeline.tokenizer_2(text, truncation=False).input_ids)

    def check_size(self, size: Size) -> None:
        """Width and height must be positive multiples of a packed latent's side."""
        side = self.pipeline.vae_scale_factor * 2
        if any(edge < side or edge % side for edge in size):
            raise InputError(
                f"cannot draw {size[0]}x{size[1]} pixels: width and height must be multiples of {side}",
                hint=f"nearest: {max(side, round(size[0] / side) * side)}x{max(side, round(size[1] / side) * side)}",
            )

    def encode(self, texts: Sequence[str]) -> Condition:
        """T5 and CLIP states; a text seen before is not computed again, unless the text encoders are being trained."""
        if self._is_text_trained:
            return self._encode(texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if len(self._texts) + len(missing) > _CACHED_TEXTS:
            self._texts.clear()
            missing = list(dict.fromkeys(texts))
        if missing:
            embeds, pooled = self._encode(missing)
            self._texts.update(zip(missing, zip(embeds, pooled, strict=True), strict=True))
        return Condition(
            torch.stack([self._texts[text][0] for text in texts]), torch.stack([self._texts[text][1] for text in texts])
        )

    @property
    def _is_text_trained(self) -> bool:
        encoders = (self.pipeline.text_encoder, self.pipeline.text_encoder_2)
        return any(parameter.requires_grad for encoder in encoders for parameter in encoder.parameters())

    def _encode(self, texts: Sequence[str]) -> Condition:
        embeds, pooled, _ = self.pipeline.encode_prompt(
            prompt=list(texts), prompt_2=None, max_sequence_length=self.max_text_tokens
        )
        return Condition(embeds, pooled)

    def noise(self, seeds: Sequence[int], size: Size) -> Tensor:
        """Float32 noise, drawn on the CPU with one generator a seed, packed: (B, tokens, channels * 4)."""
        side = self.pipeline.vae_scale_factor
        shape = (1, self.pipeline.transformer.config.in_channels // 4, size[1] // side, size[0] // side)
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return pack(torch.cat(drawn)).to(self._device)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        """Noise levels (steps + 1,) of the checkpoint's own scheduler."""
        scheduler = self.pipeline.scheduler
        config = scheduler.config
        side = self.pipeline.vae_scale_factor * 2
        mu = shift_of(
            (size[0] // side) * (size[1] // side),
            base=(config.get("base_image_seq_len", 256), config.get("base_shift", 0.5)),
            top=(config.get("max_image_seq_len", 4096), config.get("max_shift", 1.15)),
        )
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
        levels: Tensor = scheduler.sigmas.float().to(self._device)
        return levels

    def velocity(
        self, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float | Tensor, size: Size
    ) -> Tensor:
        """Noise minus data (B, tokens, channels * 4), float32; guidance is one number or one an image (B,)."""
        transformer = self.pipeline.transformer
        side = self.pipeline.vae_scale_factor * 2
        dtype = condition.embeds.dtype
        scale = None
        if transformer.config.guidance_embeds:
            scale = torch.as_tensor(guidance, device=x.device, dtype=torch.float32).expand(len(x))
        image_ids = position_ids(size[1] // side, size[0] // side).to(device=x.device, dtype=dtype)
        v: Tensor = transformer(
            hidden_states=x.to(dtype),
            timestep=sigma.to(device=x.device, dtype=dtype),
            guidance=scale,
            pooled_projections=condition.pooled,
            encoder_hidden_states=condition.embeds,
            txt_ids=torch.zeros(condition.embeds.shape[1], 3, device=x.device, dtype=dtype),
            img_ids=image_ids,
            return_dict=False,
        )[0]
        return v.float()

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """Packed latents (B, tokens, channels * 4) of images of one size: the posterior's mean."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(list(images)).to(self._device, vae.dtype)
        mean = vae.encode(pixels).latent_dist.mean
        return pack((mean.float() - vae.config.shift_factor) * vae.config.scaling_factor)

    def decode(self, x: Tensor, size: Size) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1], float32."""
        vae = self.pipeline.vae
        side = self.pipeline.vae_scale_factor
        latents = unpack(x, size[1] // side, size[0] // side)
        latents = (latents / vae.config.scaling_factor) + vae.config.shift_factor
        pixels: Tensor = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _device(self) -> torch.device:
        device: torch.device = self.pipeline._execution_device  # noqa: SLF001 - where offload hooks compute
        return device


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


def position_ids(rows: int, columns: int) -> Tensor:
    """Rotary positions of image tokens (rows * columns, 3): 0, row, column."""
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)[None, :]
    return grid.view(-1, 3)
