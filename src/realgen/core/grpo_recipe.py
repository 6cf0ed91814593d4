"""The recipe of GRPO on a flow, as a closed, typed record. Reads nothing."""

from typing import Literal, Self

from pydantic import Field, model_validator

from realgen.core.spec import Plug, Scored, Spec
from realgen.core.training_recipes import TrainRecipe


class Lora(Spec):
    """Low-rank adapters on the layers that the backbone names; Hu et al. 2021, arXiv 2106.09685."""

    rank: int = Field(default=64, ge=1)
    """Rank of each adapter."""

    alpha: float = Field(default=128, gt=0)
    """An adapter's output is scaled by alpha / rank."""


class Window(Spec):
    """The steps of a rollout that are stochastic, and so can be trained; all others are ODE steps.

    Shared by all images of a rollout, on every process: images of one group then differ by their noise alone.
    """

    length: int = Field(default=3, ge=1)
    """Consecutive steps."""

    first: int = Field(default=0, ge=0)
    """The earliest step that it may start at; 0 is pure noise."""

    last: int = Field(default=0, ge=0)
    """The latest step that it may start at."""

    move: Literal["random", "sliding"] = "random"
    """Drawn anew for every rollout, or moved on by one step every `every` rollouts, from `first` to `last` and over."""

    every: int = Field(default=1, ge=1)
    """Rollouts between the moves of a sliding window."""

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        if self.first > self.last:
            message = f"the window starts at {self.first} at the earliest and at {self.last} at the latest"
            raise ValueError(message)
        return self


class FlowGrpoRecipe(TrainRecipe, Scored):
    """Post-training of a flow-matching generator by GRPO: groups of images of one prompt, compared by a reward."""

    kind: Literal["flow_grpo"]

    generator: Plug
    """The generator that is trained, drawing as it will serve: steps, guidance and size are its options."""

    prompt_optimizer: Plug | None = None
    """Rewrites the prompts once, before training; null trains on the prompts as they stand."""

    prompts: str
    """Training prompts, one a line: a path, or the name of a list in the package."""

    eval_prompts: str
    """Held-out prompts, drawn with seeds 0, 1, ... by the average at every evaluation."""

    num_previews: int = Field(default=16, ge=0)
    """The first so many held-out prompts are kept as pictures at every evaluation."""

    num_prompts: int = Field(default=24, ge=1)
    """Prompts of a rollout."""

    group: int = Field(default=21, ge=1)
    """Images of each prompt."""

    updates: int = Field(default=1, ge=1)
    """Optimiser steps that share a rollout, each on its own equal part of the prompts."""

    inner_epochs: int = Field(default=1, ge=1)
    """Passes over a rollout."""

    same_latent: bool = False
    """Whether the images of a prompt begin from one noise, and so differ by their stochastic steps alone: what a reward
    says of them is then said of those steps (DanceGRPO, Xue et al. 2025, arXiv 2505.07818)."""

    window: Window = Window()

    sampler: Literal["flow_sde", "cps"] = "flow_sde"
    """The stochastic step: Flow-SDE, or coefficient-preserving sampling."""

    eta: float = Field(default=0.9, gt=0, le=1.5)
    """Noise level of the stochastic steps."""

    ratio: Literal["plain", "guard", "guard_batch"] = "guard"
    """The likelihood ratio: as it is, or normalised by GRPO-Guard per image, or per batch as first published."""

    clip: float = Field(default=2e-6, gt=0)
    """Half-width of the clip range of the ratio; it scales as 1 / sqrt(number of latent elements)."""

    kl: Literal["velocity", "step", "mean"] = "velocity"
    """Distance to the reference: of velocities, of steps, or of steps but for their length (as first published)."""

    kl_weight: float = Field(default=4e-4, ge=0)
    """Weight of that distance; 0 leaves it out, and the reference need not be computed."""

    deviation: Literal["group", "all"] = "group"
    """Rewards are divided by their deviation in the group, or over all images of the rollout."""

    max_advantage: float = Field(default=5.0, gt=0)
    """Advantages are clamped to this size."""

    lora: Lora | None = Lora()
    """Adapters to train; null trains all weights."""

    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's weight decay."""

    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this joint norm."""

    max_skipped: int = Field(default=3, ge=0)
    """Optimiser steps in a row that may be skipped for a gradient that is not finite, before the run stops."""

    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, a third slower."""

    is_scoring_beside: bool = True
    """Score one micro-batch while the next is drawn."""

    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where figures go beside metrics.jsonl."""

    @property
    def period(self) -> int:
        """Optimiser steps of a rollout."""
        return self.updates * self.inner_epochs

    @model_validator(mode="after")
    def _can_compare(self) -> Self:
        if self.group < 2:
            message = "group must be at least 2: GRPO compares images of one prompt"
            raise ValueError(message)
        if self.reward is None:
            message = "no reward: say reward.weights.NAME=1 for a scorer NAME"
            raise ValueError(message)
        if self.sampler == "cps" and (self.ratio != "plain" or self.kl == "mean"):
            message = "the ratio guard and the distance mean weigh steps as Flow-SDE takes them: sampler=flow_sde"
            raise ValueError(message)
        if self.num_prompts % self.updates:
            near = min((n for n in range(1, self.num_prompts + 1) if self.num_prompts % n == 0), key=self._from_updates)
            message = f"{self.num_prompts} prompts cannot be shared by {self.updates} updates; nearest: updates={near}"
            raise ValueError(message)
        if self.steps % self.period:
            near = max(1, round(self.steps / self.period)) * self.period
            message = f"{self.steps} steps are no whole rollouts of {self.period}; nearest: steps={near}"
            raise ValueError(message)
        return self

    def _from_updates(self, value: int) -> int:
        return abs(value - self.updates)
