"""Prompts to images: rewrite, check the length, draw, score, one Sample at a time. Knows Protocols, never plug-ins."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from PIL.Image import Image

from realgen.core.errors import InputError, RealGenError
from realgen.core.images import ImageBatch
from realgen.core.protocols import Generator, PromptOptimizer, Scorer
from realgen.core.types import Progress, Request, Rewrite, Sample, Score


def generate(
    requests: Sequence[Request], generator: Generator, *, optimizer: PromptOptimizer | None, batch: int
) -> Iterator[Sample | Progress]:
    """Samples in the order of `requests`, with Progress between.

    InputError before any is drawn for a prompt that is too long or, without an optimiser, of which the model knows no
    word; with one, which may translate, when its turn comes and what it became is not known either.
    """
    for request in requests:
        _check_length(request.prompt, generator)
        if optimizer is None:
            _check_words(request.prompt, generator)
    for size, run in groupby(requests, key=lambda request: request.size):
        same_size = list(run)
        for start in range(0, len(same_size), batch):
            chunk = same_size[start : start + batch]
            rewrites = rewrite(chunk, generator, optimizer=optimizer)
            for request, rewritten in zip(chunk, rewrites, strict=True):
                is_within = request.prompt.strip(" .") in rewritten.text  # what stands around it may be known alone
                _check_words(request.prompt if is_within else rewritten.text, generator)
            drawn = generator(
                [rewrite.text for rewrite in rewrites], seeds=[request.seed for request in chunk], size=size
            )
            made = iter(zip(chunk, rewrites, strict=True))
            for item in drawn:
                if isinstance(item, Progress):
                    yield item
                else:
                    request, rewritten = next(made)
                    yield Sample(request=request, text=rewritten.text, image=item, note=rewritten.reason)


def rewrite(
    requests: Sequence[Request], generator: Generator | None, *, optimizer: PromptOptimizer | None
) -> list[Rewrite]:
    """One text a request: the prompt itself without an optimiser, or where the rewrite is too long for the model."""
    prompts = [request.prompt for request in requests]
    if optimizer is None:
        return [Rewrite(prompt) for prompt in prompts]
    rewrites = optimizer(prompts, seeds=[request.seed for request in requests])
    return [
        _fitting(rewritten, prompt, generator) if generator else rewritten
        for rewritten, prompt in zip(rewrites, prompts, strict=True)
    ]


def score(
    items: Iterable[Sample | Progress], scorers: Mapping[str, Scorer], *, batch: int
) -> Iterator[Sample | Progress]:
    """The samples in order with these scorers' scores beside those they have; Progress passes at once.

    Up to `batch` samples wait for each other. A scorer is given the person's prompt, never the text.
    """
    waiting: list[Sample] = []
    for item in items:
        if isinstance(item, Progress):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == batch:
            yield from _scored(waiting, scorers)
            waiting = []
    yield from _scored(waiting, scorers)


def score_images(
    images: Sequence[Image], prompts: Sequence[str], *, scorers: Mapping[str, Scorer]
) -> list[dict[str, Score]]:
    """Each image's scores by the scorer's name; the images are decoded once for all scorers.

    A scorer that raises a RealGenError leaves these images unscored by it, with the reason.
    """
    pictures = ImageBatch.of(images)
    columns = {name: _answers(scorer, pictures, prompts) for name, scorer in scorers.items()}
    return [{name: column[index] for name, column in columns.items()} for index in range(len(pictures))]


def _scored(samples: Sequence[Sample], scorers: Mapping[str, Scorer]) -> Iterator[Sample]:
    images, prompts = [sample.image for sample in samples], [sample.request.prompt for sample in samples]
    found = score_images(images, prompts, scorers=scorers) if samples else []
    for sample, scores in zip(samples, found, strict=True):
        yield replace(sample, scores={**sample.scores, **scores})


def _answers(scorer: Scorer, pictures: ImageBatch, prompts: Sequence[str]) -> list[Score]:
    try:
        answers = scorer(pictures, prompts)
    except RealGenError as error:
        return [Score(None, reason=error.message)] * len(pictures)
    if len(answers) != len(pictures):
        raise ValueError(f"{len(pictures)} images, {len(answers)} scores")
    return [_finite(answer) for answer in answers]


def _finite(score: Score) -> Score:
    if score.value is None or math.isfinite(score.value):
        return score
    return Score(None, reason=f"answered {score.value}")


def _fitting(rewritten: Rewrite, prompt: str, generator: Generator) -> Rewrite:
    limit = generator.max_text_tokens
    if limit is not None and (length := generator.num_text_tokens(rewritten.text)) > limit:
        return Rewrite(prompt, reason=f"the rewrite has {length} tokens, the model reads {limit}")
    if not generator.can_read(rewritten.text):
        return Rewrite(prompt, reason="the model knows no word of the rewrite")
    return rewritten


def _check_length(prompt: str, generator: Generator) -> None:
    limit = generator.max_text_tokens
    if limit is not None and (length := generator.num_text_tokens(prompt)) > limit:
        raise InputError(
            f"the prompt has {length} tokens, the model reads {limit}: {prompt[:50]!r}...", hint="shorten it"
        )


def _check_words(text: str, generator: Generator) -> None:
    if not generator.can_read(text):
        raise InputError(f"the model knows no word of {text[:50]!r}", hint="say it in English, which most models read")
