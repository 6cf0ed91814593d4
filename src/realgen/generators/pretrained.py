"""Any other diffusers text-to-image pipeline, for inference only."""

import warnings
from collections.abc import Iterator, Sequence
from inspect import signature
from typing import Any

import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image
from pydantic import Field, PositiveInt
from transformers import CLIPTokenizer, CLIPTokenizerFast

from realgen.core.errors import ConfigError, InputError, unloadable
from realgen.core.protocols import Size
from realgen.core.spec import Machine, Spec
from realgen.core.types import Progress
from realgen.generators._flow import not_finite
from realgen.generators._loading import load_pipeline
from realgen.generators._texts import count_tokens, knows_any


class Options(Spec):
    """Options of a stock diffusers pipeline."""

    model: str | None = None
    """Checkpoint folder or hub id."""

    steps: int = Field(default=28, ge=1)
    """Denoising steps."""

    guidance: float = Field(default=4.5, ge=0)
    """The pipeline's `guidance_scale`."""

    size: tuple[PositiveInt, PositiveInt] = (1024, 1024)
    """Width and height in pixels."""

    negative_prompt: str | None = None
    """What the picture should not show, where the pipeline takes it."""

    lora: str | None = None
    """LoRA file or folder to load."""

    lora_scale: float = 1.0
    """Strength of the LoRA."""


def build(options: Options, machine: Machine) -> "PretrainedGenerator":
    """A generator from options."""
    if options.model is None:
        raise ConfigError("pretrained: no model", hint="give generator.options.model=PATH or a hub id")
    pipeline = load_pipeline(
        AutoPipelineForText2Image, options.model, machine, lora=options.lora, lora_scale=options.lora_scale
    )
    return PretrainedGenerator(pipeline, options, batch=machine.batch)


class PretrainedGenerator:
    """Calls the pipeline as its authors wrote it, with one random generator an image.

    It reads as much of a text as its longest reader: its last tokenizer, up to the call's own default or, where that is
    CLIP's, to what CLIP reads.
    """

    def __init__(self, pipeline: Any, options: Options, *, batch: int) -> None:
        self.pipeline, self.options, self.batch = pipeline, options, batch
        self._takes = signature(pipeline.__call__).parameters
        if options.negative_prompt is not None and "negative_prompt" not in self._takes:
            raise ConfigError("this pipeline takes no negative_prompt", hint="leave it out")

    @property
    def max_text_tokens(self) -> int | None:
        """The longest text that is read; None where the pipeline does not say."""
        if isinstance(self._tokenizer, CLIPTokenizer | CLIPTokenizerFast):
            return int(self._tokenizer.model_max_length)
        said = self._takes.get("max_sequence_length")
        return said.default if said is not None and isinstance(said.default, int) else None

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text`, with those that mark its ends."""
        return count_tokens(self._tokenizer, text)

    def can_read(self, text: str) -> bool:
        """Whether any token of `text` is in the vocabulary."""
        return knows_any(self._tokenizer, text)

    @property
    def _tokenizer(self) -> Any:
        found = [getattr(self.pipeline, name, None) for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
        return next(tokenizer for tokenizer in reversed(found) if tokenizer is not None)

    def __call__(
        self, texts: Sequence[str], *, seeds: Sequence[int], size: Size | None = None
    ) -> Iterator[Image.Image | Progress]:
        """The images in order, a batch at a time."""
        width, height = size or self.options.size
        side = getattr(self.pipeline, "vae_scale_factor", 8)
        if width % side or height % side:
            raise InputError(f"cannot draw {width}x{height} pixels", hint=f"use multiples of {side}")
        for start in range(0, len(texts), self.batch):
            chunk = slice(start, start + self.batch)
            images = self._draw(list(texts[chunk]), seeds[chunk], width, height)
            if drawn := {image.size for image in images} - {(width, height)}:
                other = "x".join(map(str, drawn.pop()))
                raise InputError(f"the pipeline draws {other} where {width}x{height} is asked", hint=f"--size {other}")
            yield from images

    def _draw(self, texts: list[str], seeds: Sequence[int], width: int, height: int) -> list[Image.Image]:
        extra = (
            {}
            if self.options.negative_prompt is None
            else {"negative_prompt": [self.options.negative_prompt] * len(texts)}
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "invalid value encountered in cast", RuntimeWarning)
                images: list[Image.Image] = self.pipeline(
                    prompt=texts,
                    width=width,
                    height=height,
                    num_inference_steps=self.options.steps,
                    guidance_scale=self.options.guidance,
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                    **extra,
                ).images
        except RuntimeWarning as error:  # NumPy's, where a number is no colour
            raise not_finite() from error
        except (TypeError, ValueError, RuntimeError) as error:
            said = " ".join(str(error).split())[:200]
            raise unloadable(
                error,
                f"the pipeline {type(self.pipeline).__name__} cannot draw {width}x{height} pixels: {said}",
                hint="it must be a text-to-image pipeline, and the size one that it can draw",
            ) from error
        return images
