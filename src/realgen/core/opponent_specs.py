"""Recipes of the discriminators that a flow learns against."""

from typing import Self

from pydantic import Field, model_validator

from realgen.core.spec import Spec


class OpponentSpec(Spec):
    """A discriminator that a flow learns against."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of what it asks for."""

    learning_rate: float = Field(default=4e-4, gt=0)
    """Its learning rate."""

    updates: int = Field(default=3, ge=1)
    """Its updates a step, all on what it sees of the step's batch."""

    width: int = Field(default=128, ge=1)
    """Channels of its heads."""


class PictureOpponentSpec(OpponentSpec):
    """Looks at decoded pictures through the `eye`, each update under another augmentation."""

    count: int | None = Field(default=None, ge=1)
    """How many of a batch it looks at; null is all."""

    lattice_weight: float = Field(default=0.0, ge=0)
    """Weight of how much pictures follow the lattice of their tokens."""


class LatentOpponentSpec(OpponentSpec):
    """Looks at noised latents through a frozen flow."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Its learning rate."""

    updates: int = Field(default=3, ge=1)
    """Its updates a step, each under other noise."""

    older: int = Field(default=12, ge=0)
    """How many latents that were drawn in earlier steps it learns from in each."""

    model: str | None = None
    """The FLUX.1 it looks through (folder or hub id, same latents and texts); null is the flow as it stood."""

    blocks: tuple[int, ...] = Field(default=(2, 5, 8), min_length=1)
    """After which blocks, counted through those of two streams and of one."""

    levels: tuple[float, float] = (0.03, 0.85)
    """Range of the noise levels that latents are looked at."""

    finer: float = Field(default=1.7, gt=0)
    """How much more often at the low ones, where fine things are seen: a power of a uniform share; 1 is all alike."""

    @model_validator(mode="after")
    def _levels_are_a_range(self) -> Self:
        least, most = self.levels
        if not 0 <= least <= most < 1:
            raise ValueError(f"levels go up from 0 to below 1, not from {least:g} to {most:g}")
        return self
