"""What every plug-in of a room keeps to, over every file found in it."""

import inspect
import random

import numpy as np
import pytest
import torch
from PIL import Image

from generators import factories as generators
from realgen.core import plugins
from realgen.core.images import ImageBatch
from realgen.core.spec import Machine
from realgen.core.types import Progress, Rewrite
from scorers.factories import FACTORIES
from tiny_clip import difficult_pictures

FLOAT32 = Machine(device="cpu", dtype="float32")
TEXTS = ["a cat", "a dog", "a red rose", "a cat"]
SEEDS = [3, 4, 5, 6]


@pytest.fixture(params=plugins.names("generators"))
def generator(request):
    if request.param not in generators.FACTORIES:
        pytest.fail(f"tests/generators/factories.py makes no tiny model for {request.param}")
    options = {**generators.options_of(request.param), "steps": 2, "size": (32, 48)}
    configured = plugins.configure("generators", request.param, options)
    return plugins.find("generators", request.param).build(configured, FLOAT32)


def drawn(generator, texts, seeds, **kwargs):
    items = generator(texts, seeds=seeds, **kwargs)
    return [np.asarray(item, int) for item in items if not isinstance(item, Progress)]


def test_every_generator_has_a_tiny_model_and_no_other_is_named():
    assert set(generators.FACTORIES) == set(plugins.names("generators"))


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


def test_a_generator_says_what_it_can_read(generator):
    assert generator.can_read("a")
    assert not generator.can_read("")


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


# ---- scorers --------------------------------------------------------------------------------------------

PROMPTS = ["a cat", "a red rose in the rain", "?", "two dogs"]


@pytest.fixture(scope="module", params=plugins.names("scorers"))
def scorer(request, tmp_path_factory):
    if request.param not in FACTORIES:
        pytest.fail(f"tests/scorers/factories.py makes no tiny model for {request.param}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.delenv("REALGEN_TOKEN", raising=False)
        options = FACTORIES[request.param](tmp_path_factory.mktemp(request.param))
        configured = plugins.configure("scorers", request.param, options)
        yield plugins.find("scorers", request.param).build(configured, FLOAT32)


def seen_images():
    """Pictures of several shapes and contents."""
    rng = np.random.default_rng(0)
    shapes = [(64, 64, 0, 255), (48, 90, 0, 128), (130, 70, 100, 255), (80, 80, 60, 90)]
    return [
        Image.fromarray(rng.integers(low, high, (tall, wide, 3), dtype=np.uint8)) for wide, tall, low, high in shapes
    ]


def answers(scorer, images, prompts):
    scores = scorer(images, prompts)
    assert len(scores) == len(images)
    return [np.nan if score.value is None else score.value for score in scores]


def test_every_scorer_has_a_tiny_model_and_no_other_is_named():
    assert set(FACTORIES) == set(plugins.names("scorers"))


def test_a_scorer_answers_the_same_alone_together_and_in_any_order(scorer):
    images = seen_images()
    together = answers(scorer, images, PROMPTS)
    backwards = answers(scorer, images[::-1], PROMPTS[::-1])[::-1]
    alone = [answers(scorer, [image], [prompt])[0] for image, prompt in zip(images, PROMPTS, strict=True)]
    assert not np.isnan(together).any()
    assert np.std(together) > 1e-4
    np.testing.assert_allclose(together, backwards, atol=1e-5)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_scorer_keeps_to_its_range_and_says_what_it_is(scorer):
    info = scorer.info
    scores = scorer(seen_images(), PROMPTS)
    assert all(type(score.value) is float and score.reason == "" for score in scores)
    assert all(info.low <= score.value <= info.high for score in scores)
    assert info.low < info.high
    if info.is_detector:
        assert (info.low, info.high) == (0, 1)
    assert info.source


def test_a_scorer_judges_a_picture_without_a_prompt_or_says_why_not(scorer):
    (score,) = scorer(seen_images()[:1], [""])
    assert (score.value is None) == (score.reason != "")
    assert score.value is not None or not scorer.info.is_detector


def test_a_scorer_leaves_its_inputs_and_the_generators_alone(scorer):
    images, prompts = seen_images(), list(PROMPTS)
    before = [(image.mode, image.size, image.tobytes()) for image in images]
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
    given = list(images)
    scorer(images, prompts)
    assert [(image.mode, image.size, image.tobytes()) for image in images] == before
    assert all(one is other for one, other in zip(given, images, strict=True))
    assert prompts == PROMPTS
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state())  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1] == after[1]
    assert all(np.array_equal(one, other) for one, other in zip(states[2], after[2], strict=True))


def test_a_scorer_bears_every_kind_of_picture(scorer):
    """A single pixel, a palette, CMYK, 16 bits, transparency; what cannot be decoded is unscored in its place."""
    good, broken = difficult_pictures()
    scores = scorer([*good, broken, good[0]], ["a cat"] * (len(good) + 2))
    assert len(scores) == len(good) + 2
    assert scores[-2].value is None
    assert scores[-2].reason
    for score in [*scores[:-2], scores[-1]]:
        assert score.value is not None or score.reason
    alone = scorer([good[-1]], ["a cat"])
    assert alone[0].value == pytest.approx(scores[len(good) - 1].value, abs=1e-5)


def test_a_scorer_takes_no_images(scorer):
    assert scorer([], []) == []


def test_a_scorer_refuses_a_prompt_too_few(scorer):
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        scorer(seen_images()[:2], ["a cat"])


def test_a_scorer_shares_a_decoded_batch_with_others(scorer):
    images = seen_images()
    batch = ImageBatch(images)
    twice = [answers(scorer, batch, PROMPTS) for _ in range(2)]
    np.testing.assert_allclose(twice[0], twice[1], atol=1e-6)
    np.testing.assert_allclose(twice[0], answers(scorer, images, PROMPTS), atol=1e-5)


def test_a_scorer_s_network_is_in_evaluation_mode_and_keeps_no_graph(scorer):
    scorer(seen_images()[:1], ["a cat"])
    networks = [value for value in vars(scorer).values() if isinstance(value, torch.nn.Module)]
    assert all(not part.training for network in networks for part in network.modules())
    assert all(parameter.grad is None for network in networks for parameter in network.parameters())


def test_a_scorer_with_gradients_gives_what_it_gives_without(scorer):
    """Up to what torch's resize and blur differ by, and the JPEG views that have no gradients."""
    if not hasattr(scorer, "differentiable"):
        pytest.skip("no gradients")
    image = seen_images()[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255).requires_grad_()
    parameter = inspect.signature(scorer.differentiable).parameters.get("prompts")
    takes_prompts = parameter is not None and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    value = scorer.differentiable(pixels, *([["a cat"]] if takes_prompts else []))
    assert value.shape == (1,)
    (gradient,) = torch.autograd.grad(value.sum(), pixels)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0
    assert value.item() == pytest.approx(answers(scorer, [image], ["a cat"])[0], abs=0.05)
