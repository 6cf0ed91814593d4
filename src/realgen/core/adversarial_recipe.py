"""The recipe of adversarial post-training, and of the discriminators that a flow learns against. Reads nothing."""

from typing import Literal, Self

from pydantic import Field, model_validator

from realgen.core.spec import LocalPath, Spec
from realgen.core.training_recipes import TrajectoryRecipe


class OpponentSpec(Spec):
    """A discriminator that a flow learns against."""

    weight: float = Field(default=1.0, gt=0)
    """Weight of what it asks for."""

    learning_rate: float = Field(default=4e-4, gt=0)
    """Its learning rate."""

    updates: int = Field(default=3, ge=1)
    """Its updates a step, all on what it sees of the step's batch."""

    older: int = Field(default=0, ge=0)
    """How many answers of earlier steps it learns from in each."""

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
    """How many latents of earlier steps it learns from in each."""

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


class EnlargedOpponentSpec(OpponentSpec):
    """Looks at decoded pictures through the `eye`, enlarged to what that learned on: at what they show."""

    updates: int = Field(default=1, ge=1)
    """Its updates a step, each on other windows."""

    older: int = Field(default=8, ge=0)
    """How many pictures of earlier steps it learns from in each."""

    side: int = Field(default=240, ge=64)
    """Pixels of the side that pictures are enlarged to."""

    noise: float = Field(default=0.12, ge=0)
    """Most noise, of the range of a pixel, that half of the pictures get."""


class AdversarialRecipe(TrajectoryRecipe):
    """Adversarial post-training: what a flow makes of its own half-drawn pictures has to look like a photograph."""

    kind: Literal["adversarial"]

    eye: LocalPath
    """Weights of an EfficientNet-Lite, through which an opponent looks too."""

    pictures: PictureOpponentSpec | None = PictureOpponentSpec()
    """Tells decoded pictures apart; null is nobody."""

    latents: LatentOpponentSpec | None = None
    """Tells latents apart; null is nobody."""

    enlarged: EnlargedOpponentSpec | None = None
    """Tells contents apart; null is nobody."""

    warmup: int = Field(default=50, ge=0)
    """Steps in which the opponents learn alone."""

    unrolled: int = Field(default=0, ge=0)
    """Through how many of the last steps of a whole drawing it learns; 0 takes half-drawn pictures."""

    kept_steps: int = Field(default=0, ge=0)
    """How many of the last steps of a whole drawing stay what they were: what is learned is what comes before."""

    finished_from: tuple[int, ...] = ()
    """After how many steps of a trajectory drawings are begun that it finishes: half of a batch photographs with noise,
    half its own; the steps before stay what they were. None takes half-drawn or whole ones."""

    likeness_weight: float = Field(default=7.0, ge=0)
    """Weight of the distance, through the `eye`, from the photographs that were begun from."""

    lateness: float = Field(default=2.0, gt=0)
    """What is asked of half-drawn ones at level s weighs 1 - s^lateness: the larger, the earlier they may settle."""

    anchor_weight: float = Field(default=1.0, ge=0)
    """Weight of the squared distance from what the flow answered before: of layout and colours, early of all."""

    trained_share: float = Field(default=1.0, gt=0, le=1)
    """What is exported lies this far on the way from the weights before to the trained ones."""

    @model_validator(mode="after")
    def _has_weights_before(self) -> Self:
        if self.lora_rank and self.trained_share < 1:
            raise ValueError("trained_share is for whole weights: give 1, and load the LoRA with a lora_scale")
        return self

    @model_validator(mode="after")
    def _unrolls_steps_of_one_trajectory(self) -> Self:
        if self.unrolled and (len(self.trajectory_steps) > 1 or self.unrolled > self.trajectory_steps[0]):
            steps = list(self.trajectory_steps)
            raise ValueError(
                f"unrolled={self.unrolled} of {steps} steps: give trajectory_steps=[N], N at least as many"
            )
        if self.kept_steps and self.kept_steps >= self.unrolled:
            raise ValueError(f"kept_steps={self.kept_steps}: give more in unrolled, which counts them")
        return self

    @model_validator(mode="after")
    def _finishes_what_can_be_begun(self) -> Self:
        if not self.finished_from:
            return self
        if self.unrolled or self.batch < 2:
            raise ValueError(
                "finished_from takes drawings that are begun already: give unrolled=0, and batch=2 or more"
            )
        steps = self.trajectory_steps[0]
        if len(self.trajectory_steps) > 1 or not all(0 < begun < steps for begun in self.finished_from):
            wrong = f"finished_from={list(self.finished_from)} of {list(self.trajectory_steps)} steps"
            raise ValueError(f"{wrong}: give trajectory_steps=[N], and numbers from 1 to N - 1")
        return self

    @model_validator(mode="after")
    def _has_an_opponent(self) -> Self:
        if not (self.pictures or self.latents or self.enlarged):
            raise ValueError("nobody to learn against: give pictures={}, latents={} or enlarged={}")
        return self
