"""Stable Diffusion 3 and 3.5 as a flow backbone over diffusers' own classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from pydantic import Field
from torch import Tensor

from realgen.core.errors import ConfigError, InputError
from realgen.core.protocols import Size
from realgen.core.spec import Machine, Spec
from realgen.generators._flow import FlowGenerator
from realgen.generators._loading import load_pipeline
from realgen.generators._packed import JOINT_ATTENTION, PackedBackbone, guidance_scales, pack
from realgen.generators._texts import States, count_tokens, knows_any


class Options(Spec):
    """Options of the Stable Diffusion 3 generator."""

    model: str | None = None
    """Checkpoint folder or hub id; a card sets it."""

    steps: int = Field(default=28, ge=1)
    """Denoising steps an image, of two denoiser evaluations each where guidance is above 1."""

    guidance: float = Field(default=4.5, ge=0)
    """Classifier-free guidance scale; 1 and below is none."""

    negative_prompt: str = ""
    """What guidance leads away from."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height in pixels, multiples of 16."""

    max_text_tokens: int = Field(default=256, ge=1, le=512)
    """Text length that T5 is padded to; without T5 at most CLIP's."""

    lora: str | None = None
    """LoRA file or folder to load."""

    lora_scale: float = 1.0
    """Strength of the LoRA."""


class Condition(NamedTuple):
    """What SD3 reads of a batch of texts, and of the one that guidance leads away from."""

    embeds: Tensor
    """CLIP's states, then T5's (B, tokens, width)."""
    pooled: Tensor
    """Both CLIPs' pooled states (B, width)."""
    negative_embeds: Tensor
    """(1, tokens, width)."""
    negative_pooled: Tensor
    """(1, width)."""


def build(options: Options, machine: Machine) -> FlowGenerator:
    """A generator from options."""
    if options.model is None:
        raise ConfigError("sd3: no model", hint="give generator.card=NAME or generator.options.model=PATH")
    pipeline = load_pipeline(
        StableDiffusion3Pipeline, options.model, machine, lora=options.lora, lora_scale=options.lora_scale
    )
    backbone = SD3Backbone(pipeline, max_text_tokens=options.max_text_tokens, negative_prompt=options.negative_prompt)
    return FlowGenerator(
        backbone, steps=options.steps, guidance=options.guidance, size=options.size, batch=machine.batch
    )


class SD3Backbone(PackedBackbone):
    """SD3: packed latents (B, H/16 * W/16, channels * 4), classifier-free guidance, levels of a static shift.

    A checkpoint without T5, to save memory, reads no more of a text than CLIP does.
    """

    lora_targets = JOINT_ATTENTION

    def __init__(self, pipeline: StableDiffusion3Pipeline, *, max_text_tokens: int, negative_prompt: str = "") -> None:
        encoders = [pipeline.text_encoder, pipeline.text_encoder_2]
        self._tokenizer = pipeline.tokenizer
        if pipeline.text_encoder_3 is None:
            max_text_tokens = min(max_text_tokens, self._tokenizer.model_max_length)
        else:
            encoders.append(pipeline.text_encoder_3)
            self._tokenizer = pipeline.tokenizer_3
        super().__init__(pipeline, text_encoders=encoders, max_text_tokens=max_text_tokens)
        self.negative_prompt = negative_prompt

    @property
    def idle_layers(self) -> tuple[str, ...]:
        """The last block's query of the text, which is not read after it."""
        last = len(self.pipeline.transformer.transformer_blocks) - 1
        return (f"transformer_blocks.{last}.attn.add_q_proj",)

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text`, T5's or without it CLIP's, with those that mark its ends."""
        return count_tokens(self._tokenizer, text)

    def can_read(self, text: str) -> bool:
        """Whether any token of `text` is in the vocabulary."""
        return knows_any(self._tokenizer, text)

    def check_size(self, size: Size) -> None:
        """Width and height must be positive multiples of a packed latent's side, within the learned positions."""
        super().check_size(size)
        longest = self.pipeline.transformer.config.pos_embed_max_size * self.pipeline.vae_scale_factor * 2
        if max(size) > longest:
            raise InputError(
                f"cannot draw {size[0]}x{size[1]} pixels: this model knows positions up to {longest}",
                hint="ask for a smaller size",
            )

    def encode(self, texts: Sequence[str]) -> Condition:
        """States of the texts and of the negative prompt; one seen before is not computed again."""
        embeds, pooled = zip(*self._texts([*texts, self.negative_prompt]), strict=True)
        return Condition(torch.stack(embeds[:-1]), torch.stack(pooled[:-1]), embeds[-1][None], pooled[-1][None])

    def remember(self, texts: Sequence[str]) -> None:
        """Encode these texts for good and move the text encoders to the CPU; a new text still works, but slower."""
        super().remember([*texts, self.negative_prompt])

    def _states(self, texts: list[str]) -> Iterable[States]:
        embeds, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts,
            prompt_2=None,
            prompt_3=None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_text_tokens,
        )
        return zip(embeds, pooled, strict=True)

    def sigmas(self, steps: int, size: Size) -> Tensor:
        """Noise levels (steps + 1,) of the checkpoint's own scheduler, which shifts the schedule's ends twice."""
        scheduler = self.pipeline.scheduler
        scheduler.set_timesteps(steps, mu=self._shift(size) if scheduler.config.use_dynamic_shifting else None)
        return self._levels

    def velocity(
        self, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float | Tensor, size: Size
    ) -> Tensor:
        """Noise minus data (B, tokens, channels * 4), float32: negative + guidance * (positive - negative)."""
        embeds, pooled = condition.embeds, condition.pooled
        scales = guidance_scales(guidance, x, none=1)
        if scales is None:
            return self._predicted(x, sigma, embeds, pooled, size)
        both = self._predicted(
            x.repeat(2, 1, 1),
            sigma.repeat(2),
            torch.cat([condition.negative_embeds.expand_as(embeds), embeds]),
            torch.cat([condition.negative_pooled.expand_as(pooled), pooled]),
            size,
        )
        negative, positive = both.chunk(2)
        return negative + scales * (positive - negative)

    def _predicted(self, x: Tensor, sigma: Tensor, embeds: Tensor, pooled: Tensor, size: Size) -> Tensor:
        v: Tensor = self.pipeline.transformer(
            hidden_states=self._unpacked(x, size).to(embeds.dtype),
            timestep=sigma * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states=embeds,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        return pack(v.float())
