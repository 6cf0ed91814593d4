"""FLUX.1 (dev, schnell, finetunes, and the embedded model) as a flow backbone over diffusers' own classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import FluxPipeline
from pydantic import Field
from torch import Tensor

from realgen.core.errors import ConfigError
from realgen.core.protocols import Size
from realgen.core.spec import Machine, Spec
from realgen.generators._flow import FlowGenerator
from realgen.generators._loading import load_pipeline
from realgen.generators._packed import JOINT_ATTENTION, PackedBackbone
from realgen.generators._texts import States, count_tokens, knows_any


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


class Tokens(NamedTuple):
    """A batch of texts as ids, on the CPU until they are encoded."""

    clip: Tensor
    """CLIP's (B, 77)."""
    t5: Tensor
    """T5's, padded to one length (B, tokens)."""


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


class FluxBackbone(PackedBackbone):
    """FLUX.1: packed latents (B, H/16 * W/16, channels * 4), distilled guidance, resolution-shifted noise levels."""

    lora_targets = (*JOINT_ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")

    def __init__(self, pipeline: FluxPipeline, *, max_text_tokens: int, texts_at_once: int = 8) -> None:
        encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
        super().__init__(pipeline, text_encoders=encoders, max_text_tokens=max_text_tokens, texts_at_once=texts_at_once)

    def num_text_tokens(self, text: str) -> int:
        """T5 tokens of `text`, with the one that marks its end."""
        return count_tokens(self.pipeline.tokenizer_2, text)

    def can_read(self, text: str) -> bool:
        """Whether any token of `text` is in the vocabulary."""
        return knows_any(self.pipeline.tokenizer_2, text)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """What both text encoders read, cut at their lengths."""
        clip, t5 = (
            tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            for tokenizer, length in (
                (self.pipeline.tokenizer, self.pipeline.tokenizer_max_length),
                (self.pipeline.tokenizer_2, self.max_text_tokens),
            )
        )
        return Tokens(clip.input_ids, t5.input_ids)

    def encode(self, texts: Sequence[str] | Tokens) -> Condition:
        """T5 and CLIP states.

        A text seen before is not computed again, unless the text encoders are being trained; tokens always are.
        """
        if isinstance(texts, Tokens):
            with torch.set_grad_enabled(torch.is_grad_enabled() and self._texts.are_trained):
                return self._encoded(texts)
        embeds, pooled = zip(*self._texts(texts), strict=True)
        return Condition(torch.stack(embeds), torch.stack(pooled))

    def _states(self, texts: list[str]) -> Iterable[States]:
        return zip(*self._encoded(self.tokenize(texts)), strict=True)

    def _encoded(self, tokens: Tokens) -> Condition:
        pipeline, device = self.pipeline, self._device
        states = pipeline.text_encoder_2(tokens.t5.to(device))[0]
        pooled = pipeline.text_encoder(tokens.clip.to(device)).pooler_output
        return Condition(states.to(pipeline.text_encoder_2.dtype), pooled.to(pipeline.text_encoder.dtype))

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


def position_ids(rows: int, columns: int) -> Tensor:
    """Rotary positions of image tokens (rows * columns, 3): 0, row, column."""
    grid = torch.zeros(rows, columns, 3)
    grid[..., 1] = torch.arange(rows)[:, None]
    grid[..., 2] = torch.arange(columns)[None, :]
    return grid.view(-1, 3)
