"""The recipes of training, as closed, typed records. Reads nothing."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from realgen.core.spec import Machine, Plug, Scored, Spec


class TrainRecipe(Spec):
    """What every training has."""

    steps: int = Field(ge=1)
    """Optimiser steps."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate, shared by Muon and AdamW."""

    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the weights' average, which is what is exported."""

    evaluate_every: int = Field(default=500, ge=0)
    """Steps between evaluations on held-out data, with pictures to look at; 0 is never."""

    save_minutes: float = Field(default=4, gt=0)
    """Minutes between checkpoints."""

    snapshots: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75)
    """Shares of the steps at which the average is kept."""

    seed: int = Field(default=0, ge=0)
    """Seed of everything that is drawn."""

    machine: Machine = Machine()


class PhotographRecipe(TrainRecipe):
    """Training on photographs."""

    data: Path | None = None
    """Folder of photographs with a manifest.jsonl."""

    batch: int = Field(ge=1)
    """Samples an optimiser step."""


class AutoencoderRecipe(PhotographRecipe):
    """Training of an autoencoder on photographs."""

    kind: Literal["autoencoder"]

    crop: int = Field(default=64, ge=16)
    """Side of a crop in pixels."""

    widths: tuple[int, ...] = (32, 64, 128, 128)
    """Channels of each level; each level after the first halves the picture."""

    groups: int = 8
    """Groups of each GroupNorm."""

    latent_channels: int = Field(default=16, ge=1)
    """Channels of the latents."""

    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the KL term against a standard normal; large values wash the colours out."""


class DecoderRecipe(PhotographRecipe):
    """Training of an autoencoder's decoder against a discriminator; encoder and latents stay as they are."""

    kind: Literal["decoder"]

    model: Path
    """Folder of an AutoencoderKL, or of a pipeline that holds one as its `vae`."""

    crop: int = Field(default=64, ge=16)
    """Side of a window in pixels, a multiple of the autoencoder's factor; photographs must be of one size."""

    discriminator_learning_rate: float = Field(default=4e-4, gt=0)
    """The discriminator's learning rate, which stays as it is."""

    adversarial_weight: float = Field(default=0.25, ge=0)
    """Length of the adversarial gradient over the pixel loss's, at the decoder's last layer; 0 leaves it out."""

    adversarial_warmup: int = Field(default=200, ge=0)
    """Steps that the discriminator learns before the decoder feels it; its weight then rises over as many."""


class TextDistillationRecipe(PhotographRecipe):
    """A fresh FLUX.1 folder around an autoencoder: tokenizers trained, text encoders distilled, the rest untrained."""

    kind: Literal["text_distillation"]

    autoencoder: Path
    """Folder of the trained autoencoder."""

    prompts: tuple[Path, ...] = ()
    """Files with a prompt a line, for the vocabulary."""

    teacher: Path
    """Folder of a sentence encoder of MiniLM's class."""


class UnseenWordsRecipe(PhotographRecipe):
    """A FLUX.1's text encoders learn words that no caption of the photographs holds, by a sentence encoder's sense."""

    kind: Literal["unseen_words"]

    model: str
    """The FLUX.1 folder or hub id to start from."""

    teacher: Path
    """Folder of a sentence encoder of MiniLM's class."""

    words: tuple[Path, ...] = Field(min_length=1)
    """Files with a word a line; those that captions hold are left out."""

    least_cosine: float = Field(default=0.5, ge=-1, le=1)
    """How near a word must lie to its nearest subject to be learned."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""


class FlowSftRecipe(PhotographRecipe):
    """Flow-matching training of a generator on captioned photographs, from scratch or from a checkpoint."""

    kind: Literal["flow_sft"]

    model: str
    """The FLUX.1 folder or hub id to start from."""

    size: tuple[int, int] = (128, 128)
    """Width and height in pixels; photographs of another size are resized."""

    max_text_tokens: int = Field(default=64, ge=1, le=512)
    """Text length that T5 is padded to."""

    short_text_tokens: int = Field(default=0, ge=0, le=512)
    """Length that the shorter half of a batch's texts is padded to where it fits, which saves time; 0 is never."""

    hold: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps at the peak learning rate, before it comes down."""

    representation: Path | None = None
    """Folder of a CLIP that a middle layer learns to see with (what `realgen train alignment-tiny` exports)."""

    representation_layer: int = Field(default=1, ge=0)
    """Which of the transformer's single blocks learns it."""

    representation_weight: float = Field(default=0.5, gt=0)
    """Weight of that loss."""

    text_learning_rate: float = Field(default=0.0, ge=0)
    """Peak learning rate of the text encoders; 0 keeps them frozen."""

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the empty text, so that guidance can be computed."""

    category_weights: dict[str, float] = Field(default_factory=dict)
    """How much more often a category is drawn than one of weight 1; `none` for photographs without one."""

    distil_guidance: tuple[float, float] | None = None
    """Distil classifier-free guidance of the model as it stands, at scales of this range, into its embedding."""

    weaker: str | None = None
    """An earlier stage of the model: half of the distilled guidance then leads away from its answers."""

    elaborations: tuple[Path, ...] = ()
    """Files with a long prompt a line, whose clauses make some captions longer for who learns, not for the teacher."""

    elaborated: float = Field(default=0.4, ge=0, le=1)
    """Share of captions that are made longer, where there are elaborations."""

    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters; 0 trains all weights."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts drawn at every evaluation."""

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.distil_guidance is None and (self.weaker is not None or self.elaborations):
            message = "weaker and elaborations are for who learns from a teacher: give distil_guidance=[1,6] too"
            raise ValueError(message)
        return self


class ClassifierRecipe(PhotographRecipe):
    """Training of a classifier of photographs by category, the yardstick for a generator."""

    kind: Literal["classifier"]

    categories: tuple[str, ...] = Field(min_length=2)
    """The categories that it tells apart; photographs of others are left out."""


class FakesSpec(Spec):
    """One family of generated pictures that a detector learns from."""

    model: str | None = None
    """The FLUX.1 folder or hub id that draws, or whose autoencoder redraws; null takes the embedded one."""

    count: int = Field(ge=1)
    """Pictures for training; a tenth more are made to calibrate on."""

    how: Literal["drawn", "redrawn"] = "drawn"
    """Drawn for a photograph's caption, or the photograph itself through the autoencoder."""

    steps: int = Field(default=20, ge=1)
    """Denoiser evaluations a picture."""

    guidance: float = Field(default=2.0, ge=0)
    """How closely the caption is followed."""


class DetectorRecipe(PhotographRecipe):
    """Training of a detector on photographs and generated pictures of the same content."""

    kind: Literal["detector"]

    network: Literal["vit", "residual", "convnext"]
    """A small ViT on the whole picture; the noise residual's network; a small ConvNeXt, for the held-out detector."""

    fakes: dict[str, FakesSpec] = Field(min_length=1)
    """Families of generated pictures, by name."""

    sources: tuple[str, ...] = ()
    """What the source of a photograph begins with; empty takes them all."""

    side: int = Field(default=128, ge=64)
    """Pixels of a picture's side."""


class AlignmentRecipe(PhotographRecipe):
    """Training of a small image-text dual encoder on captioned photographs."""

    kind: Literal["alignment"]

    text_model: str | None = None
    """A FLUX.1 folder whose CLIP text encoder and tokenizer the text tower starts from; null takes the embedded one."""

    side: int = Field(default=128, ge=64)
    """Pixels of a picture's side."""


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
