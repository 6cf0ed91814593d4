"""The measurement of the embedded generator: its prompts, and its figures on a yardstick that can be worked by hand."""

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from realgen.core.types import Progress, Rewrite
from realgen.formulas import stats
from realgen.train.photographs import Photograph

ROOT = Path(__file__).parents[2]
CATEGORIES = ["animals", "buildings", "dishes", "indoor", "outdoor", "people", "plants"]
FILES = ("plain", "long", "unheld")


def _load(path):
    spec = importlib.util.spec_from_file_location("quality", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


quality = _load(ROOT / "benchmarks/quality.py")


def prompts_of(name):
    return yaml.safe_load((quality.PROMPTS / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def t5(tiny_weights):
    from transformers import T5TokenizerFast

    return T5TokenizerFast.from_pretrained(tiny_weights / "tokenizer_2")


# ---- prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_prompts_are_of_the_seven_categories_and_all_different(name):
    prompts = prompts_of(name)
    assert sorted(prompts) == CATEGORIES
    assert len({len(texts) for texts in prompts.values()}) == 1, "every category counts the same"
    texts = [text for category in prompts.values() for text in category]
    assert len(set(texts)) == len(texts)
    assert all(isinstance(text, str) and text == text.strip() for text in texts)


def test_the_recipe_of_the_yardstick_has_the_same_categories():
    recipe = yaml.safe_load((ROOT / "src/realgen/recipes/categories.yaml").read_text(encoding="utf-8"))
    assert sorted(recipe["categories"]) == CATEGORIES


@pytest.mark.parametrize("category", CATEGORIES)
def test_long_prompts_are_as_long_as_an_optimiser_s(category, t5):
    for text in prompts_of("long")[category]:
        assert 35 <= len(text.split()) <= 45
        assert len(t5(text).input_ids) <= 64


@pytest.mark.parametrize("name", ["plain", "unheld"])
def test_short_prompts_are_short(name):
    assert all(len(text.split()) <= 9 for texts in prompts_of(name).values() for text in texts)


def test_no_prompt_stands_in_two_files():
    texts = [text for name in FILES for category in prompts_of(name).values() for text in category]
    assert len(set(texts)) == len(texts)


# ---- figures --------------------------------------------------------------------------------------------


class Yardstick:
    """Red is people, green is plants; the features are an image's mean red, green and blue."""

    categories = ["people", "plants"]

    def __call__(self, images):
        means = torch.tensor(np.stack([np.asarray(image).reshape(-1, 3).mean(0) for image in images]) / 255)
        return [self.categories[int(green > red)] for red, green, _ in means.tolist()], means


class Generator:
    """Draws people red and plants green, the blue as the seed says; `wrong` texts come out as the other."""

    max_text_tokens = None

    def __init__(self, wrong=(), plants=()):
        self.wrong, self.plants, self.asked = wrong, plants, []

    def can_read(self, text):
        return True

    def __call__(self, texts, *, seeds, size=None):
        self.asked.append((list(texts), list(seeds)))
        for text, seed in zip(texts, seeds, strict=True):
            yield Progress(1, 1)
            is_green = (text in self.plants) != (text in self.wrong)
            yield Image.new("RGB", (4, 4), (0, 200, 10 * seed) if is_green else (200, 0, 10 * seed))


def photographs(split=0):
    colours = {"people": (180, 20), "plants": (20, 180), "objects": (5, 5)}
    return [
        Photograph("x.png", np.full((4, 4, 3), (red, green, 9 * i + split), np.uint8), category, "", (), "")
        for category, (red, green) in colours.items()
        for i in range(16)
    ]


PROMPTS = {"people": ["a man", "a woman"], "plants": ["a rose", "a tulip"], "objects": ["a chair"]}


def report_of(generator, count, optimizer=None):
    drawer = quality.Drawer(generator, optimizer)
    real = quality.features_by_category(Yardstick(), photographs())
    return quality.of_prompts(Yardstick(), drawer, PROMPTS, count, real)


def test_photographs_give_the_floor():
    """16 people and 16 plants, two people seen as plants; objects are no category of the yardstick."""
    test = photographs()
    for i in (0, 1):
        test[i] = Photograph("x.png", np.full((4, 4, 3), (20, 180, 0), np.uint8), "people", "", (), "")
    found = quality.of_photographs(Yardstick(), test, photographs())
    assert found["accuracy"] == stats.proportion(30, 32)
    assert found["accuracy"].value == pytest.approx(30 / 32)
    same = quality.of_photographs(Yardstick(), photographs(), photographs())
    assert same["distance"].value < found["distance"].value + 0.05


def test_all_right_and_the_right_seeds():
    generator = Generator(plants=PROMPTS["plants"])
    report = report_of(generator, 5)
    assert report["right"] == stats.proportion(10, 10)
    assert report["right_by_category"] == {name: stats.proportion(5, 5) for name in ("people", "plants")}
    assert generator.asked == [
        (["a man", "a woman", "a man", "a woman", "a man"], [0, 1, 2, 3, 4]),
        (["a man"] * 8, list(range(8))),
        (["a woman"] * 8, list(range(8))),
        (["a rose", "a tulip", "a rose", "a tulip", "a rose"], [0, 1, 2, 3, 4]),
        (["a rose"] * 8, list(range(8))),
        (["a tulip"] * 8, list(range(8))),
    ]


def test_a_prompt_that_is_drawn_wrong_is_counted():
    """Every second plant is a tulip, and all tulips come out red: 2 of 4 plants, 6 of 8 in all."""
    generator = Generator(plants=PROMPTS["plants"], wrong=["a tulip"])
    report = report_of(generator, 4)
    assert report["right"] == stats.proportion(6, 8)
    assert report["right_by_category"]["plants"] == stats.proportion(2, 4)
    assert report["right_by_category"]["people"] == stats.proportion(4, 4)


def test_variety_is_that_of_eight_pictures_over_that_of_eight_photographs():
    """Blue rises by 10 a seed and by 9 a photograph, and nothing else differs: 10 / 9."""
    report = report_of(Generator(plants=PROMPTS["plants"]), 2)
    assert report["variety"] == {"mean": 1.111, "people": 1.111, "plants": 1.111}
    assert report["variety_by_prompt"]["plants"] == {"a rose": 1.111, "a tulip": 1.111}


def test_variety_is_the_mean_of_the_prompts():
    """All seeds of one of two people are the same picture."""

    class Stubborn(Generator):
        def __call__(self, texts, *, seeds, size=None):
            yield from super().__call__(
                texts, seeds=[0 if "woman" in text else seed for text, seed in zip(texts, seeds, strict=True)]
            )

    report = report_of(Stubborn(plants=PROMPTS["plants"]), 2)
    assert report["variety_by_prompt"]["people"] == {"a man": 1.111, "a woman": 0.0}
    assert report["variety"]["people"] == pytest.approx(1.111 / 2, abs=1e-3)


def test_pictures_further_from_photographs_are_further():
    near = Generator(plants=PROMPTS["plants"])
    swapped = Generator(plants=[*PROMPTS["people"]])  # plants red, people green: the pool is the same
    away = Generator()  # everything red
    found = [report_of(g, 8)["distance"].value for g in (near, swapped, away)]
    assert found[0] == pytest.approx(found[1], abs=1e-9)
    assert found[2] > found[0]


def test_an_optimiser_rewrites_each_prompt_with_its_seed():
    def optimizer(prompts, *, seeds):
        return [Rewrite(f"{prompt} {seed}") for prompt, seed in zip(prompts, seeds, strict=True)]

    generator = Generator()
    images = quality.Drawer(generator, optimizer)(["a", "b"], [4, 5])
    assert [image.getpixel((0, 0)) for image in images] == [(200, 0, 40), (200, 0, 50)]
    assert generator.asked == [(["a 4", "b 5"], [4, 5])]


def test_the_yardstick_is_there():
    yardstick = quality.Yardstick(quality.YARDSTICK)
    assert yardstick.categories == CATEGORIES
    assert {parameter.dtype for parameter in yardstick.model.parameters()} == {torch.float32}


def test_the_yardstick_reads_what_the_trainer_writes(tmp_path):
    from realgen.train.classifier import build_classifier

    torch.manual_seed(0)
    build_classifier(["people", "plants"]).save_pretrained(tmp_path)
    yardstick = quality.Yardstick(tmp_path)
    found, features = yardstick([Image.new("RGB", (20, 30), (200, 0, 0))] * 3)
    assert yardstick.categories == ["people", "plants"]
    assert not yardstick.model.training
    assert len(found) == 3
    assert set(found) <= {"people", "plants"}
    assert features.shape == (3, 256)
    assert not features.requires_grad


# ---- nouns that captions do not hold --------------------------------------------------------------------


def test_unheld_prompts_are_nouns_of_their_own():
    plain = {word for texts in prompts_of("plain").values() for text in texts for word in re.findall(r"[a-z]+", text)}
    for texts in prompts_of("unheld").values():
        for text in texts:
            assert not set(re.findall(r"[a-z]+", text)) <= plain, text
