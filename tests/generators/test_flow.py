"""A flow backbone and the sampler: batches, order, progress, and what is passed through unchanged."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.core.errors import InputError
from realgen.core.protocols import Generator
from realgen.core.types import Progress
from realgen.generators._flow import FlowGenerator


class Backbone:
    """Latents of one number, the seed's share of 255, moved by a velocity that each text has of its own length."""

    max_text_tokens = 5

    def __init__(self):
        self.module = torch.nn.Identity()
        self.calls = []

    def num_text_tokens(self, text):
        return len(text.split()) + 1

    def can_read(self, text):
        return text.isascii()

    def check_size(self, size):
        if size[0] % 4 or size[1] % 4:
            raise InputError(f"cannot draw {size[0]}x{size[1]}")

    def encode(self, texts):
        self.calls.append(("encode", list(texts)))
        return torch.tensor([[[len(text) / 255]] for text in texts])

    def noise(self, seeds, size):
        self.calls.append(("noise", list(seeds), size))
        return torch.tensor([[[seed / 255]] for seed in seeds])

    def sigmas(self, steps, size):
        self.calls.append(("sigmas", steps, size))
        return torch.linspace(1, 0, steps + 1)

    def velocity(self, x, sigma, condition, *, guidance, size):
        assert torch.is_inference_mode_enabled()
        self.calls.append(("velocity", len(x), round(float(sigma[0]), 4), guidance, size))
        assert len(x) == len(sigma) == len(condition)
        return -condition.expand_as(x)

    def decode(self, x, size):
        self.calls.append(("decode", len(x), size))
        return x.view(-1, 1, 1, 1).expand(-1, 3, size[1], size[0])


def generator_of(*, steps=4, guidance=2.5, size=(8, 4), batch=2):
    return FlowGenerator(Backbone(), steps=steps, guidance=guidance, size=size, batch=batch)


def images_of(items):
    return [item for item in items if isinstance(item, Image.Image)]


def levels(items):
    return [int(np.asarray(image)[0, 0, 0]) for image in images_of(items)]


def called(generator, name):
    return [call[1:] for call in generator.backbone.calls if call[0] == name]


def test_the_picture_is_noise_plus_the_way_that_the_velocity_goes():
    """From sigma 1 to 0 along -len(text) / 255: the level ends at seed + len(text)."""
    assert levels(generator_of()(["a", "abc", ""], seeds=[10, 20, 30])) == [11, 23, 30]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
def test_the_batch_changes_nothing_but_how_many_are_drawn_at_once(batch):
    generator = generator_of(batch=batch)
    texts, seeds = ["a", "bb", "ccc", "d", "ee"], [5, 6, 7, 8, 9]
    assert levels(generator(texts, seeds=seeds)) == [6, 8, 10, 9, 11]
    sizes = [len(called_texts) for (called_texts,) in called(generator, "encode")]
    assert sizes == [min(batch, 5 - start) for start in range(0, 5, batch)]


def test_texts_and_seeds_are_passed_through_in_order():
    generator = generator_of()
    list(generator(["a", "b", "c"], seeds=[3, 1, 2]))
    assert called(generator, "encode") == [(["a", "b"],), (["c"],)]
    assert called(generator, "noise") == [([3, 1], (8, 4)), ([2], (8, 4))]


def test_progress_is_told_after_every_step_and_before_the_pictures_of_its_batch():
    items = list(generator_of(steps=3)(["a", "b", "c"], seeds=[1, 2, 3]))
    steps = [Progress(1, 3), Progress(2, 3), Progress(3, 3)]
    assert [item if isinstance(item, Progress) else "image" for item in items] == [
        *steps,
        "image",
        "image",
        *steps,
        "image",
    ]


def test_guidance_size_and_noise_levels_reach_the_backbone():
    generator = generator_of(guidance=6.5, steps=4)
    list(generator(["a"], seeds=[1]))
    assert called(generator, "sigmas") == [(4, (8, 4))]
    assert called(generator, "velocity") == [(1, level, 6.5, (8, 4)) for level in (1.0, 0.75, 0.5, 0.25)]
    assert called(generator, "decode") == [(1, (8, 4))]


def test_a_size_of_the_call_goes_before_its_own():
    generator = generator_of()
    (image,) = images_of(generator(["a"], seeds=[1], size=(12, 16)))
    assert image.size == (12, 16)
    assert images_of(generator(["a"], seeds=[1]))[0].size == (8, 4)


def test_a_text_too_long_is_refused_before_anything_is_drawn():
    generator = generator_of(batch=1)
    with pytest.raises(
        InputError, match=r"the text has 6 tokens, the model reads 5: 'one two three four five'"
    ) as caught:
        next(generator(["fine", "one two three four five"], seeds=[1, 2]))
    assert caught.value.hint
    assert generator.backbone.calls == []


def test_a_text_of_just_the_limit_is_drawn():
    assert len(images_of(generator_of()(["one two three four"], seeds=[1]))) == 1


def test_a_size_that_cannot_be_drawn_is_refused_at_once():
    with pytest.raises(InputError, match="9x4"):
        generator_of(size=(9, 4))
    generator = generator_of()
    with pytest.raises(InputError, match="8x5"):
        next(generator(["a"], seeds=[1], size=(8, 5)))
    assert generator.backbone.calls == []


def test_pictures_are_drawn_only_as_they_are_asked_for():
    generator = generator_of(batch=1)
    drawn = generator(["a", "b"], seeds=[1, 2])
    assert generator.backbone.calls == []
    assert isinstance(next(drawn), Progress)
    assert called(generator, "encode") == [(["a"],)]


def test_no_text_draws_nothing():
    generator = generator_of()
    assert list(generator([], seeds=[])) == []
    assert generator.backbone.calls == []


def test_the_noise_levels_fall():
    generator = generator_of(steps=6)
    list(generator(["a"], seeds=[1]))
    told = [call[1] for call in called(generator, "velocity")]
    assert all(later < earlier for earlier, later in pairwise(told))


def test_it_tells_the_backbone_s_limit_and_is_a_generator():
    generator: Generator = generator_of()
    assert generator.max_text_tokens == 5
    assert generator.num_text_tokens("one two") == 3


def test_a_text_of_which_no_word_is_known_is_refused():
    generator = FlowGenerator(Backbone(), steps=1, guidance=1.0, size=(4, 4), batch=1)
    with pytest.raises(InputError, match="knows no word of '一只猫'"):
        generator.check_texts(["a", "一只猫"])
    generator.check_texts([""])
