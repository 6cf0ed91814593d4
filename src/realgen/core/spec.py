"""What every recipe is made of: a closed record, a plug, a machine, a reward. Opens no file.

The docstring under a field is its help, wherever the field is shown.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:
        message = f"there is no such home folder as that of {path}"
        raise ValueError(message) from error


LocalPath = Annotated[Path, AfterValidator(_at_home)]
"""A path on this machine; ~ is the home folder."""


class Spec(BaseModel):
    """A closed, frozen record: an unknown key is an error, and nothing is converted silently."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, defer_build=True
    )


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
    """Keep a GPU's parts on the CPU until they are needed: whole models, or layer by layer (slow, smallest memory)."""

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

    loaders: int = Field(default=0, ge=0)
    """Processes that prepare batches of flow and detector trainings ahead; 0: each step prepares its own."""

    processes: int | None = Field(default=None, ge=1)
    """Processes that torchrun must have started; None takes as many as there are."""

    shard: bool = False
    """Split the trained weights among the processes (FSDP2), for models that do not fit one device."""


class Ensemble(Spec):
    """Several detectors as one part of a reward: a soft minimum of their P(real)."""

    scorers: tuple[str, ...] = Field(min_length=1)
    """Names of the recipe's scorers."""

    temperature: float = Field(default=0.1, gt=0)
    """Small takes the least P(real), large the mean; between them, disagreement costs."""


class Bound(Spec):
    """What a score must keep to for its image to be rewarded at all."""

    low: float | None = None
    """The least score that is allowed."""

    high: float | None = None
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

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(min_length=1)
    """Weight of each part: the name of an ensemble or of a scorer. A part of weight 0 is left out."""

    ensembles: dict[str, Ensemble] = Field(default_factory=dict)
    """Detectors that answer together, by the name of their part."""

    log_odds: tuple[str, ...] = ()
    """Detectors whose part is log(p / (1 - p)) of their P(real) p: pictures far from real are told apart as those near
    are. Not for members of an ensemble, which are compared as they are."""

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
        if idle := sorted(set(self.log_odds) - (set(self.weights) - set(self.ensembles))):
            message = f"log_odds names {idle[0]}, which is no scorer with a weight of its own"
            raise ValueError(message)
        return self


class Scored(Spec):
    """A recipe whose images are scored."""

    scorers: dict[str, Plug] = Field(default_factory=dict)
    """What looks at the images, by the names that tables and the reward use; null is none."""

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

    @field_validator("scorers", mode="before")
    @classmethod
    def _null_is_none(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _reward_names_scorers(self) -> Self:
        if missing := sorted(self.rewarded - set(self.scorers)):
            message = f"the reward names {', '.join(missing)}, which is no scorer of this recipe"
            raise ValueError(message)
        return self
