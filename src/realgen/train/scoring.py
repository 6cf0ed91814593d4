"""Scores micro-batches while the next are drawn. Knows no scorer: it is handed one function for all of them."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from realgen.core.types import Score
from realgen.formulas.pixels import sharpness, to_images

ScoreImages = Callable[[Sequence[Image.Image], Sequence[str]], list[dict[str, Score]]]
"""(images, prompts) -> each image's scores by the scorer's name; what fails is unscored, with the reason."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One image's scores and sharpness, by its place in the rollout."""

    place: int
    scores: Mapping[str, Score]
    sharpness: float


class ScoringQueue:
    """One worker that scores in the order given; without `is_beside` the caller does it, at once."""

    def __init__(self, score: ScoreImages, *, is_beside: bool) -> None:
        self._score = score
        self._worker = ThreadPoolExecutor(1, initializer=_as_many_threads_as_here()) if is_beside else None
        self._pending: list[Future[list[Judged]] | list[Judged]] = []

    def put(self, places: Sequence[int], pixels: Tensor, prompts: Sequence[str]) -> None:
        """Score pixels (B, 3, H, W) in [0, 1] of the images at these places."""
        images, sharp = to_images(pixels), sharpness(pixels).tolist()
        if self._worker is None:
            self._pending.append(self._judge(places, images, sharp, prompts))
        else:
            self._pending.append(self._worker.submit(self._judge, places, images, sharp, prompts))

    def results(self) -> list[Judged]:
        """All that was put since the last call, in order; an error of the worker is raised here."""
        pending, self._pending = self._pending, []
        return [one for part in pending for one in (part if isinstance(part, list) else part.result())]

    def close(self) -> None:
        """Let go of what waits to be scored; what is being scored is finished."""
        if self._worker is not None:
            self._worker.shutdown(wait=False, cancel_futures=True)

    def _judge(
        self, places: Sequence[int], images: Sequence[Image.Image], sharp: Sequence[float], prompts: Sequence[str]
    ) -> list[Judged]:
        return [Judged(*one) for one in zip(places, self._score(images, prompts), sharp, strict=True)]


def _as_many_threads_as_here() -> Callable[[], None]:
    """A new thread has torch's default number of threads, and another number may round differently."""
    count = torch.get_num_threads()
    return lambda: torch.set_num_threads(count)
