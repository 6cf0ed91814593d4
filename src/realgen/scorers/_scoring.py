"""What the scorers share: readable pictures in chunks, and an unscored Score with its reason for all else."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from PIL.Image import Image

from realgen.core.images import ImageBatch
from realgen.core.types import Score

Input = TypeVar("Input")


def score_batch(
    images: Sequence[Image],
    prompts: Sequence[str],
    values: Callable[[list[Input], list[str]], Sequence[float]],
    *,
    prepare: Callable[[Image], Input],
    batch: int,
) -> list[Score]:
    """One Score an image, in order: `values(prepared, prompts)` over chunks of at most `batch` readable pictures.

    `prepare` is computed once an image however many scorers share it, where it is the same (equal, hashable) object.
    A picture that cannot be decoded and a value that is no finite number are unscored, with the reason.
    """
    pictures = ImageBatch.of(images)
    if len(prompts) != len(pictures):
        raise ValueError(f"{len(pictures)} images, {len(prompts)} prompts")
    scores = [Score(None, reason=pictures.reasons.get(index, "")) for index in range(len(pictures))]
    readable = list(pictures.readable)
    for start in range(0, len(readable), batch):
        chunk = readable[start : start + batch]
        prepared = [pictures.derived(index, prepare) for index in chunk]
        found = values(prepared, [prompts[index] for index in chunk])
        for index, value in zip(chunk, found, strict=True):
            scores[index] = as_score(value)
    return scores


def as_score(value: float) -> Score:
    """`value`, or unscored where it is no finite number."""
    number = float(value)
    return Score(number) if math.isfinite(number) else Score(None, reason=f"the model answered {number}")
