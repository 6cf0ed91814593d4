"""What the scoring server and its clients say to each other: closed JSON records. Knows no HTTP and no models.

A call is multipart/form-data: one part `request`, a ScoreRequest in JSON, then one file part `image` a prompt, in
order, with the bytes of a PNG, JPEG or WebP file as they are (base64 in JSON would make them a third longer). The
answer is a ScoreResponse in JSON, or a Failure with a status that says whose fault it was. Nothing is pickled.
"""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from realgen.core.spec import Spec
from realgen.core.types import Score, ScorerInfo

SCHEMA: Literal[1] = 1
"""Version of these records. A server answers to its own alone, so that no field is misread."""

REQUEST_PART, IMAGE_PART = "request", "image"
"""Names of the parts of a call."""

MAX_PROMPT = 20_000
"""Longest prompt in characters."""

MAX_REQUEST_BYTES = 4 * 2**20
"""Longest `request` part in bytes."""

Version = Literal[1]
Prompt = Annotated[str, StringConstraints(max_length=MAX_PROMPT)]


class Limits(Spec):
    """What one call may hold; more is refused, never cut."""

    max_images: int = Field(default=64, ge=1)
    """Images in one call."""

    max_image_bytes: int = Field(default=32 * 2**20, ge=1)
    """Bytes of one image file."""

    max_body_bytes: int = Field(default=128 * 2**20, ge=1)
    """Bytes of the whole call."""

    max_pixels: int = Field(default=4096 * 4096, ge=1)
    """Pixels of one image."""


class ScoreRequest(Spec):
    """What is asked: every named scorer's opinion of every image."""

    schema_version: Version = SCHEMA
    """Version of the wire that the client speaks."""

    scorers: tuple[str, ...] = Field(min_length=1)
    """Names of the server's scorers, each once."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)
    """The person's prompt of each image, in the order of the images."""

    @field_validator("scorers")
    @classmethod
    def _each_once(cls, scorers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(scorers)) < len(scorers):
            raise ValueError("a scorer is named twice")
        return scorers


class WireScore(Spec):
    """One scorer's answer for one image."""

    value: float | None
    """The score; null means "no opinion" and is never read as 0."""

    reason: str = ""
    """Why there is no score."""

    @classmethod
    def of(cls, score: Score) -> Self:
        """`score` as it travels; a value that is no finite number becomes null."""
        if score.value is not None and not math.isfinite(score.value):
            return cls(value=None, reason=f"the model answered {score.value}")
        return cls(value=score.value, reason=score.reason)

    @property
    def score(self) -> Score:
        """The score as it is used."""
        return Score(self.value, self.reason)


class ScoreResponse(Spec):
    """The answer to a ScoreRequest."""

    schema_version: Version = SCHEMA
    """Version of the wire that the server speaks."""

    scores: dict[str, tuple[WireScore, ...]]
    """By scorer: one score an image, in the order of the images."""

    models: dict[str, str]
    """By scorer: what exactly scored, as in `ServedScorer.model`."""

    @model_validator(mode="after")
    def _the_same_images_for_all(self) -> Self:
        if set(self.scores) != set(self.models) or len({len(scores) for scores in self.scores.values()}) > 1:
            raise ValueError("scores and models do not fit together")
        return self


class ServedScorer(Spec):
    """One scorer of a server."""

    low: float
    """The least value."""

    high: float
    """The greatest value."""

    is_detector: bool
    """Whether its value is P(real)."""

    is_held_out: bool
    """Whether it may only evaluate."""

    licence: str
    """Licence of the weights."""

    source: str
    """Where the model comes from."""

    caution: str = ""
    """What its scores are not good for; empty where nothing needs saying."""

    model: str
    """Name and fingerprint of the plug-in, its options and its weights: equal where the scores are."""

    @classmethod
    def of(cls, info: ScorerInfo, *, model: str) -> Self:
        """`info` as it travels."""
        return cls(
            low=info.low,
            high=info.high,
            is_detector=info.is_detector,
            is_held_out=info.is_held_out,
            licence=info.licence,
            source=info.source,
            caution=info.caution,
            model=model,
        )

    @property
    def info(self) -> ScorerInfo:
        """The record as it is used."""
        return ScorerInfo(**self.model_dump(exclude={"model"}))


class ScorersResponse(Spec):
    """What a server serves."""

    schema_version: Version = SCHEMA
    """Version of the wire that the server speaks."""

    realgen: str
    """Version of the server's program."""

    scorers: dict[str, ServedScorer]
    """Its scorers by name."""

    limits: Limits
    """What one call may hold."""

    batch: int = Field(ge=1)
    """Images that its models take at once."""


class Failure(Spec):
    """Why a call was not answered."""

    error: str
    """What happened."""

    hint: str = ""
    """What to do."""
