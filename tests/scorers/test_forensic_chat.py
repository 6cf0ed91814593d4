import io
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chat_server import said, serving, weighed
from realgen.core import plugins
from realgen.core.errors import ConfigError
from realgen.core.recipes import ScoreRecipe
from realgen.core.spec import Machine, Plug, RewardSpec
from realgen.core.types import Score
from realgen.hub import card as cards
from realgen.scorers._answers import Written
from realgen.scorers.forensic_chat import ForensicChat, Options, build, probability, read_verdict
from realgen.wiring import use
from tiny_vlm import save_tiny_vlm

FLOAT32 = Machine(device="cpu", dtype="float32", batch=4)
SIZES = [(64, 64), (60, 100), (200, 57), (90, 90)]
WORDS = ["real", "Real", "fake", "Fake"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def detector(folder):
    return build(Options(model=str(folder), max_tokens=4), FLOAT32)


@pytest.fixture
def near(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def pictures(sizes=SIZES):
    generator = np.random.default_rng(1)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


def values(scores):
    assert all(score.reason == "" for score in scores)
    return [score.value for score in scores]


class Told:
    """A viewer that is told what to answer."""

    def __init__(self, *answers):
        self.answers, self.questions = answers, []

    def write(self, images, question, *, max_tokens):
        self.questions.append(question)
        return list(self.answers[: len(images)])

    def weigh(self, images, question, *, words):
        self.questions.append(question)
        return list(self.answers[: len(images)])


def test_probability_is_the_softmax_of_the_mean_logits():
    """Means 2 and 1: 1 / (1 + e^-1) = 0.7310585786. Of probabilities it would be another number."""
    weights = {"real": 3.0, "Real": 1.0, "fake": 0.0, "Fake": 2.0}
    found = probability(weights, real=["real", "Real"], fake=["fake", "Fake"])
    assert found == pytest.approx(0.7310585786, abs=1e-9)
    softmax = torch.tensor([1.0, 2.0]).softmax(0)[1].item()
    assert found == pytest.approx(softmax, abs=1e-6)
    shifted = {word: value - 40 for word, value in weights.items()}
    assert probability(shifted, real=["real", "Real"], fake=["fake", "Fake"]) == pytest.approx(found)
    assert probability(weights, real=["fake", "Fake"], fake=["real", "Real"]) == pytest.approx(1 - found)
    assert probability({"a": 9e3, "b": -9e3}, real=["b"], fake=["a"]) == 0.0


def test_p_real_is_that_of_one_forward_pass_an_image(folder, detector):
    """The model class itself, one image at a time, its logits by hand. The prompts do not matter."""
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(WORDS)
    expected = []
    for image in pictures():
        inputs = detector._viewer._inputs([image], detector._question)
        with torch.no_grad():
            real, also_real, fake, also_fake = model(**inputs).logits[0, -1, ids].tolist()
        expected.append(torch.tensor([(fake + also_fake) / 2, (real + also_real) / 2]).softmax(0)[1].item())
    assert values(detector(pictures(), ["a"] * 4)) == pytest.approx(expected, abs=1e-4)
    assert values(detector(pictures(), ["b"] * 4)) == pytest.approx(expected, abs=1e-4)
    assert np.std(expected) > 0.01, "the images must matter"


def test_four_at_once_are_four_alone_in_any_order(detector):
    images = pictures()
    together = values(detector(images, [""] * 4))
    assert values(detector(images[::-1], [""] * 4))[::-1] == pytest.approx(together, abs=1e-5)
    assert [values(detector([image], [""]))[0] for image in images] == pytest.approx(together, abs=1e-5)
    assert all(0 <= value <= 1 for value in together)


def test_odd_pictures_are_scored_or_say_why_not(detector):
    cut = io.BytesIO()
    pictures([(64, 64)])[0].save(cut, format="PNG")
    odd = [
        Image.new("RGB", (1, 1)),
        pictures([(60, 60)])[0].quantize(8),
        Image.new("CMYK", (60, 60)),
        Image.fromarray(np.full((60, 60), 40_000, dtype=np.uint16)),
        Image.open(io.BytesIO(cut.getvalue()[:2000])),
        Image.new("RGB", (500, 1)),
    ]
    scores = detector(odd, [""] * len(odd))
    assert [score.value is None for score in scores] == [False, False, False, False, True, True]
    assert all(bool(score.reason) == (score.value is None) for score in scores)
    assert "broken" in scores[4].reason
    assert [bool(text) for text in detector.explain(odd)] == [True, True, True, True, False, False]
    assert detector([], []) == detector.explain([]) == []
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        detector(pictures()[:2], [""])


def test_nothing_is_changed_by_looking(detector):
    images = pictures()
    before, state = [image.tobytes() for image in images], torch.get_rng_state()
    detector(images, [""] * 4)
    detector.explain(images)
    assert [image.tobytes() for image in images] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_a_server_with_the_same_logits_gives_the_same_p_real(detector, near):
    """The server gives log-probabilities: the logits up to a constant of the image, which cancels out."""
    images = pictures()
    weights = detector._viewer.weigh(images, detector._question, words=WORDS)
    by_size = {
        image.size: {word: value - 9 for word, value in row.items()} for image, row in zip(images, weights, strict=True)
    }
    with serving(lambda image, _: weighed(by_size[image.size])) as server:
        remote = build(Options(model="seer", server={"base_url": server.url}), FLOAT32)
        assert values(remote(images, [""] * 4)) == pytest.approx(values(detector(images, [""] * 4)), abs=1e-5)
        assert server.asked[0][2]["messages"][0]["content"][1]["text"] == detector._question


def test_a_server_that_says_neither_leaves_the_image_unscored(near):
    with serving(lambda *_: weighed({"The": -0.1, "It": -3.0})) as server:
        score = build(Options(model="seer", server={"base_url": server.url}), FLOAT32)(pictures()[:1], [""])[0]
    assert score.value is None
    assert "likeliest first tokens" in score.reason


def test_one_side_alone_is_held_against_the_least_that_is_listed():
    """real -0.1, Real and both fakes at most -8: (-0.1 - 8) / 2 + 8 = 3.95."""
    weights = {"real": -0.1, "Real": -8.0, "fake": -8.0, "Fake": -8.0}
    score = ForensicChat(Told(weights), Options(model="m"))(pictures()[:1], [""])[0]
    assert score.value == pytest.approx(1 / (1 + math.exp(-3.95)))


def test_a_logit_that_is_no_number_is_unscored():
    weights = dict.fromkeys(WORDS, math.nan)
    score = ForensicChat(Told(weights), Options(model="m"))(pictures()[:1], [""])[0]
    assert score.value is None
    assert "nan" in score.reason


def test_reasons_are_given_without_thoughts():
    viewer = Told(Written("<think>hm</think> This is a fake image. Six fingers."), Score(None, reason="status 500"))
    detector = ForensicChat(viewer, Options(model="m", explain_question="why?"))
    assert detector.explain(pictures()[:2]) == ["This is a fake image. Six fingers.", ""]
    assert viewer.questions == ["why?"]


VERDICTS = [
    ("Real or Fake: Real\nReason: grain and stray hair.", 1.0),
    ("Real or Fake: Fake. Real skin has pores.", 0.0),
    ("**Real or Fake:** *Fake*\n**Reason:** six fingers", 0.0),
    ("Reason first.\nreal or fake : [REAL]", 1.0),
    ("REAL OR FAKE\uff1a fake", 0.0),
    ("Real", 1.0),
    (" fake.\n", 0.0),
    ("<think>Real or Fake: Real?</think>Real or Fake: Fake", 0.0),
    ("Real or Fake: Real\nReal or Fake: Real", 1.0),
    ("Real or Fake: Real\n...\nReal or Fake: Fake", None),
    ("Real or Fake: Real or Fake", None),
    ("Real or Fake: Real/Fake", None),
    ("Real or Fake: write Real or write Fake here", None),
    ("Real or Fake: not real", None),
    ("Real or Fake: Real-looking, but painted", None),
    ("Real or Fake: unsure", None),
    ("I cannot tell real or fake. Real cameras leave grain.", None),
    ("This looks fake to me", None),
    ("<think>Real or Fake: Real", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "value"), VERDICTS)
def test_verdicts_are_read_or_the_image_is_unscored(text, value):
    detector = ForensicChat(Told(Written(text)), Options(model="m", answer="verdict"))
    score = detector(pictures()[:1], [""])[0]
    assert score.value == value
    assert bool(score.reason) == (value is None)


def test_a_verdict_that_was_cut_off_says_so():
    detector = ForensicChat(Told(Written("", is_complete=False)), Options(model="m", answer="verdict"))
    assert detector(pictures()[:1], [""])[0].reason.startswith("cut off at max_tokens: no verdict")
    contradiction = read_verdict("Real or Fake: Real\nReal or Fake: Fake")
    assert "contradict" in contradiction.reason


PIECES = ["Real or Fake", "real", "FAKE", ":", "\uff1a", " ", "\n", "/", "or", "**", "-", "<think>", "</think>", "not"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join)))
def test_the_verdict_parser_never_raises_and_always_answers(text):
    score = read_verdict(text)
    assert score.value in {None, 0.0, 1.0}
    assert bool(score.reason) == (score.value is None)
    if score.value is not None:
        assert re.search("real" if score.value else "fake", text, re.IGNORECASE)


def test_options_are_checked():
    for wrong, message in [
        ({"real_tokens": ["real", "fake"]}, "fake cannot mean both"),
        ({"fake_tokens": []}, "fake_tokens"),
        ({"server": {"base_url": "http://h/v1"}}, "name of the model"),
        ({"model": "m", "server": {"base_url": "http://h/v1", "thinking": True}}, "answer=verdict"),
        ({"answer": "maybe"}, "answer"),
        ({"max_pixels": 10}, "max_pixels"),
    ]:
        with pytest.raises(ConfigError, match=message):
            plugins.configure("scorers", "forensic_chat", wrong)
    with pytest.raises(ConfigError, match="no vision-language model"):
        build(Options(), FLOAT32)


def test_other_words_can_stand_for_the_sides(folder, detector):
    swapped = Options(model=str(folder), real_tokens=("fake", "Fake"), fake_tokens=("real", "Real"))
    found = values(build(swapped, FLOAT32)(pictures(), [""] * 4))
    assert found == pytest.approx([1 - value for value in values(detector(pictures(), [""] * 4))], abs=1e-6)


def test_the_shipped_cards_build(monkeypatch, near):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    recipe = ScoreRecipe(kind="score", scorers={"gpt": Plug(name="forensic_chat", card="gpt-5-prompt")})
    scorer = use.build_scorers(recipe)["gpt"]
    assert scorer.info.is_held_out
    assert scorer.info.is_detector
    assert "Real or Fake:" in scorer._question
    with pytest.raises(ConfigError, match="held out"):
        use.check(recipe.model_copy(update={"reward": RewardSpec(weights={"gpt": 1.0})}))
    card = cards.read("forensic-chat")
    options = plugins.configure("scorers", card.plugin, card.options)
    assert options == Options()


def test_a_provider_is_asked_as_the_card_says(monkeypatch, near):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    with serving(lambda image, _: said(f"Real or Fake: {'Real' if image.width > 60 else 'Fake'}\nReason: -")) as server:
        plug = Plug(
            name="forensic_chat", card="gpt-5-prompt", options={"server": {"base_url": server.url}, "max_tokens": 50}
        )
        scorer = use.build_scorers(ScoreRecipe(kind="score", scorers={"gpt": plug}))["gpt"]
        assert values(scorer(pictures(), [""] * 4)) == [1.0, 0.0, 1.0, 1.0]
    _, headers, body = server.asked[0]
    assert headers["Authorization"] == "Bearer key"
    assert (body["model"], body["max_completion_tokens"]) == ("gpt-5", 50)


def test_the_source_is_named(detector):
    assert "2509.25502" in detector.info.source
    assert "github.com/yejy53/RealGen" in detector.info.source
    assert (detector.info.low, detector.info.high, detector.info.is_detector) == (0, 1, True)
