"""Paths to pictures: every way of naming them, in order, once each, and one in memory at a time."""

import io
import json
import os

import pytest
from PIL import Image

from realgen import pictures
from realgen.pictures import Found

ENTRY = {"row": 0, "text": "", "note": "", "seed": 1, "size": [2, 2], "seconds": None, "recorded": True}
RUN = {"schema": 1, "version": "1", "created": "", "recipe": {}, "records_prompts": True, "suffix": ".png"}


def save(path, colour=(9, 0, 0), size=(2, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    path.write_bytes(file.getvalue())
    return path


def run_json(folder, images, name="run.json"):
    path = folder / name
    path.write_text(json.dumps({**RUN, "images": [{**ENTRY, **image} for image in images]}))
    return path


def names(found, folder):
    return [os.path.relpath(item.path, folder) for item in found]


@pytest.fixture
def shots(tmp_path):
    for name in ("b.png", "a.JPG", "deep/c.webp", "deep/er/d.tiff", "Z.png"):
        save(tmp_path / name)
    for name in ("notes.txt", "contact-sheet.png", "deep/contact-sheet-2.png", "run.yaml"):
        (tmp_path / name).write_text("x")
    return tmp_path


def test_a_file_is_itself_whatever_it_is_called(tmp_path):
    path = save(tmp_path / "picture.of.mine")
    (found,) = pictures.find([str(path)])
    assert found == Found(path)
    assert pictures.read(found).image.getpixel((0, 0)) == (9, 0, 0)


def test_a_folder_is_its_pictures_by_name_without_contact_sheets(shots):
    assert names(pictures.find([str(shots)]), shots) == ["Z.png", "a.JPG", "b.png", "deep/c.webp", "deep/er/d.tiff"]


def test_a_contact_sheet_that_is_named_is_taken(shots):
    assert names(pictures.find([str(shots / "contact-sheet.png")]), shots) == ["contact-sheet.png"]


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("*.png", ["Z.png", "b.png"]),
        ("*", ["Z.png", "a.JPG", "b.png"]),
        ("**/*.tiff", ["deep/er/d.tiff"]),
        ("**/[cd].*", ["deep/c.webp", "deep/er/d.tiff"]),
    ],
)
def test_a_pattern_is_the_pictures_that_it_fits(shots, pattern, fitting):
    assert names(pictures.find([str(shots / pattern)]), shots) == fitting


def test_a_relative_pattern(shots, monkeypatch):
    monkeypatch.chdir(shots)
    assert [item.name for item in pictures.find(["deep/*"])] == ["deep/c.webp"]


def test_a_file_whose_name_reads_as_a_pattern_is_that_file(tmp_path):
    save(tmp_path / "a.png")
    odd = save(tmp_path / "[a].png")
    assert pictures.find([str(odd)]) == [Found(odd)]


def test_a_run_s_pictures_come_with_their_prompts(tmp_path):
    save(tmp_path / "1.png")
    run = run_json(tmp_path, [{"file": "1.png", "prompt": "a cat"}, {"file": "gone.png", "prompt": None}])
    first, second = pictures.find([str(run)])
    assert first == Found(tmp_path / "1.png", "a cat")
    assert (pictures.read(first).prompt, pictures.read(first).image.size) == ("a cat", (2, 2))
    assert pictures.read(second).reason == "No such file or directory"


def test_a_run_cannot_point_out_of_its_folder(tmp_path):
    save(tmp_path / "secret.png")
    (tmp_path / "run").mkdir()
    run = run_json(tmp_path / "run", [{"file": "../secret.png", "prompt": None}])
    assert [item.path for item in pictures.find([str(run)])] == [tmp_path / "run" / "secret.png"]


def test_a_file_named_twice_is_taken_once_with_the_prompt_that_is_known(tmp_path):
    one, two = save(tmp_path / "1.png"), save(tmp_path / "2.png")
    run = run_json(tmp_path, [{"file": "2.png", "prompt": "a cat"}])
    found = pictures.find([str(one), str(tmp_path), str(run), str(two)])
    assert found == [Found(one), Found(two, "a cat")]
    (tmp_path / "link.png").symlink_to(one)
    assert pictures.find([str(one), str(tmp_path / "link.png")]) == [Found(one)]


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("empty", "no picture in this folder"),
        ("*.gif", "no picture fits this pattern"),
        ("gone.png", "No such file or directory"),
        ("notes.txt", "not a readable picture"),
        ("zero.png", "the file is empty"),
        ("cut.png", "broken picture data"),
        ("bad.json", "cannot read"),
        ("none.json", "this run has no pictures"),
        ("gone.json", "cannot read"),
        ("pipe.png", "not a file"),
    ],
)
def test_what_cannot_be_read_has_a_reason_and_no_image(tmp_path, word, reason):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "zero.png").touch()
    (tmp_path / "bad.json").write_text("{")
    os.mkfifo(tmp_path / "pipe.png")
    run_json(tmp_path, [], "none.json")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(noise, "PNG")
    (tmp_path / "cut.png").write_bytes(noise.getvalue()[:1500])
    (found,) = pictures.find([str(tmp_path / word)])
    picture = pictures.read(found)
    assert picture.image is None
    assert reason in picture.reason
    assert picture.name == str(tmp_path / word)


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_BYTES", path.stat().st_size - 1)
    assert pictures.read(Found(path)).reason == "larger than 0 MB"


def test_finding_opens_no_picture(shots, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("read too early")

    monkeypatch.setattr(pictures, "decode", refuse)
    monkeypatch.setattr(pictures, "_bytes_of", refuse)
    assert len(pictures.find([str(shots)])) == 5


def test_a_name_that_is_no_text_is_shown_all_the_same(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        save(path)
    except OSError:
        pytest.skip("this file system takes no such name")
    (found,) = pictures.find([str(tmp_path)])
    assert found.name.endswith("caf\\xe9.png")
    assert pictures.read(found).image is not None
