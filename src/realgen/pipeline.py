"""Prompts to images: rewrite, check the length, draw, one Sample at a time. Knows Protocols, never plug-ins."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from realgen.core.errors import InputError
from realgen.core.protocols import Generator, PromptOptimizer
from realgen.core.types import Progress, Request, Rewrite, Sample


def generate(
    requests: Sequence[Request], generator: Generator, *, optimizer: PromptOptimizer | None, batch: int
) -> Iterator[Sample | Progress]:
    """Samples in the order of `requests`, with Progress between; too long a prompt is an error before any is drawn."""
    for request in requests:
        _check_length(request.prompt, generator)
    for size, run in groupby(requests, key=lambda request: request.size):
        same_size = list(run)
        for start in range(0, len(same_size), batch):
            chunk = same_size[start : start + batch]
            rewrites = rewrite(chunk, generator, optimizer=optimizer)
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


def _fitting(rewritten: Rewrite, prompt: str, generator: Generator) -> Rewrite:
    limit = generator.max_text_tokens
    if limit is not None and (length := generator.num_text_tokens(rewritten.text)) > limit:
        return Rewrite(prompt, reason=f"the rewrite has {length} tokens, the model reads {limit}")
    return rewritten


def _check_length(prompt: str, generator: Generator) -> None:
    limit = generator.max_text_tokens
    if limit is not None and (length := generator.num_text_tokens(prompt)) > limit:
        raise InputError(
            f"the prompt has {length} tokens, the model reads {limit}: {prompt[:50]!r}...", hint="shorten it"
        )
