"""A flow backbone and the sampler make a generator. Knows no particular model."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image

from realgen.core.errors import InputError, ModelError
from realgen.core.protocols import FlowBackbone, Size
from realgen.core.types import Progress
from realgen.formulas.flow import trajectory
from realgen.formulas.pixels import to_images


class FlowGenerator:
    """Draws texts with a FlowBackbone; image i depends on `texts[i]` and `seeds[i]` alone."""

    def __init__(self, backbone: FlowBackbone, *, steps: int, guidance: float, size: Size, batch: int) -> None:
        backbone.check_size(size)
        self.backbone = backbone
        self.steps, self.guidance, self.size, self.batch = steps, guidance, size, batch

    @property
    def max_text_tokens(self) -> int:
        """The longest text that the model reads, in its tokens."""
        return self.backbone.max_text_tokens

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text`, with those that mark its end."""
        return self.backbone.num_text_tokens(text)

    def can_read(self, text: str) -> bool:
        """Whether the model knows any token of `text`."""
        return self.backbone.can_read(text)

    def __call__(
        self, texts: Sequence[str], *, seeds: Sequence[int], size: Size | None = None
    ) -> Iterator[Image.Image | Progress]:
        """The images in order, and between them how far the batch in work is. Size is (width, height)."""
        size = size or self.size
        self.backbone.check_size(size)
        self.check_texts(texts)
        for start in range(0, len(texts), self.batch):
            chunk = slice(start, start + self.batch)
            yield from self._draw(texts[chunk], seeds[chunk], size)

    def check_texts(self, texts: Sequence[str]) -> None:
        """Raise InputError for a text that is longer than the model reads, or of which it knows no word."""
        for text in texts:
            if text and not self.can_read(text):
                raise InputError(f"the model knows no word of {text[:50]!r}", hint="say it in English, say")
            if (length := self.num_text_tokens(text)) > self.max_text_tokens:
                raise InputError(
                    f"the text has {length} tokens, the model reads {self.max_text_tokens}: {text[:60]!r}...",
                    hint="shorten it",
                )

    @torch.inference_mode()
    def _draw(self, texts: Sequence[str], seeds: Sequence[int], size: Size) -> Iterator[Image.Image | Progress]:
        backbone = self.backbone
        condition = backbone.encode(texts)
        sigmas = backbone.sigmas(self.steps, size)
        x = backbone.noise(seeds, size)

        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            return backbone.velocity(x, sigma, condition, guidance=self.guidance, size=size)

        for step in trajectory(velocity, x, sigmas):
            x = step.x
            yield Progress(step.index + 1, self.steps)
        pixels = backbone.decode(x, size)
        if not (x.isfinite().all() and pixels.isfinite().all()):
            raise not_finite()
        yield from to_images(pixels)


def not_finite() -> ModelError:
    """What is said of a picture of which a number is none."""
    return ModelError(
        "the model drew numbers that are not finite",
        hint="a machine.dtype of wider range (bfloat16, float32) may mend it, or the model fetched again",
    )
