"""Rewriting, length checks and order, with a generator of flat colours."""

import pytest
from PIL import Image

from realgen import pipeline
from realgen.core.errors import InputError
from realgen.core.types import Progress, Request, Rewrite


class Colours:
    """Draws the seed as a colour; reads 8 words."""

    max_text_tokens = 8

    def __init__(self):
        self.asked = []

    def num_text_tokens(self, text):
        return len(text.split())

    def __call__(self, texts, *, seeds, size=None):
        self.asked.append((list(texts), list(seeds), size))
        yield Progress(1, 1)
        for seed in seeds:
            yield Image.new("RGB", size or (4, 4), (seed, 0, 0))


def shout(prompts, *, seeds):
    return [Rewrite(f"{prompt}, {seed}") for prompt, seed in zip(prompts, seeds, strict=True)]


def ramble(prompts, *, seeds):
    return [Rewrite("word " * 9) for _ in prompts]


def samples_of(requests, generator, optimizer=None, batch=2):
    items = pipeline.generate(requests, generator, optimizer=optimizer, batch=batch)
    return [item for item in items if not isinstance(item, Progress)]


def test_samples_come_in_order_and_in_batches():
    generator = Colours()
    samples = samples_of([Request("a", seed) for seed in range(5)], generator)
    assert [sample.image.getpixel((0, 0))[0] for sample in samples] == [0, 1, 2, 3, 4]
    assert [len(texts) for texts, _, _ in generator.asked] == [2, 2, 1]
    assert all(sample.text == "a" and sample.note == "" for sample in samples)


def test_a_batch_holds_one_size():
    generator = Colours()
    requests = [Request("a", 0, size=(4, 4)), Request("b", 1, size=(8, 8)), Request("c", 2, size=(8, 8))]
    samples = samples_of(requests, generator)
    assert [sample.image.size for sample in samples] == [(4, 4), (8, 8), (8, 8)]
    assert [size for _, _, size in generator.asked] == [(4, 4), (8, 8)]


def test_the_text_is_the_rewrite_and_the_prompt_is_kept():
    (sample,) = samples_of([Request("a cat", 3)], Colours(), shout)
    assert (sample.request.prompt, sample.text, sample.note) == ("a cat", "a cat, 3", "")


def test_too_long_a_rewrite_falls_back_to_the_prompt_and_says_so():
    (sample,) = samples_of([Request("a cat", 3)], Colours(), ramble)
    assert sample.text == "a cat"
    assert sample.note == "the rewrite has 9 tokens, the model reads 8"


def test_too_long_a_prompt_is_an_error_before_anything_is_drawn():
    generator = Colours()
    with pytest.raises(InputError, match="9 tokens, the model reads 8"):
        samples_of([Request("fine", 0), Request("word " * 9, 1)], generator)
    assert generator.asked == []


def test_progress_passes_through():
    items = list(pipeline.generate([Request("a", 0)], Colours(), optimizer=None, batch=1))
    assert isinstance(items[0], Progress)
