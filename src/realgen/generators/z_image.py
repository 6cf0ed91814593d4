"""Z-Image (base and Turbo) as a flow backbone over diffusers' own classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import ZImagePipeline
from pydantic import Field
from torch import Tensor

from realgen.core.errors import ConfigError
from realgen.core.protocols import Size
from realgen.core.spec import Machine, Spec
from realgen.generators._flow import FlowGenerator
from realgen.generators._loading import load_pipeline
from realgen.generators._packed import PackedBackbone, guidance_scales, pack
from realgen.generators._texts import States, count_tokens, knows_any


class Options(Spec):
    """Options of the Z-Image generator."""

    model: str | None = None
    """Checkpoint folder or hub id; a card sets it."""

    steps: int = Field(default=40, ge=1)
    """Denoising steps an image, of two denoiser evaluations each where guidance is above 0."""

    guidance: float = Field(default=4.0, ge=0)
    """Classifier-free guidance scale as Z-Image counts it: 0 is none, and 3 is what other models call 4."""

    negative_prompt: str = ""
    """What guidance leads away from."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height in pixels, multiples of 16."""

    max_text_tokens: int = Field(default=512, ge=1, le=512)
    """Longest text that is read, in tokens, with those of the chat template."""

    lora: str | None = None
    """LoRA file or folder to load."""

    lora_scale: float = 1.0
    """Strength of the LoRA."""


class Condition(NamedTuple):
    """What Z-Image reads of a batch of texts, and of the one that guidance leads away from."""

    embeds: tuple[Tensor, ...]
    """B times Qwen3's states (tokens, width), each of its own length."""
    negative: Tensor
    """(tokens, width)."""


def build(options: Options, machine: Machine) -> FlowGenerator:
    """A generator from options."""
    if options.model is None:
        raise ConfigError("z_image: no model", hint="give generator.card=NAME or generator.options.model=PATH")
    pipeline = load_pipeline(ZImagePipeline, options.model, machine, lora=options.lora, lora_scale=options.lora_scale)
    backbone = ZImageBackbone(
        pipeline, max_text_tokens=options.max_text_tokens, negative_prompt=options.negative_prompt
    )
    return FlowGenerator(
        backbone, steps=options.steps, guidance=options.guidance, size=options.size, batch=machine.batch
    )


class ZImageBackbone(PackedBackbone):
    """Z-Image: packed latents (B, H/16 * W/16, channels * 4); its time is 1 - sigma, its output data - noise."""

    lora_targets = (
        *(f"attention.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
    )

    def __init__(self, pipeline: ZImagePipeline, *, max_text_tokens: int, negative_prompt: str = "") -> None:
        super().__init__(pipeline, text_encoders=(pipeline.text_encoder,), max_text_tokens=max_text_tokens)
        self.negative_prompt = negative_prompt

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text` in the chat template that it is read in."""
        tokenizer = self.pipeline.tokenizer
        message = {"role": "user", "content": text}
        # Thinking enabled is what leaves the template without an empty thought at its end, as the pipeline has it.
        asked = tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return count_tokens(tokenizer, asked)

    def can_read(self, text: str) -> bool:
        """Whether any token of `text` is in the vocabulary."""
        return knows_any(self.pipeline.tokenizer, text)

    def encode(self, texts: Sequence[str]) -> Condition:
        """States of the texts and of the negative prompt; one seen before is not computed again."""
        (*embeds, negative) = (states for (states,) in self._texts([*texts, self.negative_prompt]))
        return Condition(tuple(embeds), negative)

    def remember(self, texts: Sequence[str]) -> None:
        """Encode these texts for good and move the text encoder to the CPU; a new text still works, but slower."""
        super().remember([*texts, self.negative_prompt])

    def _states(self, texts: list[str]) -> Iterable[States]:
        embeds, _ = self.pipeline.encode_prompt(
            list(texts),  # the pipeline writes into the list that it is given
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_text_tokens,
        )
        return ((states,) for states in embeds)

    def velocity(
        self, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float | Tensor, size: Size
    ) -> Tensor:
        """Noise minus data (B, tokens, channels * 4), float32: positive + guidance * (positive - negative)."""
        scales = guidance_scales(guidance, x, none=0)
        if scales is None:
            return self._predicted(x, sigma, condition.embeds, size)
        texts = (*condition.embeds, *[condition.negative] * len(x))
        positive, negative = self._predicted(x.repeat(2, 1, 1), sigma.repeat(2), texts, size).chunk(2)
        return positive + scales * (positive - negative)

    def _predicted(self, x: Tensor, sigma: Tensor, texts: Sequence[Tensor], size: Size) -> Tensor:
        frames = self._unpacked(x, size).to(texts[0].dtype)[:, :, None]  # (B, C, 1, H, W): a film of one picture
        data_minus_noise = self.pipeline.transformer(
            list(frames.unbind()), 1 - sigma.to(x.device), list(texts), return_dict=False
        )[0]
        return -pack(torch.stack(data_minus_noise)[:, :, 0].float())
