"""Image quality from 1 to 5, as VisualQuality-R1 (arXiv 2505.14460) rates it: no detector, and blind to the prompt.

Decoding is greedy, where the published use samples: the same image gets the same rating. An answer that cannot be read
is unscored, never the least rating. The question is ours, not the one that the model was trained on word for word.
"""

import re
from collections.abc import Sequence

from PIL.Image import Image
from pydantic import Field

from realgen.core.protocols import Scorer
from realgen.core.spec import Machine
from realgen.core.types import Score, ScorerInfo
from realgen.scorers._answers import excerpt, scored
from realgen.scorers._viewer import Viewer, ViewerOptions, open_viewer, score_each, shipped_question

_LOW, _HIGH = 1.0, 5.0
_TAGGED = re.compile(r"<answer>([^<]*)</answer>", re.IGNORECASE)
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*")


class Options(ViewerOptions):
    """The model and what it is asked."""

    question: str | None = None
    """What the model is asked; it must ask for a number from 1 to 5 inside answer tags; null takes the shipped one."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest answer in the model's tokens, thoughts included."""


class VisualQuality:
    """A vision-language model as a judge of quality: 1 is very poor, 5 is excellent."""

    def __init__(self, viewer: Viewer, options: Options) -> None:
        self.info = ScorerInfo(
            low=_LOW,
            high=_HIGH,
            is_detector=False,
            is_held_out=False,
            licence="unknown",
            source="VisualQuality-R1 (arXiv 2505.14460, github.com/TianheWu/VisualQuality-R1)",
        )
        self._viewer = viewer
        self._max_tokens = options.max_tokens
        self._question = options.question or shipped_question("visual_quality")

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """The rating of each image; the prompts are not looked at."""
        return score_each(images, prompts, self._ratings)

    def _ratings(self, images: Sequence[Image]) -> list[Score]:
        answers = self._viewer.write(images, self._question, max_tokens=self._max_tokens)
        return [scored(answer, read_rating) for answer in answers]


def read_rating(text: str) -> Score:
    """The number between the answer tags; unscored where there is none, another one too, or one outside of 1 to 5."""
    numbers = {_NUMBER.fullmatch(tagged) for tagged in _TAGGED.findall(text)}
    ratings = {float(number[1]) for number in numbers if number}
    if len(ratings) != 1 or None in numbers:
        problem = "several ratings" if len(ratings) > 1 else "no rating"
        return Score(None, reason=f"{problem} in the answer {excerpt(text)}")
    rating = ratings.pop()
    if not _LOW <= rating <= _HIGH:
        return Score(None, reason=f"a rating of {rating:g} is outside of {_LOW:g} to {_HIGH:g}")
    return Score(rating)


def build(options: Options, machine: Machine) -> Scorer:
    """The judge, its model loaded; a server is not asked before the first image."""
    return VisualQuality(open_viewer(options, machine), options)
