"""Another scorer's mean over fixed views of an image: as it is, JPEG, smaller, blurred.

A detector that lives on traces of compression or on the finest detail changes its mind under them; the mean is harder
to please by such traces alone. The views are the same for every image and every call. With gradients, the resized and
blurred views are torch's: a resize differs from Pillow's by an 8-bit level, a blur by about 0.01 in [0, 1] and more at
hard edges, since Pillow's is three box filters (tested). JPEG has no gradients, so its views are left out. Knows
nothing of the scorer within.
"""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image, ImageFilter
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from realgen.core.images import ImageBatch
from realgen.core.protocols import DifferentiableScorer, Scorer
from realgen.core.spec import Machine, Plug, Spec
from realgen.core.types import Score
from realgen.hub.plugs import build_scorer, configure

JPEG_SIDE = 65_500
"""The longest side of a JPEG file."""


class Options(Spec):
    """Which scorer sees which views."""

    scorer: Plug
    """The scorer within: name, card, options, as in a recipe."""

    as_it_is: bool = True
    """Whether the image as it is counts as a view."""

    jpeg: tuple[int, ...] = (90, 70)
    """JPEG qualities from 1 to 95, a view each."""

    resize: tuple[float, ...] = (0.75,)
    """Factors of the sides, a view each; above 1 enlarges."""

    blur: tuple[float, ...] = (0.7,)
    """Standard deviations of a Gaussian blur in pixels, a view each."""

    @model_validator(mode="after")
    def _can_be_seen(self) -> Self:
        if not self.as_it_is and not (self.jpeg or self.resize or self.blur):
            message = "no view is left: keep as_it_is, or name a jpeg quality, a resize factor or a blur"
            raise ValueError(message)
        if not all(1 <= quality <= 95 for quality in self.jpeg):
            message = "a jpeg quality is 1 to 95"
            raise ValueError(message)
        if not all(0 < value <= 4 for value in (*self.resize, *self.blur)):
            message = "a resize factor and a blur are above 0 and at most 4"
            raise ValueError(message)
        configure("scorers", self.scorer)
        return self


@dataclass(frozen=True)
class AsItIs:
    """The image itself."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The RGB image itself."""
        return image

    def differentiable(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) themselves."""
        return pixels


@dataclass(frozen=True)
class Jpeg:
    """The image through a JPEG file of this quality; one too long for the format is as it is."""

    quality: int

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of the same size."""
        if max(image.size) > JPEG_SIDE:
            return image
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality)
        return Image.open(file).convert("RGB")


@dataclass(frozen=True)
class Resize:
    """The image with its sides times `factor` (at least a pixel), bilinear and antialiased."""

    factor: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of the new size."""
        return image.resize(self._sides(image.width, image.height), Image.Resampling.BILINEAR)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """(B, 3, H', W') of pixels (B, 3, H, W) in [0, 1]."""
        width, height = self._sides(pixels.shape[3], pixels.shape[2])
        return F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True, align_corners=False)

    def _sides(self, width: int, height: int) -> tuple[int, int]:
        return max(1, round(width * self.factor)), max(1, round(height * self.factor))


@dataclass(frozen=True)
class Blur:
    """The image under a Gaussian of this standard deviation in pixels, its edge repeated."""

    deviation: float

    def __call__(self, image: Image.Image) -> Image.Image:
        """An RGB image of the same size."""
        return image.filter(ImageFilter.GaussianBlur(self.deviation))

    def differentiable(self, pixels: Tensor) -> Tensor:
        """The same of pixels (B, 3, H, W) in [0, 1]: the Gaussian itself, where Pillow takes three box filters."""
        reach = math.ceil(4 * self.deviation)
        offsets = torch.arange(-reach, reach + 1, device=pixels.device, dtype=pixels.dtype)
        kernel = torch.softmax(-(offsets**2) / (2 * self.deviation**2), dim=0).expand(3, 1, 1, -1)
        padded = F.pad(pixels, (reach,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


View = AsItIs | Jpeg | Resize | Blur


class Augmented:
    """A scorer that answers with another's mean over views; unscored where one view is."""

    def __init__(self, scorer: Scorer, views: Sequence[View]) -> None:
        self.scorer = scorer
        self.views = tuple(views)
        self.info = scorer.info

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> list[Score]:
        """One Score an image: the mean over the views of the scorer within."""
        pictures = ImageBatch.of(images)
        answers = [self.scorer(_seen(pictures, view), prompts) for view in self.views]
        return [
            Score(None, reason=pictures.reasons[index]) if index in pictures.reasons else _mean(scores, self.views)
            for index, scores in enumerate(zip(*answers, strict=True))
        ]


class DifferentiableAugmented(Augmented):
    """The same over a scorer with gradients: its mean over the views that have them."""

    scorer: DifferentiableScorer

    def differentiable(self, pixels: Tensor, *prompts: Sequence[str]) -> Tensor:
        """Scores (B,) of pixels (B, 3, H, W) in [0, 1]; the JPEG views are left out.

        Prompts are handed on, for a scorer within that takes them.
        """
        views = [view for view in self.views if not isinstance(view, Jpeg)]
        seen = [self.scorer.differentiable(view.differentiable(pixels), *prompts) for view in views]
        return torch.stack(seen).mean(0)


def build(options: Options, machine: Machine) -> Augmented:
    """The scorer within under the views, its files fetched where they are missing; with gradients where it has them."""
    views: list[View] = [AsItIs()] if options.as_it_is else []
    views += [Jpeg(quality) for quality in options.jpeg]
    views += [Resize(factor) for factor in options.resize]
    views += [Blur(deviation) for deviation in options.blur]
    scorer = build_scorer(options.scorer, machine)
    has_gradients = callable(getattr(scorer, "differentiable", None))
    has_views = any(not isinstance(view, Jpeg) for view in views)
    return (DifferentiableAugmented if has_gradients and has_views else Augmented)(scorer, views)


def _seen(pictures: ImageBatch, view: Callable[[Image.Image], Image.Image]) -> ImageBatch:
    """The batch under a view, made once however many scorers look; the unreadable keep their places."""
    if isinstance(view, AsItIs):
        return pictures
    return ImageBatch(
        [
            pictures[index] if index in pictures.reasons else pictures.derived(index, view)
            for index in range(len(pictures))
        ]
    )


def _mean(scores: Sequence[Score], views: Sequence[View]) -> Score:
    values: list[float] = []
    for score, view in zip(scores, views, strict=True):
        if score.value is None:
            return Score(None, reason=f"{view}: {score.reason or 'unscored'}")
        values.append(score.value)
    return Score(math.fsum(values) / len(values))
