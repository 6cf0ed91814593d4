"""The rating is the head's chain of matrices on the unit embedding, in numpy; its bounds are exact."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.hub import card as cards
from realgen.scorers.aesthetic import Options, bounds, build
from tiny_clip import by_hand, difficult_pictures, openai_tensors, picture_embedding, pictures, random_clip

SIZES = (24, 20, 12, 8, 6, 1)
PLACES = (0, 2, 4, 6, 7)


def random_head(width=24):
    sizes, generator = (width, *SIZES[1:]), torch.Generator().manual_seed(2)
    tensors = {}
    for place, wide, narrow in zip(PLACES, sizes, sizes[1:], strict=False):
        tensors[f"layers.{place}.weight"] = torch.randn(narrow, wide, generator=generator) * 0.5
        tensors[f"layers.{place}.bias"] = torch.randn(narrow, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    random_clip().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tower, tmp_path_factory):
    file = tmp_path_factory.mktemp("head") / "head.pth"
    torch.save(random_head(), file)
    return Options(model=str(file), tower=str(tower))


@pytest.fixture(scope="module")
def scorer(options):
    return build(options, FLOAT32)


def by_numpy(image):
    x = picture_embedding(openai_tensors(random_clip()), by_hand(image)).double().numpy()
    x = x / np.linalg.norm(x)
    head = {name: tensor.double().numpy() for name, tensor in random_head().items()}
    for place in PLACES:
        x = head[f"layers.{place}.weight"] @ x + head[f"layers.{place}.bias"]
    return x.item()


def values(scores):
    return [score.value for score in scores]


def test_the_rating_is_numpys_whatever_the_prompt(scorer):
    wanted = [by_numpy(image) for image in pictures()]
    assert values(scorer(pictures(), ["a cat"] * 4)) == pytest.approx(wanted, abs=1e-5)
    assert values(scorer(pictures(), list("abcd"))) == pytest.approx(wanted, abs=1e-5)
    assert np.ptp(wanted) > 0.01


def test_a_batch_of_four_is_four_batches_of_one_in_any_order(options, scorer):
    alone = build(options, Machine(device="cpu", dtype="float32", batch=1))
    together = values(scorer(pictures(), [""] * 4))
    assert values(alone(pictures(), [""] * 4)) == pytest.approx(together, abs=1e-5)
    assert values(scorer(pictures()[::-1], [""] * 4))[::-1] == pytest.approx(together, abs=1e-5)


def test_difficult_pictures_are_scored_and_broken_ones_are_not(scorer):
    images, broken = difficult_pictures()
    scores = scorer([*images, broken], [""] * (len(images) + 1))
    assert all(scorer.info.low <= score.value <= scorer.info.high for score in scores[:-1])
    assert scores[-1].value is None
    assert scores[-1].reason
    assert not scorer.info.is_detector


def test_no_embedding_leaves_the_bounds_and_one_reaches_them(scorer):
    low, high = bounds(scorer._head, 24)
    assert (scorer.info.low, scorer.info.high) == (low, high)
    directions = torch.nn.functional.normalize(
        torch.randn(2000, 24, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    ratings = scorer._head(directions)
    assert low < ratings.min() < ratings.max() < high
    direction = torch.zeros(24, requires_grad=True)
    scorer._head(direction).backward()
    best = direction.grad / direction.grad.norm()
    assert scorer._head(best).item() == pytest.approx(high, rel=1e-4)
    assert scorer._head(-best).item() == pytest.approx(low, rel=1e-4)


def test_the_gradient_to_the_pixels_is_that_of_finite_differences(options):
    scorer = build(options, FLOAT32)
    scorer._model.double()
    scorer._head.double()
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    ratings = scorer.differentiable(pixels)
    assert ratings.shape == (2,)
    (gradient,) = torch.autograd.grad(ratings.sum(), pixels)
    with torch.no_grad():
        ahead, behind = (scorer.differentiable(pixels + sign * 1e-5 * direction) for sign in (1, -1))
    assert ((ahead - behind).sum() / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)
    assert gradient.abs().max() > 1e-5


def test_the_differentiable_rating_is_the_rating(scorer):
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in pictures()])
    assert scorer.differentiable(pixels).tolist() == pytest.approx(values(scorer(pictures(), [""] * 4)), abs=1e-5)


@pytest.mark.parametrize("key", ["layers.4.weight", "layers.7.bias"])
def test_a_missing_tensor_is_named(tower, tmp_path, key):
    head = random_head()
    del head[key]
    save_file(head, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match=f"lacks {key}"):
        build(Options(model=str(tmp_path), tower=str(tower)), FLOAT32)


def test_a_tensor_without_a_place_is_named(tower, tmp_path):
    save_file({**random_head(), "layers.9.weight": torch.zeros(1)}, tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match=r"holds layers\.9\.weight"):
        build(Options(model=str(tmp_path), tower=str(tower)), FLOAT32)


def test_a_head_for_another_tower_is_refused(tower, tmp_path):
    save_file(random_head(width=30), tmp_path / "head.safetensors")
    with pytest.raises(ModelError, match=r"reads embeddings of 30, .* writes 24") as caught:
        build(Options(model=str(tmp_path), tower=str(tower)), FLOAT32)
    assert "options.tower" in caught.value.hint


def test_no_model_is_said():
    with pytest.raises(ConfigError, match="no model"):
        build(Options(), FLOAT32)


def test_the_shipped_card_is_for_this_plugin():
    card = cards.read("laion-aesthetic")
    assert (card.room, card.plugin) == ("scorers", "aesthetic")
    assert configure("scorers", "aesthetic", card.options).tower == "openai/clip-vit-large-patch14"
