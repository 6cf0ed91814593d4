"""Captions made longer by clauses of other texts."""

import pytest

from realgen.core.errors import DataError
from realgen.train.elaborations import Elaborations, read_clauses
from realgen.train.vocabulary import vocabulary


def elaborations(share=1.0, most=99, seed=0):
    clauses = ["soft light", "a garden behind it", "steam rising"]
    return Elaborations(clauses, share=share, fits=lambda text: len(text.split()) <= most, seed=seed)


def test_clauses_lie_between_commas_and_stops(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("A cat sits here, soft  light; fog. Yes\nsoft light, " + "word " * 13 + "\n", encoding="utf-8")
    assert read_clauses([file]) == ["A cat sits here", "soft light"]


def test_files_that_hold_no_clause_or_no_text_say_so(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short.txt").write_text("yes\n")
    for name, said in (("bad.txt", "cannot read"), ("gone.txt", "cannot read"), ("short.txt", "no clause")):
        with pytest.raises(DataError, match=said):
            read_clauses([tmp_path / name])


def test_every_caption_begins_as_it_was_and_an_empty_one_stays_empty():
    found = elaborations()(["a cat.", "", "two dogs"], 3)
    assert found[0].startswith("a cat, ")
    assert found[1] == ""
    assert found[2].startswith("two dogs, ")
    assert found == elaborations()(["a cat.", "", "two dogs"], 3)
    assert found != elaborations(seed=1)(["a cat.", "", "two dogs"], 3)
    assert found != elaborations()(["a cat.", "", "two dogs"], 4)


def test_about_the_share_of_captions_is_longer_and_none_too_long():
    captions = ["a cat"] * 2000
    found = elaborations(share=0.4, most=6)(captions, 0)
    longer = sum(text != "a cat" for text in found) / len(found)
    assert 0.2 < longer < 0.45  # a clause that does not fit leaves a caption as it was
    assert max(len(text.split()) for text in found) <= 6
    assert elaborations(share=0.0)(captions, 0) == captions


def test_things_are_framed_as_people_are_and_people_are_left_their_own_framing():
    framing = set(vocabulary().framing)
    things = [set(text.split(", ")) & framing for text in elaborations()(["a pizza"] * 200, 0)]
    people = [set(text.split(", ")) & framing for text in elaborations()(["A portrait of a man"] * 200, 0)]
    assert sum(map(bool, things)) > 80
    assert not any(people)
