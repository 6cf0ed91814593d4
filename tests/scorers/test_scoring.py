"""Chunks, order, and what becomes of a picture that cannot be read or a value that is no number."""

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from realgen.core.images import ImageBatch
from realgen.core.types import Score
from realgen.scorers._scoring import NO_PROMPT, as_score, score_batch


def red(image):
    return image.getpixel((0, 0))[0]


def picture(value):
    return Image.new("RGB", (2, 2), (value, 0, 0))


def broken():
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(file, "PNG")
    return Image.open(io.BytesIO(file.getvalue()[:1000]))


class Values:
    """Answers with the red channel over 255; keeps the chunks that it was given."""

    def __init__(self):
        self.chunks = []

    def __call__(self, prepared, prompts):
        self.chunks.append((list(prepared), list(prompts)))
        return [value / 255 for value in prepared]


@given(st.lists(st.integers(0, 255), max_size=9), st.integers(1, 5))
def test_one_score_an_image_in_order_whatever_the_chunk(values, batch):
    answer = Values()
    prompts = [f"prompt {index}" for index in range(len(values))]
    scores = score_batch([picture(value) for value in values], prompts, answer, prepare=red, batch=batch)
    assert scores == [Score(value / 255) for value in values]
    assert all(len(prepared) <= batch for prepared, _ in answer.chunks)
    assert [value for prepared, _ in answer.chunks for value in prepared] == values
    assert [prompt for _, asked in answer.chunks for prompt in asked] == prompts


def test_the_unreadable_are_left_out_of_the_chunks_and_keep_their_reason():
    answer = Values()
    images = [broken(), picture(51), broken(), picture(102), picture(153)]
    scores = score_batch(images, list("abcde"), answer, prepare=red, batch=2)
    assert [score.value for score in scores] == [None, 0.2, None, 0.4, 0.6]
    assert scores[0].reason.startswith("broken picture data")
    assert [asked for _, asked in answer.chunks] == [["b", "d"], ["e"]]


def test_where_nothing_can_be_read_the_model_is_not_asked():
    answer = Values()
    (score,) = score_batch([broken()], ["a"], answer, prepare=red, batch=2)
    assert (score.value, answer.chunks) == (None, [])
    assert score_batch([], [], answer, prepare=red, batch=2) == []


def test_a_picture_without_a_prompt_is_unscored_where_one_is_needed():
    answer = Values()
    images, prompts = [picture(51), broken(), picture(102)], [" ", "", "a fox"]
    scores = score_batch(images, prompts, answer, prepare=red, batch=2, needs_prompt=True)
    assert scores[::2] == [Score(None, NO_PROMPT), Score(0.4)]
    assert scores[1].reason.startswith("broken picture data")
    assert answer.chunks == [([102], ["a fox"])]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_is_unscored_and_said(value):
    assert as_score(value) == Score(None, f"the model answered {value}")
    scores = score_batch([picture(1), picture(2)], ["a", "b"], lambda *_: [value, 0.5], prepare=red, batch=2)
    assert scores == [Score(None, f"the model answered {value}"), Score(0.5)]


def test_values_of_other_kinds_become_plain_numbers():
    torch = pytest.importorskip("torch")
    score = as_score(torch.tensor(0.25))
    assert score == Score(0.25)
    assert type(score.value) is float


@pytest.mark.parametrize("answers", [[], [0.1], [0.1, 0.2, 0.3]])
def test_a_model_that_answers_too_little_or_too_much_is_our_bug(answers):
    with pytest.raises(ValueError, match="argument"):
        score_batch([picture(1), picture(2)], ["a", "b"], lambda *_: answers, prepare=red, batch=2)


def test_a_prompt_too_few_is_our_bug():
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        score_batch([picture(1), picture(2)], ["a"], Values(), prepare=red, batch=2)


def test_scorers_of_one_batch_prepare_a_picture_once():
    prepared = []

    def prepare(image):
        prepared.append(image)
        return red(image)

    pictures = ImageBatch([picture(1), picture(2)])
    for _ in range(3):
        score_batch(pictures, ["a", "b"], Values(), prepare=prepare, batch=1)
    assert len(prepared) == 2


def test_pictures_are_rgb_when_they_are_prepared():
    modes = []
    score_batch(
        [Image.new("L", (1, 1)), Image.new("RGBA", (1, 1))],
        ["a", "b"],
        lambda x, _: x,
        prepare=lambda image: modes.append(image.mode) or 0.0,
        batch=2,
    )
    assert modes == ["RGB", "RGB"]
