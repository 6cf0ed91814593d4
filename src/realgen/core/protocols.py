"""What a room can do, as structural types. Knows none of the plug-ins.

A plug-in module holds a class `Options(Spec)` and a function `build(options, machine)` that returns the room's
Protocol. Torch appears in annotations only: importing this file does not load it.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from PIL.Image import Image

from realgen.core.types import Progress, Rewrite, Score, ScorerInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

Size = tuple[int, int]
"""Width and height in pixels."""


class PromptOptimizer(Protocol):
    """Words to richer words."""

    def __call__(self, prompts: Sequence[str], *, seeds: Sequence[int]) -> list[Rewrite]:
        """One rewrite a prompt, in order; the rewrite of prompt i depends on `prompts[i]` and `seeds[i]` alone."""
        ...


class Generator(Protocol):
    """Texts to images."""

    @property
    def max_text_tokens(self) -> int | None:
        """The longest text that the model reads, in its tokens; None where there is no limit."""
        ...

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text`, with those that mark its end."""
        ...

    def can_read(self, text: str) -> bool:
        """Whether the model knows any token of `text`: one that reads English may know none of another script."""
        ...

    def __call__(
        self, texts: Sequence[str], *, seeds: Sequence[int], size: Size | None = None
    ) -> Iterator[Image | Progress]:
        """One image a text, in order, with Progress between; image i depends on `texts[i]` and `seeds[i]` alone."""
        ...


class FlowBackbone(Protocol):
    """All that differs between the flow-matching models; the sampler is the same for all of them.

    `x` is a batch of packed latents (B, tokens, channels); `sigma` runs from 1 (noise) to 0 (image).
    """

    module: "nn.Module"
    """What LoRA wraps and an optimiser updates."""

    lora_targets: tuple[str, ...]
    """Ends of the names of the module's layers that the published LoRA adapts."""

    @property
    def idle_layers(self) -> tuple[str, ...]:
        """Those of them whose output nothing reads, as the last block's for the text: adapters there never learn."""
        ...

    max_text_tokens: int

    def num_text_tokens(self, text: str) -> int:
        """Tokens of `text`, with those that mark its end."""
        ...

    def can_read(self, text: str) -> bool:
        """Whether the model knows any token of `text`: one that reads English may know none of another script."""
        ...

    def encode(self, texts: Sequence[str]) -> Any:
        """The condition of a batch of texts."""
        ...

    def remember(self, texts: Sequence[str]) -> None:
        """Encode texts for good and move the text encoders to the CPU; a text that is new still works, but slower."""
        ...

    def check_size(self, size: Size) -> None:
        """Raise InputError for a size that the model cannot draw."""
        ...

    def noise(self, seeds: Sequence[int], size: Size) -> "Tensor":
        """Float32 noise (B, tokens, channels), drawn on the CPU with one generator a seed."""
        ...

    def sigmas(self, steps: int, size: Size) -> "Tensor":
        """Noise levels (steps + 1,) from 1 down to 0, as the checkpoint's own scheduler sets them."""
        ...

    def velocity(
        self, x: "Tensor", sigma: "Tensor", condition: Any, *, guidance: "float | Tensor", size: Size
    ) -> "Tensor":
        """Noise minus data at `x` (B, tokens, channels), with guidance (one number, or (B,)) folded in."""
        ...

    def latents(self, images: Sequence[Image]) -> "Tensor":
        """Packed latents (B, tokens, channels) of images of one size."""
        ...

    def decode(self, x: "Tensor", size: Size) -> "Tensor":
        """Pixels (B, 3, H, W) in [0, 1] of packed latents."""
        ...


class Scorer(Protocol):
    """Images and the persons' prompts to Scores."""

    info: ScorerInfo

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image, in order, of its own image and prompt alone; a bad image is unscored, no error."""
        ...


class DifferentiableScorer(Scorer, Protocol):
    """A scorer with gradients down to the pixels."""

    def differentiable(self, pixels: "Tensor") -> "Tensor":
        """Scores (B,) of pixels (B, 3, H, W) in [0, 1]."""
        ...


class TrainableDetector(DifferentiableScorer, Protocol):
    """A detector that can learn on."""

    module: "nn.Module"
    """What an optimiser updates."""
