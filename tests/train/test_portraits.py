"""Captions of official portraits say man or woman where that is seen, and stay as they are where it is not."""

import numpy as np
import pytest
from torch.nn import functional as F

from realgen.train.photographs import Photograph
from realgen.train.portraits import said_who

OFFICIAL = "an official portrait photo of a person in formal clothes"


def eye(pixels):
    """Two maps of many channels, as an eye has, which all see red or blue."""
    seen = pixels[:, [0, 2]].repeat(1, 100, 1, 1)
    return [F.adaptive_avg_pool2d(seen, 4), F.adaptive_avg_pool2d(seen, 2)]


def shown(red, rng, source, caption, category="people"):
    """A picture as red as is said and as blue as it is not; readers shall learn that red is a woman."""
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 2] = 255 * red, 255 * (1 - red)
    pixels = (pixels + rng.integers(-6, 7, pixels.shape)).clip(0, 255).astype(np.uint8)
    return Photograph("x.jpg", pixels, category, "portrait", (caption,), source)


def known(rng, count=40):
    women = [shown(0.85, rng, "pixabay", "a close-up portrait photo of a woman") for _ in range(count)]
    return women + [shown(0.15, rng, "pixabay", "a close-up portrait photo of a man") for _ in range(count)]


def officials(rng, *reds):
    return [shown(red, rng, "congress/hi", OFFICIAL) for red in reds]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_official_portraits_say_who_is_seen(rng):
    reds = [0.9] * 20 + [0.1] * 20
    named = said_who(known(rng) + officials(rng, *reds), eye)[80:]
    assert [photograph.captions for photograph in named[:20]] == [(OFFICIAL.replace("person", "woman"),)] * 20
    assert [photograph.captions for photograph in named[20:]] == [(OFFICIAL.replace("person", "man"),)] * 20


def test_both_are_drawn_as_often(rng):
    named = said_who(known(rng) + officials(rng, *[0.9] * 10, *[0.1] * 30), eye)
    assert [photograph.weight for photograph in named] == [1] * 80 + [3] * 10 + [1] * 30


def test_where_the_readers_are_unsure_the_caption_stays(rng):
    named = said_who(known(rng) + officials(rng, *[0.9] * 20, *[0.1] * 20, 0.5), eye)
    assert named[-1].captions == (OFFICIAL,)


def test_nothing_else_is_changed(rng):
    others = [
        *known(rng),
        shown(0.9, rng, "street_portrait", "a portrait photo of a person on a street wearing a coat"),
        shown(0.9, rng, "catsdogs", "a photo of a cat", category="animals"),
    ]
    before = others + officials(rng, *[0.9] * 10, *[0.1] * 10)
    named = said_who(before, eye)
    assert all(one is other for one, other in zip(named[: len(others)], others, strict=True))
    for one, other in zip(named, before, strict=True):
        assert (one.file, one.cls, one.source, one.category) == (other.file, other.cls, other.source, other.category)
        assert one.pixels is other.pixels


def test_who_was_never_told_apart_is_not_guessed(rng):
    portraits = officials(rng, 0.9, 0.1)
    assert said_who(portraits, eye) == portraits
    men = known(rng)[40:]
    assert said_who(men + portraits, eye) == men + portraits
    assert said_who([], eye) == []


def test_one_kind_alone_teaches_no_second_reader(rng):
    women = officials(rng, *[0.9] * 5)
    assert said_who(known(rng) + women, eye)[80:] == women
