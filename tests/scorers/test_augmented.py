"""Views and their mean, over small scorers whose answers are known; the gap between Pillow's views and torch's."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import FLOAT32
from realgen.core import plugins
from realgen.core.errors import ConfigError
from realgen.core.images import ImageBatch
from realgen.core.spec import Spec
from realgen.core.types import Score, ScorerInfo
from realgen.hub import plugs
from realgen.hub.card import Card
from realgen.scorers import augmented
from realgen.scorers.augmented import AsItIs, Augmented, Blur, DifferentiableAugmented, Jpeg, Options, Resize

INFO = ScorerInfo(0, 1, is_detector=True, is_held_out=False, licence="MIT", source="here")


class Shade:
    """Scores the mean of all pixels in [0, 1]; unscored where an image is narrower than `least`."""

    def __init__(self, least=0):
        self.info, self.least, self.seen = INFO, least, []

    def __call__(self, images, prompts):
        self.seen.append([image.size for image in images])
        return [
            Score(None, "too narrow") if image.width < self.least else Score(float(np.asarray(image).mean() / 255))
            for image in images
        ]


class SoftShade(Shade):
    """The same with gradients."""

    def differentiable(self, pixels):
        return pixels.mean((1, 2, 3))


class InnerOptions(Spec):
    """What the scorer within takes."""

    least: int = 0
    model: str | None = None


@pytest.fixture
def within(monkeypatch):
    """Stands a scorer in for the plug-in called `shade`; what it was built from is kept."""
    built = []

    def stand_in(kind):
        def build(options, machine):
            built.append((options, machine))
            return kind(options.least)

        plain = plugins.find
        module = SimpleNamespace(Options=InnerOptions, build=build)
        monkeypatch.setattr(plugins, "find", lambda room, name: module if name == "shade" else plain(room, name))
        return built

    return stand_in


def noise(width=40, height=30, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def smooth(width=64, height=48):
    """A photograph's kind of picture: few high frequencies."""
    return noise(9, 7).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


# ---- views ----------------------------------------------------------------------------------------------


def test_a_jpeg_view_is_what_pillow_writes():
    image, file = smooth(), io.BytesIO()
    image.save(file, "JPEG", quality=70)
    assert Jpeg(70)(image).tobytes() == Image.open(file).convert("RGB").tobytes()
    loss = [np.abs(np.asarray(Jpeg(quality)(image), int) - np.asarray(image, int)).mean() for quality in (95, 70, 10)]
    assert 0 < loss[0] < loss[1] < loss[2]


def test_an_image_too_long_for_a_jpeg_file_is_as_it_is():
    long = Image.new("RGB", (65_501, 1), "red")
    assert Jpeg(50)(long) is long


@pytest.mark.parametrize(("factor", "size"), [(0.5, (20, 15)), (0.75, (30, 22)), (2, (80, 60)), (0.001, (1, 1))])
def test_a_resized_view_keeps_at_least_a_pixel(factor, size):
    assert Resize(factor)(noise()).size == size
    assert Resize(factor).differentiable(pixels_of(noise())).shape[2:] == size[::-1]


def test_a_blur_takes_the_edges_off_and_leaves_the_mean():
    image = noise()
    blurred = np.asarray(Blur(1.5)(image), float)
    assert blurred.std() < 0.4 * np.asarray(image, float).std()
    assert blurred.mean() == pytest.approx(np.asarray(image, float).mean(), abs=2)


def test_views_change_no_image_and_take_a_single_pixel():
    image = Image.new("RGB", (1, 1), (10, 200, 30))
    for view in (AsItIs(), Jpeg(90), Resize(0.5), Blur(1.0)):
        assert view(image).size == (1, 1)
    assert image.getpixel((0, 0)) == (10, 200, 30)
    assert Blur(2.0).differentiable(pixels_of(image)).flatten().tolist() == pytest.approx(
        [10 / 255, 200 / 255, 30 / 255], abs=1e-6
    )


@pytest.mark.parametrize("factor", [0.5, 0.75, 2.0])
@pytest.mark.parametrize("image", [noise(), smooth()], ids=["noise", "smooth"])
def test_torch_s_resize_is_close_to_pillow_s(image, factor):
    """Pillow rounds to 8 bits after each of its two passes; a level is 0.0039."""
    difference = (Resize(factor).differentiable(pixels_of(image)) - pixels_of(Resize(factor)(image))).abs()
    assert difference.max() < 0.005


@pytest.mark.parametrize("deviation", [0.5, 0.7, 1.0, 2.0])
def test_torch_s_blur_is_a_gaussian_and_pillow_s_is_close(deviation):
    image = smooth()
    difference = (Blur(deviation).differentiable(pixels_of(image)) - pixels_of(Blur(deviation)(image))).abs()
    assert difference.max() < 0.017
    assert difference.mean() < 0.003
    impulse = torch.zeros(1, 3, 33, 33, dtype=torch.float64)
    impulse[:, :, 16, 16] = 1
    spread = Blur(deviation).differentiable(impulse)[0, 0].sum(0)
    offsets = torch.arange(33, dtype=torch.float64) - 16
    expected = torch.exp(-(offsets**2) / (2 * deviation**2))
    assert torch.allclose(spread, expected / expected.sum(), atol=1e-3)
    assert float(spread.sum()) == pytest.approx(1)


# ---- the mean -------------------------------------------------------------------------------------------


def test_the_answer_is_the_mean_over_the_views():
    image = smooth()
    views = [AsItIs(), Jpeg(20), Resize(0.5), Blur(2.0)]
    (score,) = Augmented(Shade(), views)([image], ["x"])
    alone = [float(np.asarray(view(image)).mean() / 255) for view in views]
    assert score.value == pytest.approx(sum(alone) / 4, abs=1e-12)
    assert len(set(alone)) == 4


def test_views_are_scored_a_batch_at_a_time_in_their_order():
    shade = Shade()
    Augmented(shade, [AsItIs(), Resize(0.5)])([noise(40, 30), noise(20, 10)], ["x", "y"])
    assert shade.seen == [[(40, 30), (20, 10)], [(20, 15), (10, 5)]]


def test_one_unscored_view_leaves_the_image_unscored_and_says_which():
    wide, narrow = noise(40, 30), noise(20, 30)
    scores = Augmented(Shade(least=15), [AsItIs(), Resize(0.5)])([wide, narrow], ["x", "y"])
    assert scores[0].value is not None
    assert scores[1] == Score(None, "Resize(factor=0.5): too narrow")


def test_an_unreadable_image_keeps_its_place_and_its_own_reason():
    file = io.BytesIO()
    noise().save(file, "PNG")
    broken = Image.open(io.BytesIO(file.getvalue()[:2000]))

    class Careful(Shade):
        def __call__(self, images, prompts):
            batch = ImageBatch.of(images)
            return [Score(None, batch.reasons[i]) if i in batch.reasons else Score(0.5) for i in range(len(batch))]

    scores = Augmented(Careful(), [Jpeg(90), Blur(1.0)])([broken, noise()], ["x", "y"])
    assert scores[0].value is None
    assert scores[0].reason.startswith("broken picture data")
    assert scores[1] == Score(0.5)


def test_a_view_is_made_once_for_all_scorers():
    made = []

    class Counting(Resize):
        def __call__(self, image):
            made.append(image)
            return super().__call__(image)

    pictures = ImageBatch([noise(), noise(seed=1)])
    for _ in range(2):
        Augmented(Shade(), [Counting(0.5)])(pictures, ["x", "y"])
    assert len(made) == 2


def test_no_images_no_scores():
    assert Augmented(Shade(), [AsItIs(), Jpeg(90)])([], []) == []


# ---- gradients ------------------------------------------------------------------------------------------


def test_gradients_go_through_all_views_but_jpeg():
    pixels = pixels_of(smooth()).requires_grad_()
    scorer = DifferentiableAugmented(SoftShade(), [AsItIs(), Jpeg(10), Resize(0.5), Blur(1.0)])
    value = scorer.differentiable(pixels).sum()
    views = [AsItIs(), Resize(0.5), Blur(1.0)]
    alone = [view.differentiable(pixels.detach()).mean().item() for view in views]
    assert value.item() == pytest.approx(np.mean(alone))
    value.backward()
    assert bool((pixels.grad != 0).all())


def test_with_gradients_and_without_agree_where_there_is_no_jpeg():
    image, views = smooth(), [AsItIs(), Resize(0.75), Blur(0.7)]
    scorer = DifferentiableAugmented(SoftShade(), views)
    (score,) = scorer([image], ["x"])
    assert score.value == pytest.approx(float(scorer.differentiable(pixels_of(image))), abs=2e-3)


def test_prompts_are_handed_on_to_a_scorer_that_takes_them():
    class Worded(Shade):
        def differentiable(self, pixels, prompts):
            return pixels.mean((1, 2, 3)) * torch.tensor([float(len(prompt)) for prompt in prompts])

    scorer = DifferentiableAugmented(Worded(), [AsItIs()])
    assert scorer.differentiable(torch.ones(2, 3, 4, 4), ["a", "abc"]).tolist() == [1.0, 3.0]


# ---- building -------------------------------------------------------------------------------------------


def built(options):
    return augmented.build(Options.model_validate(options), FLOAT32)


def test_the_scorer_within_is_built_from_its_own_options(within):
    calls = within(Shade)
    scorer = built({"scorer": {"name": "shade", "options": {"least": 3}}})
    assert calls == [(InnerOptions(least=3), FLOAT32)]
    assert scorer.info == INFO
    assert scorer.views == (AsItIs(), Jpeg(90), Jpeg(70), Resize(0.75), Blur(0.7))


def test_it_has_gradients_where_the_scorer_within_has_and_a_view_is_left(within):
    within(SoftShade)
    inner = {"name": "shade"}
    assert isinstance(built({"scorer": inner}), DifferentiableAugmented)
    only_jpeg = built({"scorer": inner, "as_it_is": False, "resize": [], "blur": []})
    assert not hasattr(only_jpeg, "differentiable")
    within(Shade)
    assert not hasattr(built({"scorer": inner}), "differentiable")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scorer": {"name": "shade", "options": {"leest": 3}}}, "leest"),
        ({"scorer": {"name": "shadow"}}, "no plug-in 'shadow' in scorers"),
        ({"scorer": {"name": "shade", "card": "tiny"}}, "is for generators/flux"),
        ({"scorer": {"name": "shade"}, "jpeg": [0]}, "jpeg quality is 1 to 95"),
        ({"scorer": {"name": "shade"}, "blur": [0]}, "above 0"),
        ({"scorer": {"name": "shade"}, "resize": [5]}, "at most 4"),
        ({"scorer": {"name": "shade"}, "as_it_is": False, "jpeg": [], "resize": [], "blur": []}, "no view is left"),
        ({}, "scorer"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(within, options, said):
    within(Shade)
    with pytest.raises(ConfigError, match=said):
        plugins.validate(Options, options, where="options of augmented")


def test_a_card_within_gives_files_licence_and_whether_it_is_held_out(within, monkeypatch):
    calls = within(Shade)
    card = Card.model_validate(
        {
            "name": "shady",
            "summary": "x",
            "room": "scorers",
            "plugin": "shade",
            "licence": "CC-BY-NC-4.0",
            "is_held_out": True,
            "source": {"kind": "package", "folder": "weights"},
            "options": {"least": 2},
            "min_memory_gb": 1,
        }
    )
    monkeypatch.setattr(plugs.cards, "read", lambda name: card)
    monkeypatch.setattr(plugs.fetch, "locate", lambda found: f"/models/{found.name}")
    scorer = built({"scorer": {"name": "shade", "card": "shady"}})
    assert calls[0][0] == InnerOptions(least=2, model="/models/shady")
    assert (scorer.info.licence, scorer.info.is_held_out) == ("CC-BY-NC-4.0", True)
    with pytest.raises(ConfigError, match="not for scorers/augmented"):
        built({"scorer": {"name": "augmented", "card": "shady"}})
