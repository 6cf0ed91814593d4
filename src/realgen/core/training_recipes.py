"""The recipes of training, as closed, typed records. Reads nothing."""

from typing import Literal, Self

from pydantic import Field, model_validator

from realgen.core.spec import LocalPath, Machine, Spec


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

    data: LocalPath | None = None
    """Folder of photographs with a manifest.jsonl."""

    batch: int = Field(ge=1)
    """Samples an optimiser step."""


class AutoencoderRecipe(PhotographRecipe):
    """Training of an autoencoder on photographs."""

    kind: Literal["autoencoder"]

    model: LocalPath | None = None
    """Folder of an AutoencoderKL, or of a pipeline that holds one, to go on from; its widths are then its own."""

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

    model: LocalPath
    """Folder of an AutoencoderKL, or of a pipeline that holds one as its `vae`."""

    drawn: int = Field(default=0, ge=0)
    """Pictures that the pipeline draws for captions, whose patches must look real too; 0: reconstructions alone."""

    guidance: float = Field(default=3.0, ge=0)
    """How closely they follow their captions."""

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

    autoencoder: LocalPath
    """Folder of the trained autoencoder."""

    prompts: tuple[LocalPath, ...] = ()
    """Files with a prompt a line, for the vocabulary."""

    teacher: LocalPath
    """Folder of a sentence encoder of MiniLM's class."""


class UnseenWordsRecipe(PhotographRecipe):
    """A FLUX.1's text encoders learn words that no caption of the photographs holds, by a sentence encoder's sense."""

    kind: Literal["unseen_words"]

    model: str
    """The FLUX.1 folder or hub id to start from."""

    teacher: LocalPath
    """Folder of a sentence encoder of MiniLM's class."""

    words: tuple[LocalPath, ...] = Field(min_length=1)
    """Files with a word a line; those that captions hold are left out."""

    wordnet: LocalPath | None = None
    """Folder of a WordNet 3 dictionary (data.noun and index.noun), which says what kinds of thing the words name."""

    least_cosine: float = Field(default=0.5, ge=-1, le=1)
    """How near a word must lie to its nearest subject to be learned."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""


class FlowRecipe(PhotographRecipe):
    """Training of a FLUX.1's flow on captioned photographs."""

    model: str
    """The FLUX.1 folder or hub id to start from."""

    size: tuple[int, int] = (128, 128)
    """Width and height in pixels, alike, multiples of 16; of other photographs the middle square is taken, resized."""

    max_text_tokens: int = Field(default=64, ge=1, le=512)
    """Text length that T5 is padded to."""

    category_weights: dict[str, float] = Field(default_factory=dict)
    """How much more often a category is drawn than one of weight 1; `none` for photographs without one."""

    source_weights: dict[str, float] = Field(default_factory=dict)
    """The same by the first part of a photograph's source, times the category's."""

    lora_rank: int = Field(default=0, ge=0)
    """Rank of the LoRA adapters; 0 trains all weights."""

    export_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the exported weights: float32 to train on, bfloat16 to serve."""

    elaborations: tuple[LocalPath, ...] = ()
    """Files with a long prompt a line, whose clauses make some captions longer for who learns, not for a teacher."""

    elaborated: float = Field(default=0.4, ge=0, le=1)
    """Share of captions that are made longer, where there are elaborations."""

    eye: LocalPath | None = None
    """Weights of an EfficientNet-Lite, which says man or woman in captions of official portraits where it sees it."""

    preview_prompts: tuple[str, ...] = ()
    """Prompts drawn at every evaluation."""

    @model_validator(mode="after")
    def _draws_squares(self) -> Self:
        width, height = self.size
        if width != height or width < 16 or width % 16:
            message = f"size: {width}x{height} cannot be trained: photographs are squares of a multiple of 16 pixels"
            raise ValueError(message)
        return self


class FlowSftRecipe(FlowRecipe):
    """Flow-matching training of a generator on captioned photographs, from scratch or from a checkpoint."""

    kind: Literal["flow_sft"]

    autoencoder: LocalPath | None = None
    """Folder of an AutoencoderKL to draw with instead of the model's own; its latents are measured anew."""

    single_blocks: int | None = Field(default=None, ge=1)
    """Single blocks of the transformer: those that the model lacks are added as identities, and learn."""

    short_text_tokens: int = Field(default=0, ge=0, le=512)
    """Length that the shorter half of a batch's texts is padded to where it fits, which saves time; 0 is never."""

    hold: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps at the peak learning rate, before it comes down."""

    representation: LocalPath | None = None
    """Folder of a CLIP that a middle layer learns to see with (what `realgen train alignment-tiny` exports)."""

    representation_layer: int = Field(default=1, ge=0)
    """Which of the transformer's single blocks learns it."""

    representation_weight: float = Field(default=0.5, gt=0)
    """Weight of that loss."""

    text_learning_rate: float = Field(default=0.0, ge=0)
    """Peak learning rate of the text encoders; 0 keeps them frozen."""

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of captions replaced by the empty text, so that guidance can be computed."""

    distil_guidance: tuple[float, float] | None = None
    """Distil classifier-free guidance of the model as it stands, at scales of this range, into its embedding."""

    teacher: str | None = None
    """Whose guidance is distilled or whose answers are held, where that is not the model as it stands."""

    weaker: str | None = None
    """An earlier stage of the model: half of the distilled guidance then leads away from its answers."""

    own_guidance: tuple[float, float] | None = None
    """Photographs teach at scales of this range, led by the model's own guidance: a distilled model can go on."""

    taught_sources: tuple[str, ...] = ()
    """Whose photographs teach then; what the teacher answers for others is held. None named: all teach."""

    least_sigma: float = Field(default=0.0, ge=0, lt=1)
    """Noise level from which they teach then; below it the model is held."""

    guided_below: float = Field(default=1.0, gt=0, le=1)
    """Noise level above which guidance shall change nothing, which makes the seeds of a prompt more varied."""

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if not (self.distil_guidance or self.own_guidance) and self.teacher:
            raise ValueError("teacher is for who learns from one: give distil_guidance=[1,6] too")
        if self.distil_guidance is None and self.weaker:
            raise ValueError("weaker is for who learns guidance: give distil_guidance=[1,6] too")
        if self.own_guidance and (self.distil_guidance or self.autoencoder):
            raise ValueError("own_guidance goes on with a distilled model in its own latents: leave out the others")
        if self.own_guidance is None and (self.taught_sources or self.least_sigma):
            message = "taught_sources and least_sigma say what own_guidance teaches: give own_guidance=[1,5]"
            raise ValueError(message)
        if not (self.distil_guidance or self.own_guidance) and self.guided_below < 1:
            raise ValueError("guided_below is for who learns guidance: give distil_guidance=[1,6] too")
        if self.single_blocks and (self.lora_rank or self.distil_guidance or self.own_guidance):
            raise ValueError("single_blocks is for plain training of whole weights: deepen first, then distil or adapt")
        if self.distil_guidance is not None and self.autoencoder is not None:
            message = "a teacher answers in its own latents: train with the new autoencoder first, then distil"
            raise ValueError(message)
        return self


class TrajectoryRecipe(FlowRecipe):
    """Training of a FLUX.1's flow on its own half-drawn pictures."""

    period: int = Field(default=32, ge=1)
    """Steps that learn from the same trajectories."""

    trajectory_steps: tuple[int, ...] = Field(default=(6, 8, 12), min_length=1)
    """Denoiser evaluations of a trajectory, of which one is chosen each time."""

    guidance: tuple[float, float] = (2.0, 5.0)
    """Range of the guidance that trajectories are drawn with."""


class ExpertsRecipe(TrajectoryRecipe):
    """Distillation of two experts into one: the model as it stands at high noise levels, another at low ones."""

    kind: Literal["experts"]

    late: str
    """The FLUX.1 folder or hub id that teaches at low noise levels, with the autoencoder and texts of `model`."""

    boundary: float = Field(default=0.78, gt=0, lt=1)
    """Noise level above which the model as it stands teaches."""


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

    guidance: float = Field(default=3.0, ge=0)
    """How closely the caption is followed."""


class DetectorRecipe(PhotographRecipe):
    """Training of a detector on photographs and generated pictures of the same content."""

    kind: Literal["detector"]

    network: Literal["pvt", "residual", "convnext"]
    """A small vision transformer on the whole picture; the noise residual's network; a small ConvNeXt, held out."""

    start: LocalPath | None = None
    """Exported detector of the same network to go on from; null starts fresh."""

    fakes: dict[str, FakesSpec] = Field(min_length=1)
    """Families of generated pictures, by name."""

    sources: tuple[str, ...] = ()
    """What the source of a photograph begins with; empty takes them all."""

    side: int = Field(default=128, ge=64)
    """Pixels of a picture's side."""

    min_crop: float = Field(default=1.0, gt=0, le=1)
    """Least share of the side that a random window keeps; 1 takes pictures whole."""

    degraded_photographs: float = Field(default=0.2, ge=0, le=1)
    """Share of photographs that are degraded too: the rarer, the more a degradation is a sign of a fake."""

    spoilt_photographs: float = Field(default=0.0, ge=0, le=1)
    """Share of the degraded fakes that are photographs, degraded by half and more: such a picture is not to pass."""


class AlignmentRecipe(PhotographRecipe):
    """Training of a small image-text dual encoder on captioned photographs."""

    kind: Literal["alignment"]

    text_model: str | None = None
    """A FLUX.1 folder whose CLIP text encoder and tokenizer the text tower starts from; null takes the embedded one."""

    side: int = Field(default=128, ge=64)
    """Pixels of a picture's side."""
