"""Batches prepared ahead of the step by other processes: an accelerator does not wait for captions and crops."""

import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

T = TypeVar("T")
DEPTH = 4
"""Batches that each process may be ahead."""
_FAR = 2**40


class Ahead(Generic[T]):
    """`batch_of(index)`, computed for the indices to come by `loaders` processes; by the caller where that is 0.

    A batch must be a function of its index alone, made on the CPU. Indices are expected in order: after a jump the
    processes start again from there.
    """

    def __init__(self, batch_of: Callable[[int], T], *, loaders: int) -> None:
        self._batch_of, self._loaders = batch_of, loaders
        self._next = -1
        self._coming: Iterator[T] = iter(())

    def __call__(self, index: int) -> T:
        """Batch number `index`."""
        if self._loaders == 0:
            return self._batch_of(index)
        if index != self._next:
            self._coming = iter(
                DataLoader(
                    _Batches(self._batch_of),
                    batch_size=None,
                    sampler=range(index, _FAR),
                    num_workers=self._loaders,
                    multiprocessing_context="fork",
                    prefetch_factor=DEPTH,
                    worker_init_fn=_alone,
                    pin_memory=torch.cuda.is_available(),
                )
            )
        self._next = index + 1
        return next(self._coming)


def _alone(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked tokenizer's threads would wait for its parent's


class _Batches(Dataset[T]):
    def __init__(self, batch_of: Callable[[int], T]) -> None:
        self._batch_of = batch_of

    def __getitem__(self, index: int) -> T:
        return self._batch_of(index)
