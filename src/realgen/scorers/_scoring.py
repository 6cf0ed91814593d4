"""What the scorers share: readable pictures in chunks, and an unscored Score with its reason for all else."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from PIL.Image import Image

from realgen.core.images import ImageBatch
from realgen.core.types import Score

Input = TypeVar("Input")

NO_PROMPT = "no prompt to measure it by"
"""Why a scorer of picture and prompt leaves a picture unscored that came alone."""


def score_batch(
    images: Sequence[Image],
    prompts: Sequence[str],
    values: Callable[[list[Input], list[str]], Sequence[float]],
    *,
    prepare: Callable[[Image], Input],
    batch: int,
    needs_prompt: bool = False,
) -> list[Score]:
    """One Score an image, in order: `values(prepared, prompts)` over chunks of at most `batch` readable pictures.

    `prepare` is computed once an image however many scorers share it, where it is the same (equal, hashable) object.
    A picture that cannot be decoded and a value that is no finite number are unscored, with the reason; so is a
    picture whose prompt is blank, where the scorer `needs_prompt`.
    """
    pictures = ImageBatch.of(images)
    if len(prompts) != len(pictures):
        raise ValueError(f"{len(pictures)} images, {len(prompts)} prompts")
    scores = [Score(None, reason=pictures.reasons.get(index, NO_PROMPT)) for index in range(len(pictures))]
    judged = [index for index in pictures.readable if prompts[index].strip() or not needs_prompt]
    for start in range(0, len(judged), batch):
        chunk = judged[start : start + batch]
        prepared = [pictures.derived(index, prepare) for index in chunk]
        found = values(prepared, [prompts[index] for index in chunk])
        for index, value in zip(chunk, found, strict=True):
            scores[index] = as_score(value)
    return scores


def as_score(value: float) -> Score:
    """`value`, or unscored where it is no finite number."""
    number = float(value)
    return Score(number) if math.isfinite(number) else Score(None, reason=f"the model answered {number}")
