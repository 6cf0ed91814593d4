"""Qwen-Image as a flow backbone over diffusers' own classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from diffusers import QwenImagePipeline
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from realgen.core.errors import ConfigError
from realgen.core.protocols import Size
from realgen.core.spec import Machine, Spec
from realgen.generators._flow import FlowGenerator
from realgen.generators._loading import load_pipeline
from realgen.generators._packed import JOINT_ATTENTION, PackedBackbone, guidance_scales, pack
from realgen.generators._texts import States, count_tokens, knows_any


class Options(Spec):
    """Options of the Qwen-Image generator."""

    model: str | None = None
    """Checkpoint folder or hub id; a card sets it."""

    steps: int = Field(default=50, ge=2)
    """Denoising steps an image, of two denoiser evaluations each where guidance is above 1; the schedule's end is
    stretched, which takes at least 2."""

    guidance: float = Field(default=4.0, ge=0)
    """Classifier-free guidance scale (`true_cfg_scale` in diffusers); 1 and below is none."""

    negative_prompt: str = ""
    """What guidance leads away from."""

    size: tuple[int, int] = (1024, 1024)
    """Width and height in pixels, multiples of 16."""

    max_text_tokens: int = Field(default=512, ge=1, le=1024)
    """Longest text that is read, in tokens, with the five that end its turn."""

    lora: str | None = None
    """LoRA file or folder to load."""

    lora_scale: float = 1.0
    """Strength of the LoRA."""


class Reading(NamedTuple):
    """Texts as Qwen-Image reads them."""

    embeds: Tensor
    """Qwen2.5-VL's states (B, tokens, width), zero where a text is shorter."""
    mask: Tensor | None
    """Where there is text (B, tokens); None where all are of one length."""


class Condition(NamedTuple):
    """A batch of texts, and the one that guidance leads away from."""

    texts: Reading
    """The texts (B)."""
    negative: Reading
    """The negative prompt (1)."""


def build(options: Options, machine: Machine) -> FlowGenerator:
    """A generator from options."""
    if options.model is None:
        raise ConfigError("qwen_image: no model", hint="give generator.card=NAME or generator.options.model=PATH")
    pipeline = load_pipeline(
        QwenImagePipeline, options.model, machine, lora=options.lora, lora_scale=options.lora_scale
    )
    backbone = QwenImageBackbone(
        pipeline, max_text_tokens=options.max_text_tokens, negative_prompt=options.negative_prompt
    )
    return FlowGenerator(
        backbone, steps=options.steps, guidance=options.guidance, size=options.size, batch=machine.batch
    )


_TEXT_OUT = ("attn.add_q_proj", "attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2")
"""What a block's answer about the text goes through."""


class QwenImageBackbone(PackedBackbone):
    """Qwen-Image: packed latents (B, H/16 * W/16, channels * 4), guidance that keeps each token's length."""

    lora_targets = (*JOINT_ATTENTION, "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")

    def __init__(self, pipeline: QwenImagePipeline, *, max_text_tokens: int, negative_prompt: str = "") -> None:
        super().__init__(pipeline, text_encoders=(pipeline.text_encoder,), max_text_tokens=max_text_tokens)
        self.negative_prompt = negative_prompt

    @property
    def idle_layers(self) -> tuple[str, ...]:
        """The last block's for the text, which is not read after it."""
        last = len(self.pipeline.transformer.transformer_blocks) - 1
        return tuple(f"transformer_blocks.{last}.{name}" for name in _TEXT_OUT)

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text` with those that end its turn; the system's turn before it is not counted, nor read."""
        asked = self.pipeline.prompt_template_encode.format(text)
        return count_tokens(self.pipeline.tokenizer, asked) - int(self.pipeline.prompt_template_encode_start_idx)

    def can_read(self, text: str) -> bool:
        """Whether any token of `text` is in the vocabulary."""
        return knows_any(self.pipeline.tokenizer, text)

    def encode(self, texts: Sequence[str]) -> Condition:
        """States of the texts and of the negative prompt; one seen before is not computed again."""
        (*states, negative) = (states for (states,) in self._texts([*texts, self.negative_prompt]))
        return Condition(reading_of(states), reading_of([negative]))

    def remember(self, texts: Sequence[str]) -> None:
        """Encode these texts for good and move the text encoder to the CPU; a new text still works, but slower."""
        super().remember([*texts, self.negative_prompt])

    def _states(self, texts: list[str]) -> Iterable[States]:
        embeds, mask = self.pipeline.encode_prompt(texts, max_sequence_length=self.max_text_tokens)
        if mask is None:
            return ((states,) for states in embeds)
        return ((states[is_text.bool()],) for states, is_text in zip(embeds, mask, strict=True))

    def velocity(
        self, x: Tensor, sigma: Tensor, condition: Condition, *, guidance: float | Tensor, size: Size
    ) -> Tensor:
        """Noise minus data (B, tokens, channels * 4), float32: the guided one, at the length of the conditional one.

        guided = negative + guidance * (positive - negative), each token scaled by |positive| / |guided|.
        """
        positive = self._predicted(x, sigma, condition.texts, size)
        scales = guidance_scales(guidance, x, none=1)
        if scales is None:
            return positive
        embeds = condition.negative.embeds
        negative = self._predicted(x, sigma, Reading(embeds.expand(len(x), -1, -1), None), size)
        guided = negative + scales * (positive - negative)
        shortest = torch.finfo(guided.dtype).tiny  # a token of zeros stays one
        return guided * (positive.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp_min(shortest))

    def _predicted(self, x: Tensor, sigma: Tensor, texts: Reading, size: Size) -> Tensor:
        transformer, dtype = self.pipeline.transformer, texts.embeds.dtype
        height, width = self._latent_shape(size)
        shapes = [[(1, height // 2, width // 2)]] * len(x)
        if torch.is_inference_mode_enabled():
            # Positions are cached for good, and what inference mode makes cannot be saved for a backward pass.
            with torch.inference_mode(False):
                transformer.pos_embed(shapes, max_txt_seq_len=texts.embeds.shape[1], device=x.device)
        v: Tensor = transformer(
            hidden_states=x.to(dtype),
            timestep=(sigma * 1000).to(x.device, dtype) / 1000,  # rounded as the pipeline does it
            encoder_hidden_states=texts.embeds,
            encoder_hidden_states_mask=texts.mask,
            img_shapes=shapes,
            return_dict=False,
        )[0]
        return v.float()

    def latents(self, images: Sequence[Image.Image]) -> Tensor:
        """Packed latents (B, tokens, channels * 4) of images of one size: the posterior's mean."""
        frames = self._pixels(images)[:, :, None]  # (B, 3, 1, H, W): a film of one picture
        mean, deviation = self._statistics()
        return pack((self.pipeline.vae.encode(frames).latent_dist.mean[:, :, 0].float() - mean) / deviation)

    def decode(self, x: Tensor, size: Size) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1], float32."""
        vae = self.pipeline.vae
        mean, deviation = self._statistics()
        latents = self._unpacked(x, size) * deviation + mean
        pixels: Tensor = vae.decode(latents[:, :, None].to(vae.dtype), return_dict=False)[0][:, :, 0]
        return (pixels.float() / 2 + 0.5).clamp(0, 1)

    @property
    def _channels(self) -> int:
        channels: int = self.pipeline.vae.config.z_dim
        return channels

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's latents, each (C, 1, 1)."""
        config = self.pipeline.vae.config
        mean, deviation = (torch.tensor(numbers) for numbers in (config.latents_mean, config.latents_std))
        return mean.view(-1, 1, 1).to(self._device), deviation.view(-1, 1, 1).to(self._device)


def reading_of(states: Sequence[Tensor]) -> Reading:
    """Texts' states (tokens, width) as one batch."""
    embeds = pad_sequence(list(states), batch_first=True)
    lengths = torch.tensor([len(one) for one in states], device=embeds.device)
    is_text = torch.arange(embeds.shape[1], device=embeds.device) < lengths[:, None]
    return Reading(embeds, None if bool(is_text.all()) else is_text)
