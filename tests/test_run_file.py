"""run.json: read back as it was written, from older versions too, and closed to what it does not know."""

import json

import pytest
from PIL import Image

from realgen import run_file
from realgen.core.errors import InputError
from realgen.core.types import Candidate, Choice, Request, Sample, Score
from realgen.run_file import Entry, RunFile

OLD = {
    "schema": 1,
    "version": "0.1.0",
    "created": "2026-01-02T03:04:05+00:00",
    "digital_source_type": "x",
    "recipe": {"kind": "generate"},
    "records_prompts": True,
    "suffix": ".png",
    "contact_sheet": None,
    "images": [
        {
            "file": "0001.png",
            "row": 0,
            "prompt": "a cat",
            "text": "a cat",
            "note": "",
            "seed": 7,
            "size": [8, 8],
            "seconds": 1.5,
            "recorded": True,
        }
    ],
}
"""A run.json as it was before there were scores."""

CHOICE = Choice(
    Request("a cat", 7),
    (Candidate(7, 0.1, {"a": 0.1}), Candidate(8, None, {"a": None}, is_violated=True, reason="it broke")),
    "total 0.1, the highest of 2",
)
SAMPLE = Sample(
    Request("a cat", 7),
    "a cat",
    Image.new("RGB", (8, 4)),
    scores={"a": Score(0.1), "b": Score(None, "x")},
    choice=CHOICE,
)


def written(folder, values, name="run.json"):
    path = folder / name
    path.write_text(json.dumps(values))
    return path


def record_of(*entries):
    return RunFile(version="1", created="now", recipe={}, records_prompts=True, suffix=".png", images=entries)


def entry_of(**fields):
    return Entry.of(SAMPLE, **{"file": "0001.png", "row": 0, "seconds": 1.23456, "recorded": True, **fields})


def test_a_record_survives_the_round_trip(tmp_path):
    record = record_of(entry_of(), entry_of(file="0002.png", row=1))
    path = tmp_path / "run.json"
    path.write_bytes(run_file.dump(record))
    assert run_file.load(path) == record


def test_a_record_from_before_there_were_scores_is_read(tmp_path):
    record = run_file.load(written(tmp_path, OLD))
    (entry,) = record.images
    assert (entry.scores, entry.search, entry.asked_seed) == ({}, None, 7)


def test_an_entry_says_what_made_the_image_how_it_scored_and_why_it_was_chosen():
    entry = entry_of()
    assert (entry.prompt, entry.seed, entry.size, entry.seconds) == ("a cat", 7, (8, 4), 1.235)
    assert entry.scores == {"a": Score(0.1), "b": Score(None, "x")}
    assert (entry.search.asked_seed, entry.asked_seed, entry.search.why) == (7, 7, "total 0.1, the highest of 2")
    assert entry.search.candidates == CHOICE.candidates


def test_a_private_entry_keeps_figures_and_no_words_of_the_person():
    entry = entry_of(recorded=False)
    assert (entry.prompt, entry.text, entry.note) == (None, None, None)
    assert entry.scores == {"a": Score(0.1), "b": Score(None)}
    assert [candidate.reason for candidate in entry.search.candidates] == ["", ""]
    assert entry.search.candidates[1].is_violated


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema: Input should be 1"),
        ({"images": [{"file": "x"}]}, "images.0.row"),
        ({"camera": "x"}, "camera"),
        ({"recipe": 3}, "recipe"),
    ],
)
def test_what_is_not_known_is_refused_in_one_line(tmp_path, change, said):
    path = written(tmp_path, {**OLD, **change})
    with pytest.raises(InputError, match=said) as caught:
        run_file.load(path)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"{"])
def test_what_is_no_json_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot read") as caught:
        run_file.load(path)
    assert "\n" not in caught.value.message


def test_the_newest_is_the_largest_number_not_the_last_letter(tmp_path):
    for name in ("run.json", "run-2.json", "run-10.json", "run-x.json", "rerun-11.json"):
        written(tmp_path, OLD, name)
    assert run_file.newest(tmp_path).name == "run-10.json"
    with pytest.raises(InputError, match="holds no run"):
        run_file.newest(tmp_path / "none")


def test_half_a_surrogate_pair_is_escaped():
    assert b"\\udc80" in run_file.dump(record_of(entry_of()).model_copy(update={"version": "\udc80"}))
