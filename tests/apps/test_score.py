"""`realgen score`: what is printed for good pictures, bad ones, and none."""

import csv
import io
import json

import pytest
import torch
from PIL import Image

RED = ("scorers=null", "scorers.red={name: shade}")
BLUE = "scorers.blue={name: shade, options: {channel: 2}}"


@pytest.fixture
def shots(tmp_path):
    """Three readable pictures, one cut, and a note."""
    folder = tmp_path / "shots"
    folder.mkdir()
    for name, colour in (("a.png", (51, 0, 255)), ("b.png", (102, 0, 0)), ("c.jpg", (153, 0, 0))):
        Image.new("RGB", (16, 16), colour).save(folder / name, quality=100)
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("x")
    return folder


def test_a_table_of_pictures_with_mean_and_interval(run, shade, shots):
    code, out, err = run("score", "shots/a.png", "shots/b.png", *RED, BLUE)
    assert code == 0
    lines = out.splitlines()
    assert any("shots/a.png" in line and "0.2000" in line and "1.0000" in line for line in lines)
    assert any("shots/b.png" in line and "0.4000" in line and "0.0000" in line for line in lines)
    assert any("mean" in line and "0.3000" in line and "0.5000" in line for line in lines)
    assert any("95 %" in line and "0.2000 to 0.4000" in line for line in lines)
    assert "unreadable" not in err


def test_a_folder_s_unreadable_pictures_are_listed_and_counted_and_do_not_stop(run, shade, shots):
    code, out, err = run("score", "shots", *RED, "--json")
    assert code == 0
    answer = json.loads(out)
    assert [image["file"] for image in answer["images"]] == [
        f"shots/{name}" for name in ("a.png", "b.png", "c.jpg", "d.png")
    ]
    assert [image["scores"]["red"]["value"] for image in answer["images"][:3]] == pytest.approx(
        [0.2, 0.4, 0.6], abs=0.01
    )
    assert answer["images"][3]["scores"] == {}
    assert answer["unreadable"] == 1
    assert (answer["scorers"]["red"]["n"], answer["scorers"]["red"]["unscored"]) == (3, 0)
    assert answer["scorers"]["red"]["value"] == pytest.approx(0.4, abs=0.01)
    assert answer["scorers"]["red"]["info"]["is_detector"] is True
    assert "unreadable: shots/d.png: " in err
    assert "1 of 4 could not be read" in err


def test_csv_has_a_row_a_picture(run, shade, shots):
    code, out, _ = run("score", "shots/*.png", *RED, "--csv")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["file"], row["red"]) for row in rows] == [
        ("shots/a.png", "0.2"),
        ("shots/b.png", "0.4"),
        ("shots/d.png", ""),
    ]
    assert rows[2]["reason"]


def test_a_run_s_prompts_and_the_one_for_the_others_are_given_to_scorers(run, shade, shots):
    entry = {"row": 0, "text": "long", "note": "", "seed": 1, "size": [2, 2], "seconds": None, "recorded": True}
    images = [{**entry, "file": "a.png", "prompt": "a fox"}, {**entry, "file": "b.png", "prompt": None}]
    values = {"schema": 1, "version": "1", "created": "", "recipe": {}, "records_prompts": True, "suffix": ".png"}
    (shots / "run.json").write_text(json.dumps({**values, "images": images}))
    code, out, _ = run("score", "shots/run.json", "shots/c.jpg", "--prompt", "a photo", *RED, "--json")
    assert code == 0
    assert shade.asked == [(0, ["a fox", "a photo", "a photo"])]
    assert [image["prompt"] for image in json.loads(out)["images"]] == ["a fox", "a photo", "a photo"]
    run("score", "shots/c.jpg", *RED)
    assert shade.asked[-1] == (0, [""])


def test_pictures_are_scored_in_the_machine_s_batches(run, shade, shots):
    code, _, _ = run("score", "shots", *RED, "machine.batch=2")
    assert code == 0
    assert [len(prompts) for _, prompts in shade.asked] == [2, 1]


def test_what_a_scorer_has_no_opinion_of_is_said_and_left_out(run, shade, shots):
    Image.new("RGB", (1, 1), "red").save(shots / "dot.png")
    code, out, err = run("score", "shots/a.png", "shots/dot.png", *RED)
    assert code == 0
    assert "unscored: shots/dot.png: red: too small" in err
    assert any("shots/dot.png" in line and " - " in line for line in out.splitlines())
    assert any("mean" in line and "0.2000" in line for line in out.splitlines())


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["shots/d.png"], "none of 1 could be scored"),
        (["shots/d.png", "shots/notes.txt", "gone.png"], "none of 3 could be scored"),
        (["shots/dot.png"], "none of 1 could be scored"),
        (["empty"], "no picture in this folder"),
        (["*.gif"], "no picture fits this pattern"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_where_none_can_be_scored_it_is_an_error(run, shade, shots, paths, said, form):
    Image.new("RGB", (1, 1), "red").save(shots / "dot.png")
    (shots.parent / "empty").mkdir()
    code, out, err = run("score", *paths, *RED, *form)
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert said in line


def test_a_recipe_without_scorers_says_to_name_some(run, shots):
    code, _, err = run("score", "shots", "scorers=null")
    assert code == 2
    assert "has no scorers" in err
    assert "realgen list scorers" in err


def test_a_generate_recipe_s_scorers_can_score_too(run, shade, shots):
    code, out, _ = run("score", "shots/a.png", "--recipe", "tiny", "reward=null", *RED, "--csv")
    assert code == 0
    assert "0.2" in out


def test_a_file_whose_name_reads_as_a_setting_is_a_file(run, shade, shots, tmp_path):
    (tmp_path / "machine.batch=1").write_bytes((shots / "a.png").read_bytes())
    code, out, _ = run("score", "machine.batch=1", *RED, "--csv")
    assert code == 0
    assert "machine.batch=1,,0.2," in out


def test_a_held_out_scorer_is_named_as_such(run, shade, shots):
    code, out, _ = run(
        "score", "shots/a.png", "scorers=null", "scorers.red={name: shade, options: {is_held_out: true}}"
    )
    assert code == 0
    assert "(held out)" in out


def test_a_misspelt_scorer_is_refused_before_anything_is_loaded(run, shade, shots):
    code, out, err = run("score", "shots", "scorers.red={name: shadee}")
    assert (code, out) == (2, "")
    assert "shadee" in err
    assert shade.asked == []


def test_memory_that_runs_out_keeps_the_scores_before_it(run, shade, shots, monkeypatch):
    score, calls = shade.__call__, []

    def ends(self, images, prompts):
        calls.append(len(prompts))
        if len(calls) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return score(self, images, prompts)

    monkeypatch.setattr(shade, "__call__", ends)
    code, out, err = run("score", "shots/*.png", *RED, "machine.batch=1", "--csv")
    assert code == 2
    assert "error: out of memory" in err
    assert [row["red"] for row in csv.DictReader(io.StringIO(out))] == ["0.2"]
