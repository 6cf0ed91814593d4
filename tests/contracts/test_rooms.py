"""What every plug-in of a room keeps to, over every file found in it."""

import numpy as np
import pytest

from realgen.core import plugins
from realgen.core.config import Machine
from realgen.core.types import Progress, Rewrite

FLOAT32 = Machine(device="cpu", dtype="float32")
TEXTS = ["a cat", "a dog", "a red rose", "a cat"]
SEEDS = [3, 4, 5, 6]


@pytest.fixture(params=plugins.names("generators"))
def generator(request, random_flux):
    options = {"model": str(random_flux), "steps": 2, "size": (32, 48)}
    if request.param == "flux":
        options["max_text_tokens"] = 32
    configured = plugins.configure("generators", request.param, options)
    return plugins.find("generators", request.param).build(configured, FLOAT32)


def drawn(generator, texts, seeds, **kwargs):
    items = generator(texts, seeds=seeds, **kwargs)
    return [np.asarray(item, int) for item in items if not isinstance(item, Progress)]


def test_a_generator_draws_one_image_a_text(generator):
    images = drawn(generator, TEXTS, SEEDS)
    assert [image.shape for image in images] == [(48, 32, 3)] * 4


def test_a_generator_draws_the_same_for_the_same_seed_alone_and_in_any_order(generator):
    together = drawn(generator, TEXTS, SEEDS)
    backwards = drawn(generator, TEXTS[::-1], SEEDS[::-1])[::-1]
    alone = [drawn(generator, [text], [seed])[0] for text, seed in zip(TEXTS, SEEDS, strict=True)]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert np.abs(one - two).max() <= 1
        assert np.abs(one - three).max() <= 1


def test_a_generator_draws_another_picture_for_another_seed(generator):
    assert np.abs(drawn(generator, ["a"], [0])[0] - drawn(generator, ["a"], [1])[0]).max() > 1


def test_a_generator_takes_a_size(generator):
    assert drawn(generator, ["a"], [0], size=(64, 32))[0].shape == (32, 64, 3)


def test_a_generator_counts_tokens(generator):
    assert generator.num_text_tokens("a long text of many words") > generator.num_text_tokens("a") > 0


def test_a_generator_leaves_its_inputs_alone(generator):
    texts, seeds = list(TEXTS), list(SEEDS)
    drawn(generator, texts, seeds)
    assert (texts, seeds) == (TEXTS, SEEDS)


def test_no_texts_no_images(generator):
    assert drawn(generator, [], []) == []


@pytest.mark.parametrize("name", plugins.names("prompt_optimizers"))
def test_a_prompt_optimiser_without_what_it_needs_says_so_or_answers(name):
    from realgen.core.errors import RealGenError

    module = plugins.find("prompt_optimizers", name)
    try:
        optimizer = module.build(plugins.configure("prompt_optimizers", name, {}), FLOAT32)
        answers = optimizer(["a cat", "a dog"], seeds=[1, 2])
    except RealGenError:
        return
    assert all(isinstance(answer, Rewrite) and answer.text for answer in answers)
    assert len(answers) == 2
    assert answers == [*optimizer(["a cat"], seeds=[1]), *optimizer(["a dog"], seeds=[2])]
