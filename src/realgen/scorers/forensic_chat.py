"""P(real) of a vision-language model: the semantic detector that sees waxy skin, odd hands and wrong light.

Forensic-Chat (arXiv 2509.25502) is a Qwen2.5-VL-7B that was taught to judge, asked for one word. As RealGen reads it,
P(real) = softmax([mean logit of `fake` and `Fake`, mean logit of `real` and `Real`])[real] at the first token of the
answer: logits are averaged, not probabilities. Nothing is generated, so one forward pass scores a batch.

Any other model can be asked in words instead (`answer: verdict`): it then scores 1 for real and 0 for fake.
The questions are ours; a model that was tuned on another wording may answer a little differently.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from PIL.Image import Image
from pydantic import Field, model_validator

from realgen.core.images import ImageBatch
from realgen.core.protocols import Scorer
from realgen.core.spec import Machine
from realgen.core.types import Score, ScorerInfo
from realgen.scorers._answers import Written, excerpt, scored, without_thoughts
from realgen.scorers._scoring import as_score
from realgen.scorers._viewer import Viewer, ViewerOptions, open_viewer, score_each, shipped_question

_SOURCES = {
    "probability": "Forensic-Chat (arXiv 2509.25502), read as in RealGen (arXiv 2512.00473, github.com/yejy53/RealGen)",
    "verdict": "a model asked for a verdict, as in RealGen (arXiv 2512.00473, github.com/yejy53/RealGen)",
}
_QUESTIONS = {"probability": "real_or_fake", "verdict": "real_or_fake_verdict"}
_SIDE = r"(real|fake)(?![\w-])"
_LABELLED = re.compile(rf"\breal\s+or\s+fake\b\W{{0,8}}[:\uff1a]\W{{0,8}}{_SIDE}(?!\s*(?:/|\||or\b)\s*{_SIDE})", re.I)
_ALONE = re.compile(rf"\W*{_SIDE}\W*", re.I)


class Options(ViewerOptions):
    """The model, what it is asked, and how its answer becomes a number."""

    answer: Literal["probability", "verdict"] = "probability"
    """What is read: the probability of the answer's first word, or the verdict in a written answer (1 or 0)."""

    question: str | None = None
    """What the model is asked; null takes the shipped question for this kind of answer."""

    explain_question: str | None = None
    """What the model is asked for its reasons; null takes the shipped question."""

    real_tokens: tuple[str, ...] = Field(default=("real", "Real"), min_length=1)
    """First words, of one token each, that mean a photograph; the mean of their logits counts."""

    fake_tokens: tuple[str, ...] = Field(default=("fake", "Fake"), min_length=1)
    """First words, of one token each, that mean a generated picture."""

    max_tokens: int = Field(default=512, ge=1)
    """Longest written answer, in the model's tokens."""

    @model_validator(mode="after")
    def _sides_and_answer_agree(self) -> Self:
        if both := sorted(set(self.real_tokens) & set(self.fake_tokens)):
            message = f"{', '.join(both)} cannot mean both real and fake"
            raise ValueError(message)
        if self.answer == "probability" and self.server is not None and self.server.thinking:
            raise ValueError("the first word of a model that thinks is no answer: set options.answer=verdict")
        return self


class ForensicChat:
    """A vision-language model as a detector: P(real) in [0, 1], higher is more real."""

    def __init__(self, viewer: Viewer, options: Options) -> None:
        self.info = ScorerInfo(
            low=0.0,
            high=1.0,
            is_detector=True,
            is_held_out=False,
            licence="unknown",
            source=_SOURCES[options.answer],
        )
        self._viewer = viewer
        self._options = options
        self._question = options.question or shipped_question(_QUESTIONS[options.answer])
        self._explain_question = options.explain_question or shipped_question("real_or_fake_explained")

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """P(real) of each image; the prompts are not looked at."""
        return score_each(images, prompts, self._verdicts if self._options.answer == "verdict" else self._probabilities)

    def explain(self, images: Sequence[Image]) -> list[str]:
        """What the model says for itself about each image; empty where it cannot be shown or does not answer."""
        pictures = ImageBatch.of(images)
        readable = list(pictures.readable)
        answers = self._viewer.write(
            [pictures[index] for index in readable], self._explain_question, max_tokens=self._options.max_tokens
        )
        texts = {index: _text(answer) for index, answer in zip(readable, answers, strict=True)}
        return [texts.get(index, "") for index in range(len(pictures))]

    def _probabilities(self, images: Sequence[Image]) -> list[Score]:
        real, fake = self._options.real_tokens, self._options.fake_tokens
        answers = self._viewer.weigh(images, self._question, words=[*real, *fake])
        return [
            answer if isinstance(answer, Score) else as_score(probability(answer, real=real, fake=fake))
            for answer in answers
        ]

    def _verdicts(self, images: Sequence[Image]) -> list[Score]:
        answers = self._viewer.write(images, self._question, max_tokens=self._options.max_tokens)
        return [scored(answer, read_verdict) for answer in answers]


def probability(weights: Mapping[str, float], *, real: Sequence[str], fake: Sequence[str]) -> float:
    """P(real) in [0, 1] of the words' logits, or of their log-probabilities: a common constant cancels out."""
    mean_real, mean_fake = (math.fsum(weights[word] for word in words) / len(words) for words in (real, fake))
    return 0.5 + 0.5 * math.tanh((mean_real - mean_fake) / 2)


def read_verdict(text: str) -> Score:
    """1 for "Real or Fake: Real", 0 for "Real or Fake: Fake", or for that word alone; else unscored. Never raises."""
    alone = _ALONE.fullmatch(text)
    found = [alone] if alone else _LABELLED.finditer(text)
    sides = {match[1].lower() for match in found}
    if len(sides) == 1:
        return Score(1.0 if sides == {"real"} else 0.0)
    problem = "two verdicts that contradict each other" if sides else "no verdict"
    return Score(None, reason=f"{problem} in the answer {excerpt(text)}")


def build(options: Options, machine: Machine) -> Scorer:
    """The detector, its model loaded; a server is not asked before the first image."""
    return ForensicChat(open_viewer(options, machine), options)


def _text(answer: Written | Score) -> str:
    return without_thoughts(answer.text) if isinstance(answer, Written) else ""
