"""Which images a process draws and trains on, and with what noise. Arithmetic alone.

A rollout is `num_prompts` prompts with `group` images each, in that order. It is cut into `updates` equal parts, each
part into equal shares for the processes, each share into micro-batches. Prompts and noise are functions of
(run seed, rollout, prompt, member), never of the process.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from realgen.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a rollout."""

    place: int
    """Its place in the rollout, prompt by prompt."""

    prompt: int
    """Its prompt's place in the list of prompts."""

    member: int
    """Its place in the group."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of a rollout."""

    num_prompts: int
    group: int
    updates: int
    micro_batch: int
    processes: int

    @property
    def num_images(self) -> int:
        """Images of a rollout."""
        return self.num_prompts * self.group

    @property
    def num_accumulated(self) -> int:
        """Micro-batches that a process accumulates in an optimiser step."""
        return self.num_images // (self.updates * self.processes * self.micro_batch)

    def check(self) -> None:
        """Raise ConfigError, naming the nearest valid choices, where the images cannot be shared out evenly."""
        together = self.num_images // self.updates
        if together % self.processes:
            raise ConfigError(
                f"{together} images an optimiser step cannot be shared by {self.processes} processes",
                hint=f"nearest: {_nearest_divisor(together, self.processes)} processes, or group={self._group()}",
            )
        share = together // self.processes
        if share % self.micro_batch:
            raise ConfigError(
                f"{share} images a process and optimiser step are no whole micro-batches of {self.micro_batch}",
                hint=f"nearest: machine.batch={_nearest_divisor(share, self.micro_batch)}, or group={self._group()}",
            )

    def _group(self) -> int:
        """The nearest group that would do; this many prompts times the least common multiple always does."""
        prompts, unit = self.num_prompts // self.updates, self.processes * self.micro_batch
        fitting = (group for group in range(2, self.group + unit + 2) if prompts * group % unit == 0)
        return min(fitting, key=lambda group: abs(group - self.group))

    def micro_batches(self, update: int, rank: int, prompts: Sequence[int]) -> Iterator[list[Row]]:
        """The micro-batches of one process in one update; `prompts` are the places of the rollout's prompts."""
        share = self.num_images // (self.updates * self.processes)
        start = (update * self.processes + rank) * share
        for first in range(start, start + share, self.micro_batch):
            yield [self._row(place, prompts) for place in range(first, first + self.micro_batch)]

    def _row(self, place: int, prompts: Sequence[int]) -> Row:
        return Row(place, prompts[place // self.group], place % self.group)


def _nearest_divisor(number: int, wanted: int) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - wanted))


def prompts_of(rollout: int, *, total: int, count: int, seed: int) -> list[int]:
    """Places of the `count` prompts of a rollout: every epoch goes through all `total` in an order of its own.

    What an epoch has over whole rollouts is left out, other prompts in every epoch. ConfigError where there are too
    few prompts for one.
    """
    if total < count:
        raise ConfigError(f"{total} prompts, and a rollout draws {count}", hint=f"num_prompts={total}, or more prompts")
    epoch, part = divmod(rollout, total // count)
    order = np.random.default_rng((seed, epoch)).permutation(total)
    return [int(place) for place in order[part * count : (part + 1) * count]]


def noise_seed(seed: int, rollout: int, row: Row, step: int | None = None) -> int:
    """Seed of an image's first noise, or of the noise that its stochastic step `step` adds: 63 bits of SHA-256."""
    key = f"{seed} {rollout} {row.prompt} {row.member} {'start' if step is None else step}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1


def window_start(rollout: int, *, first: int, last: int, every: int | None, seed: int) -> int:
    """The step that a rollout's window starts at: drawn from `first` to `last`, or moved on every `every` rollouts."""
    if every is None:
        return int(np.random.default_rng((seed, rollout, 1)).integers(first, last + 1))
    return first + rollout // every % (last - first + 1)
