"""What flows between the rooms: small frozen records. Knows nothing of how they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL.Image import Image

MAX_SEED = 2**63 - 1
MAX_SIDE = 16_384
"""The longest side of an image, in pixels."""


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What a prompt optimiser made of a prompt.

    `reason` is empty for a rewritten text; otherwise it says why `text` is the prompt itself.
    """

    text: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's answer for one image; a `value` of None means "no opinion" and is never read as 0."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One image that is asked for: the person's prompt, the seed, and a name for the file where one was given."""

    prompt: str
    seed: int
    name: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work in hand is: `done` of `total` steps."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the images that a search chose from: its seed, its total and the parts of it (None: unscored).

    `is_violated` where a score is outside of its bound; `reason` says why the total is None.
    """

    seed: int
    total: float | None
    parts: Mapping[str, float | None]
    is_violated: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a search came to an image: what was asked for, all candidates in the order drawn, and why this one."""

    asked: Request
    candidates: tuple[Candidate, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with what made it; `note` says why the text is the prompt itself, where that was not asked for.

    Where a search chose the image, `request` is the candidate's own and `choice` says what was asked for.
    """

    request: Request
    text: str
    image: Image
    note: str = ""
    scores: Mapping[str, Score] = field(default_factory=dict)
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with its 95 % interval, the number of observations and how many were left out as unscored."""

    value: float
    low: float
    high: float
    n: int
    unscored: int = 0


@dataclass(frozen=True, slots=True)
class ScorerInfo:
    """A scorer's range, whether it is a detector (value = P(real)), whether it is held out of rewards, and origin.

    `caution` says in one line what its scores are not good for; empty where nothing needs saying.
    """

    low: float
    high: float
    is_detector: bool
    is_held_out: bool
    licence: str
    source: str
    caution: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which of two images a judge holds for more real; None where its answer could not be read."""

    winner: Literal["a", "b", "tie"] | None
    reason: str


@dataclass(frozen=True, slots=True)
class Origin:
    """How an image was made, as written into its file; a None prompt or text was withheld for privacy."""

    seed: int
    version: str
    recipe: Mapping[str, Any]
    prompt: str | None = None
    text: str | None = None
