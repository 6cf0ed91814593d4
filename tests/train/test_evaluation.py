import pytest
from PIL import Image

from realgen.core.spec import Bound, RewardSpec
from realgen.core.types import Progress, Score
from realgen.train.evaluation import Evaluation
from realgen.train.world import World


def generator(texts, *, seeds):
    for seed in seeds:
        yield Progress(1, 1)
        yield Image.new("RGB", (8, 8), (seed * 10,) * 3)


def score(images, prompts):
    values = [image.getpixel((0, 0))[0] / 100 for image in images]
    return [{"light": Score(value if value < 0.4 else None, "too light")} for value in values]


def figures_of(spec, *, count=5):
    pairs = [(f"prompt {place}", f"text {place}") for place in range(count)]
    evaluation = Evaluation(generator, score, pairs, batch=2, num_previews=3)
    return evaluation, evaluation.figures(World(), spec)


def test_seeds_are_places_and_what_is_unscored_is_counted_and_left_out():
    """Brightness 0, 0.1, 0.2 and 0.3; the fifth has no score."""
    evaluation, figures = figures_of(RewardSpec(weights={"light": 1.0}))
    assert figures["eval_light"] == figures["eval_total"] == pytest.approx(0.15)
    assert (figures["eval_unscored"], figures["eval_violated"]) == (1, 0)
    assert figures["eval_sharpness"] == 0
    assert [picture.getpixel((0, 0))[0] for picture in evaluation.pictures] == [0, 10, 20]


def test_an_image_outside_of_a_bound_counts_as_the_worst_within():
    """0.3 is outside of 0.25: the totals are 0, 0.1, 0.2 and, for it, 0 again."""
    _, figures = figures_of(RewardSpec(weights={"light": 1.0}, constraints={"light": Bound(high=0.25)}), count=4)
    assert figures["eval_total"] == pytest.approx(0.3 / 4)
    assert figures["eval_violated"] == 1
