"""A vision-language model that is shown one picture at a time and asked a question: on this machine or on a server.

Knows no question and no meaning of an answer.
"""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import Protocol, Self

from PIL.Image import Image
from pydantic import Field, model_validator

from realgen.core.errors import ConfigError
from realgen.core.images import ImageBatch
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score
from realgen.scorers._answers import Written
from realgen.scorers._chat import Chat, Server


class ViewerOptions(Spec):
    """Which model looks, and where it runs."""

    model: str | None = None
    """Folder of a Qwen2.5-VL model, its id on the Hugging Face hub, or its name on the server; a card fills it in."""

    server: Server | None = None
    """An OpenAI-compatible server that runs the model, whichever it is; null runs it on this machine."""

    max_pixels: int | None = Field(default=None, ge=56 * 56)
    """A larger image is shown smaller; null keeps the checkpoint's own bound, and sends a server the whole image."""

    @model_validator(mode="after")
    def _server_knows_its_model(self) -> Self:
        if self.server is not None and self.model is None:
            raise ValueError("a server needs the name of the model on it: set options.model")
        return self


class Viewer(Protocol):
    """A model that looks at RGB images. Each answer depends on its own image alone; a Score says why there is none."""

    def weigh(self, images: Sequence[Image], question: str, *, words: Sequence[str]) -> list[dict[str, float] | Score]:
        """How likely each word (one token) is to begin the answer: logarithms, up to a constant of the image."""
        ...

    def write(self, images: Sequence[Image], question: str, *, max_tokens: int) -> list[Written | Score]:
        """The likeliest answer to each image, word by word."""
        ...


def open_viewer(options: ViewerOptions, machine: Machine) -> Viewer:
    """The model, loaded, or the server, not yet asked. ConfigError where neither is named."""
    if options.server is not None:
        return Chat(options.server, options.model or "", max_pixels=options.max_pixels)
    if options.model is None:
        raise ConfigError("no vision-language model", hint="give the scorer a card, or options.model=PATH")
    from realgen.scorers._vlm import load

    return load(options.model, machine, max_pixels=options.max_pixels)


def score_each(
    images: Sequence[Image], prompts: Sequence[str], answer: Callable[[list[Image]], Sequence[Score]]
) -> list[Score]:
    """One Score an image, in order; `answer` is given the readable ones as RGB, and gives as many Scores."""
    pictures = ImageBatch.of(images)
    if len(prompts) != len(pictures):
        raise ValueError(f"{len(pictures)} images, {len(prompts)} prompts")
    scores = [Score(None, reason=pictures.reasons.get(index, "")) for index in range(len(pictures))]
    readable = list(pictures.readable)
    for index, score in zip(readable, answer([pictures[index] for index in readable]), strict=True):
        scores[index] = score
    return scores


def shipped_question(name: str) -> str:
    """The question called `name` in the package."""
    return (resources.files("realgen") / "prompts" / f"{name}.md").read_text(encoding="utf-8").strip()
