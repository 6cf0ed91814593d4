"""Recipes as closed, typed records: what can be said in YAML, and what each key means. Reads nothing.

The docstring under a field is its help, wherever the field is shown.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """A closed, frozen record: an unknown key is an error, and nothing is converted silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Plug(Spec):
    """One plug-in of a room: its file, a model card for it, and its own options."""

    name: str
    """The plug-in's file name without `.py`."""

    card: str | None = None
    """The model card that names its files: see `realgen list cards`."""

    options: dict[str, Any] = Field(default_factory=dict)
    """The plug-in's own options: see `realgen list ROOM`."""


class Machine(Spec):
    """What a run is computed on. It may change rounding, never what is sampled."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where tensors live; auto takes CUDA (or ROCm), then MPS, then the CPU."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto takes bfloat16 where the device computes in it, else float32."""

    offload: Literal["none", "model", "sequential"] = "none"
    """Keep parts on the CPU until they are needed: whole models, or layer by layer (slow, smallest memory)."""

    quantize: Literal["none", "int8", "nf4"] = "none"
    """Load the transformer quantised by bitsandbytes (CUDA)."""

    vae_tiling: bool = False
    """Decode large images in tiles."""

    compile: bool = False
    """Compile what is trained by torch.compile: a minute or two later, then about a quarter faster on a CPU."""

    batch: int = Field(default=8, ge=1)
    """Images drawn at once."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads; None leaves torch's own choice."""


class Ensemble(Spec):
    """Several detectors as one part of a reward: a soft minimum of their P(real)."""

    scorers: tuple[str, ...] = Field(min_length=1)
    """Names of the recipe's scorers."""

    temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    """Small takes the least P(real), large the mean; between them, disagreement costs."""


class Bound(Spec):
    """What a score must keep to for its image to be rewarded at all."""

    low: float | None = Field(default=None, allow_inf_nan=False)
    """The least score that is allowed."""

    high: float | None = Field(default=None, allow_inf_nan=False)
    """The greatest score that is allowed."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        if self.low is None and self.high is None:
            message = "a bound needs low, high or both"
            raise ValueError(message)
        if self.low is not None and self.high is not None and self.low > self.high:
            message = f"no score is at least {self.low:g} and at most {self.high:g}"
            raise ValueError(message)
        return self


class RewardSpec(Spec):
    """How scores become one wish."""

    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    """Weight of each part: the name of an ensemble or of a scorer. A part of weight 0 is left out."""

    ensembles: dict[str, Ensemble] = Field(default_factory=dict)
    """Detectors that answer together, by the name of their part."""

    constraints: dict[str, Bound] = Field(default_factory=dict)
    """Bounds by the name of a scorer; an image outside of one is the worst of its group."""

    max_unscored: float = Field(default=0.1, ge=0, le=1)
    """Share of a step's images that may stay unscored before the run stops."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not any(self.weights.values()):
            message = "all weights are 0: nothing is preferred"
            raise ValueError(message)
        if idle := sorted(set(self.ensembles) - set(self.weights)):
            message = f"the ensemble {idle[0]} has no weight"
            raise ValueError(message)
        return self


class _Scored(Spec):
    scorers: dict[str, Plug] = Field(default_factory=dict)
    """What looks at the images, by the names that tables and the reward use."""

    reward: RewardSpec | None = None
    """What `--best-of` and training prefer."""

    @property
    def rewarded(self) -> set[str]:
        """Names that the reward reads."""
        if self.reward is None:
            return set()
        together = {name for ensemble in self.reward.ensembles.values() for name in ensemble.scorers}
        alone = {name for name in self.reward.weights if name not in self.reward.ensembles}
        return together | alone | set(self.reward.constraints)

    @model_validator(mode="after")
    def _reward_names_scorers(self) -> Self:
        if missing := sorted(self.rewarded - set(self.scorers)):
            message = f"the reward names {', '.join(missing)}, which is no scorer of this recipe"
            raise ValueError(message)
        return self


class ScoreRecipe(_Scored):
    """How images are scored."""

    kind: Literal["score"]

    machine: Machine = Machine()


class GenerateRecipe(_Scored):
    """How prompts become images."""

    kind: Literal["generate"]

    prompt_optimizer: Plug | None = None
    """Rewrites the prompt; null draws the prompt as it stands."""

    generator: Plug
    """Draws the text."""

    machine: Machine = Machine()


class TrainRecipe(Spec):
    """What every training has."""

    data: Path | None = None
    """Folder of photographs with a manifest.jsonl."""

    steps: int = Field(ge=1)
    """Optimiser steps."""

    batch: int = Field(ge=1)
    """Samples an optimiser step."""

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


class AutoencoderRecipe(TrainRecipe):
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


class DecoderRecipe(TrainRecipe):
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


class TextDistillationRecipe(TrainRecipe):
    """A fresh FLUX.1 folder around an autoencoder: tokenizers trained, text encoders distilled, the rest untrained."""

    kind: Literal["text_distillation"]

    autoencoder: Path
    """Folder of the trained autoencoder."""

    prompts: tuple[Path, ...] = ()
    """Files with a prompt a line, for the vocabulary."""

    teacher: Path
    """Folder of a sentence encoder of MiniLM's class."""


class FlowSftRecipe(TrainRecipe):
    """Flow-matching training of a generator on captioned photographs, from scratch or from a checkpoint."""

    kind: Literal["flow_sft"]

    model: str
    """The FLUX.1 folder or hub id to start from."""

    size: tuple[int, int] = (128, 128)
    """Width and height in pixels; photographs of another size are resized."""

    max_text_tokens: int = Field(default=64, ge=1, le=512)
    """Text length that T5 is padded to."""

    text_learning_rate: float = Field(default=0.0, ge=0)
    """Peak learning rate of the text encoders; 0 keeps them frozen."""

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the empty text, so that guidance can be computed."""

    category_weights: dict[str, float] = Field(default_factory=dict)
    """How much more often a category is drawn than one of weight 1; `none` for photographs without one."""

    distil_guidance: tuple[float, float] | None = None
    """Distil classifier-free guidance of the model as it stands, at scales of this range, into its embedding."""

    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters; 0 trains all weights."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts drawn at every evaluation."""


class ClassifierRecipe(TrainRecipe):
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

    guidance: float = Field(default=3.0, ge=0)
    """How closely the caption is followed."""


class DetectorRecipe(TrainRecipe):
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


class AlignmentRecipe(TrainRecipe):
    """Training of a small image-text dual encoder on captioned photographs."""

    kind: Literal["alignment"]

    text_model: str | None = None
    """A FLUX.1 folder whose CLIP text encoder and tokenizer the text tower starts from; null takes the embedded one."""

    side: int = Field(default=128, ge=64)
    """Pixels of a picture's side."""


Recipe = (
    GenerateRecipe
    | ScoreRecipe
    | AutoencoderRecipe
    | DecoderRecipe
    | TextDistillationRecipe
    | FlowSftRecipe
    | ClassifierRecipe
    | DetectorRecipe
    | AlignmentRecipe
)
