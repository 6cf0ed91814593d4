import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from chat_server import said, serving
from realgen.core import plugins
from realgen.core.errors import ConfigError
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.hub import card as cards
from realgen.scorers.visual_quality import Options, build, read_rating
from tiny_vlm import save_tiny_vlm

FLOAT32 = Machine(device="cpu", dtype="float32", batch=4)


def pictures(sizes=((64, 64), (60, 100), (200, 57))):
    generator = np.random.default_rng(1)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<answer>3.52</answer>", 3.52),
        ("Sharp, a little noisy. <answer> 4 </answer>", 4.0),
        ("<ANSWER>1.00</ANSWER>", 1.0),
        ("<answer>5.00</answer>", 5.0),
        ("<answer>2.5</answer> and again <answer>2.50</answer>", 2.5),
    ],
)
def test_a_rating_is_read(text, value):
    assert read_rating(text) == Score(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rating"),
        ("3.52", "no rating"),
        ("<answer>good</answer>", "no rating"),
        ("<answer>3.5", "no rating"),
        ("<answer>3,5</answer>", "no rating"),
        ("<answer>3.5/5</answer>", "no rating"),
        ("<answer>-3</answer>", "no rating"),
        ("<answer>nan</answer>", "no rating"),
        ("<answer>3</answer><answer>x</answer>", "no rating"),
        ("<answer>3</answer><answer>4</answer>", "several ratings"),
        ("<answer>0.99</answer>", "0.99 is outside of 1 to 5"),
        ("<answer>5.01</answer>", "5.01 is outside"),
        ("<answer>352</answer>", "352 is outside"),
    ],
)
def test_what_is_no_rating_is_unscored_and_never_the_least(text, reason):
    score = read_rating(text)
    assert score.value is None
    assert reason in score.reason


PIECES = ["<answer>", "</answer>", "3", ".", "5", "9", " ", "x", "<think>", "\n"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join), st.from_regex("<answer>[0-9.]*</answer>")))
def test_the_parser_never_raises_and_keeps_the_range(text):
    score = read_rating(text)
    assert score.value is None or 1 <= score.value <= 5
    assert bool(score.reason) == (score.value is None)


@pytest.mark.parametrize("rating", [1.0, 2.37, 5.0])
def test_any_rating_in_the_range_comes_back(rating):
    assert read_rating(f"<answer>{rating:.2f}</answer>").value == rating


def test_images_are_rated_by_a_server_and_thoughts_do_not_count(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    answers = {
        64: said("<think><answer>1.00</answer> no</think><answer>4.25</answer>"),
        60: said("<think>it is, well", "length"),
        200: said("<answer>7.00</answer>"),
    }
    with serving(lambda image, _: answers[image.width]) as server:
        options = Options(model="seer", server={"base_url": server.url}, max_tokens=40)
        scores = build(options, FLOAT32)(pictures(), [""] * 3)
    assert scores[0] == Score(4.25)
    assert scores[1].value is None
    assert scores[1].reason.startswith("cut off at max_tokens")
    assert "outside" in scores[2].reason
    body = server.asked[0][2]
    assert (body["temperature"], body["max_tokens"]) == (0, 40)
    assert "<answer>" in body["messages"][0]["content"][1]["text"]


def test_a_model_on_this_machine_writes_the_same_each_time_and_its_noise_is_unscored(tmp_path):
    scorer = build(Options(model=str(save_tiny_vlm(tmp_path / "m")), max_tokens=6), FLOAT32)
    first = scorer([*pictures(), Image.new("P", (1, 1))], [""] * 4)
    assert [score.value for score in first] == [None] * 4
    assert all("cut off" in score.reason for score in first)
    assert len({score.reason for score in first}) > 1, "the images must matter"
    assert scorer([*pictures(), Image.new("P", (1, 1))], ["x"] * 4) == first


def test_a_model_that_writes_the_rating_is_scored(tmp_path, monkeypatch):
    """The decoder's words are what is read: a tokenizer that spells every answer so gives every image that rating."""
    scorer = build(Options(model=str(save_tiny_vlm(tmp_path / "m")), max_tokens=2), FLOAT32)
    tokenizer = scorer._viewer._tokenizer
    monkeypatch.setattr(tokenizer, "batch_decode", lambda rows, **_: ["<answer>3.10</answer>"] * len(rows))
    assert scorer(pictures(), [""] * 3) == [Score(3.1)] * 3
    assert scorer([], []) == []


def test_the_card_and_what_it_says():
    card = cards.read("visual-quality-r1")
    options = plugins.configure("scorers", card.plugin, card.options)
    assert options == Options()
    with pytest.raises(ConfigError, match="max_tokens"):
        plugins.configure("scorers", "visual_quality", {"max_tokens": 0})
    with pytest.raises(ConfigError, match="no vision-language model"):
        build(Options(), FLOAT32)
    scorer = build(Options(model="seer", server={"base_url": "http://h/v1"}), FLOAT32)
    assert (scorer.info.low, scorer.info.high, scorer.info.is_detector) == (1, 5, False)
    assert "2505.14460" in scorer.info.source
    assert "github.com/TianheWu/VisualQuality-R1" in scorer.info.source
