"""The output folder: nothing is overwritten, a cut run goes on, privacy holds everywhere, and the page adds up."""

import dataclasses
import datetime as dt
import errno
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from realgen import gallery as gallery_module
from realgen import provenance, run_file
from realgen.core.errors import InputError, OutputError
from realgen.core.types import Candidate, Choice, Request, Sample, Score
from realgen.gallery import MAX_FRAMES, Entry, Gallery, draw_contact_sheet, fresh_folder, wrap
from realgen.provenance import Signer, read

RECIPE = {"kind": "generate", "generator": {"name": "flux"}}
FISHERMAN = "a portrait of an old fisherman at dawn"


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def draw(request: Request, size: tuple[int, int] = (32, 24)) -> Sample:
    colour = (40 * request.seed % 256, 90, 160)
    return Sample(request, f"{request.prompt}, 85 mm", Image.new("RGB", size, colour), note="kept")


def create(folder: Path, requests: Sequence[Request] = (), **options: Any) -> Gallery:
    return Gallery.create(folder, RECIPE, version="0.1.0", requests=requests, **options)


def fill(folder: Path, requests: Sequence[Request], **options: Any) -> Gallery:
    gallery = create(folder, requests, **options)
    for request in requests:
        gallery.add(draw(request))
    gallery.finish()
    return gallery


def run_of(folder: Path, name: str = "run.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return loaded


def requests_of(count: int, prompt: str = FISHERMAN) -> list[Request]:
    return [Request(prompt, 7 + i) for i in range(count)]


def test_a_run_is_numbered_images_a_sheet_and_run_json(tmp_path: Path) -> None:
    gallery = create(tmp_path / "new" / "out", requests_of(2))
    paths = [gallery.add(draw(request), seconds=1.23456) for request in requests_of(2)]
    assert [path.name for path in paths] == ["0001.png", "0002.png"]
    assert gallery.finish() == gallery.folder / "contact-sheet.png"
    assert names_in(gallery.folder) == ["0001.png", "0002.png", "contact-sheet.png", "run.json"]
    run = run_of(gallery.folder)
    assert (run["schema"], run["version"], run["recipe"]) == (1, "0.1.0", RECIPE)
    assert run["digital_source_type"].endswith("/trainedAlgorithmicMedia")
    assert run["contact_sheet"] == "contact-sheet.png"
    assert run["images"][1] == {
        "file": "0002.png",
        "row": 1,
        "prompt": FISHERMAN,
        "text": f"{FISHERMAN}, 85 mm",
        "note": "kept",
        "seed": 8,
        "size": [32, 24],
        "seconds": 1.235,
        "recorded": True,
        "scores": {},
        "search": None,
    }


def test_images_and_sheet_carry_the_mark(tmp_path: Path) -> None:
    fill(tmp_path, requests_of(2))
    image, sheet = read(tmp_path / "0002.png"), read(tmp_path / "contact-sheet.png")
    assert (image.is_ai, image.seed, image.prompt, image.text) == (True, 8, FISHERMAN, f"{FISHERMAN}, 85 mm")
    assert (sheet.is_ai, sheet.seed, sheet.prompt, sheet.recipe) == (True, 7, FISHERMAN, RECIPE)


def test_a_rerun_overwrites_nothing(tmp_path: Path) -> None:
    fill(tmp_path, requests_of(2))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    fill(tmp_path, requests_of(2))
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    added = {file.name for file in tmp_path.iterdir()} - before.keys()
    assert added == {"0003.png", "0004.png", "contact-sheet-2.png", "run-2.json"}
    assert [entry["file"] for entry in run_of(tmp_path, "run-2.json")["images"]] == ["0003.png", "0004.png"]


def test_numbers_go_on_after_other_formats_and_gaps(tmp_path: Path) -> None:
    for name in ["0001.png", "0041.jpg", "12.png", "notes.txt"]:
        (tmp_path / name).write_bytes(b"mine")
    assert create(tmp_path).add(draw(Request("a", 1))).name == "0042.png"


def test_a_name_becomes_the_file_and_a_clash_is_counted(tmp_path: Path) -> None:
    gallery = create(tmp_path)
    names = ["cat.png", "cat", "contact-sheet", "a:b", "", "cat"]
    stems = [gallery.add(draw(Request("a", 1, name))).stem for name in names]
    assert stems == ["cat", "cat-2", "contact-sheet-2", "a_b", "0001", "cat-3"]


def test_a_path_as_a_name_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a path"):
        create(tmp_path / "out", [Request("a", 1, "../../etc/passwd")])
    assert not (tmp_path / "out").exists()


def test_a_name_taken_in_the_meantime_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = create(tmp_path)
    mark = provenance.mark

    def race(image: Image.Image, path: Path, **options: Any) -> None:
        if path.name == "0001.png":
            path.write_bytes(b"theirs")
        mark(image, path, **options)

    monkeypatch.setattr(gallery_module, "mark", race)
    assert gallery.add(draw(Request("a", 1))).name == "0002.png"
    assert (tmp_path / "0001.png").read_bytes() == b"theirs"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_withheld_prompts_are_nowhere_and_the_mark_stays(tmp_path: Path, suffix: str) -> None:
    requests = requests_of(2)
    fill(tmp_path, requests, records_prompts=False, suffix=suffix)
    for file in tmp_path.iterdir():
        assert b"fisherman" not in file.read_bytes()
        assert file.suffix == ".json" or read(file).is_ai
    image = run_of(tmp_path)["images"][0]
    assert (image["prompt"], image["text"], image["note"], image["recorded"]) == (None, None, None, False)


def test_the_sheet_of_withheld_prompts_shows_none(tmp_path: Path) -> None:
    pages = []
    for prompt in ["a cat", "a dog"]:
        fill(tmp_path / prompt, requests_of(2, prompt), records_prompts=False)
        with Image.open(tmp_path / prompt / "contact-sheet.png") as opened:
            pages.append(opened.tobytes())
    assert pages[0] == pages[1]


def test_resume_skips_what_is_done(tmp_path: Path) -> None:
    requests = [*requests_of(2), Request("a dog", 7), Request("a dog", 7)]
    first = create(tmp_path, requests)
    first.add(draw(requests[2]))
    first.add(draw(requests[0]))
    resumed = Gallery.resume(tmp_path, requests=requests)
    assert resumed.pending == [requests[1], requests[3]]
    assert resumed.manifest.recipe == RECIPE
    for request in resumed.pending:
        resumed.add(draw(request))
    assert resumed.pending == []
    assert [(image["file"], image["row"]) for image in run_of(tmp_path)["images"]] == [
        ("0001.png", 2),
        ("0002.png", 0),
        ("0003.png", 1),
        ("0004.png", 3),
    ]


def test_resume_draws_again_what_changed_or_was_deleted(tmp_path: Path) -> None:
    requests = [Request("a cat", 1), Request("a dog", 1), Request("an owl", 1)]
    fill(tmp_path, requests)
    (tmp_path / "0003.png").unlink()
    changed = [requests[0], Request("a wolf", 1), requests[2]]
    assert Gallery.resume(tmp_path, requests=changed).pending == changed[1:]


def test_resume_with_other_prompts_does_not_forget_those_that_wait(tmp_path: Path) -> None:
    requests = [Request("a cat", 1), Request("a dog", 1), Request("an owl", 1)]
    create(tmp_path, requests).add(draw(requests[0]))
    resumed = Gallery.resume(tmp_path, requests=[Request("a wolf", 1)])
    assert resumed.pending == [Request("a wolf", 1)]
    assert resumed.num_others == 1
    resumed.add(draw(Request("a wolf", 1)))
    assert Gallery.resume(tmp_path).pending == requests[1:]


def test_what_waited_where_others_are_drawn_now_waits_behind_them(tmp_path: Path) -> None:
    requests = [Request("a cat", 1), Request("a dog", 1)]
    create(tmp_path, requests)
    wolf = Request("a wolf", 1)
    Gallery.resume(tmp_path, requests=[wolf]).finish()  # stopped before a picture
    assert Gallery.resume(tmp_path).pending == [wolf, requests[1], requests[0]]
    Gallery.resume(tmp_path, requests=[wolf]).add(draw(wolf))
    assert Gallery.resume(tmp_path).pending == [requests[1], requests[0]]


def test_a_signed_run_goes_on_signed(tmp_path: Path) -> None:
    create(tmp_path, requests_of(2))
    run_file = tmp_path / "run.json"
    run_file.write_text(run_file.read_text().replace('"is_signed": false', '"is_signed": true'))
    with pytest.raises(InputError, match="is signed") as caught:
        Gallery.resume(tmp_path)
    assert "--sign" in caught.value.hint


def test_a_long_run_is_written_out_once(tmp_path: Path) -> None:
    """The requests, which stay as they are, cost a picture of a long run no more than their bytes."""
    run_file._listed.cache_clear()
    fill(tmp_path, requests_of(5))
    assert run_file._listed.cache_info().misses == 1
    assert [asked["seed"] for asked in run_of(tmp_path)["requests"]] == [7, 8, 9, 10, 11]


def test_resume_replaces_its_own_sheet_only(tmp_path: Path) -> None:
    requests = requests_of(3)
    (tmp_path / "contact-sheet.png").write_bytes(b"mine")
    gallery = create(tmp_path, requests)
    gallery.add(draw(requests[0]))
    assert gallery.finish() == tmp_path / "contact-sheet-2.png"
    resumed = Gallery.resume(tmp_path, requests=requests)
    resumed.add(draw(requests[1]))
    assert resumed.finish() == tmp_path / "contact-sheet-2.png"
    assert (tmp_path / "contact-sheet.png").read_bytes() == b"mine"
    assert not (tmp_path / "contact-sheet-3.png").exists()


def chosen(asked: Request, *, reason: str = "") -> Sample:
    candidates = (
        Candidate(asked.seed, None, {"real": None}, reason=reason),
        Candidate(asked.seed + 1, 0.75, {"real": 0.75}),
    )
    sample = draw(dataclasses.replace(asked, seed=asked.seed + 1))
    scores = {"semantic": Score(0.75), "quality": Score(None, reason)}
    return dataclasses.replace(sample, scores=scores, choice=Choice(asked, candidates, "total 0.75, the highest of 2"))


def test_a_searched_image_keeps_its_scores_and_why_it_was_chosen(tmp_path: Path) -> None:
    asked = Request(FISHERMAN, 7)
    create(tmp_path, [asked]).add(chosen(asked, reason="it broke"))
    (entry,) = run_of(tmp_path)["images"]
    assert (entry["row"], entry["seed"], entry["search"]["asked_seed"]) == (0, 8, 7)
    assert entry["scores"] == {
        "semantic": {"value": 0.75, "reason": ""},
        "quality": {"value": None, "reason": "it broke"},
    }
    assert entry["search"]["why"] == "total 0.75, the highest of 2"
    assert entry["search"]["candidates"] == [
        {"seed": 7, "total": None, "parts": {"real": None}, "is_violated": False, "reason": "it broke"},
        {"seed": 8, "total": 0.75, "parts": {"real": 0.75}, "is_violated": False, "reason": ""},
    ]
    assert read(tmp_path / "0001.png").seed == 8


def test_a_search_is_resumed_by_the_seeds_that_were_asked_for(tmp_path: Path) -> None:
    """The first request's image has seed 8, which the second one asks for: they are told apart by row and seed."""
    requests = [Request("a", 7), Request("a", 8)]
    gallery = create(tmp_path, requests)
    gallery.add(chosen(requests[0]))
    assert gallery.pending == [requests[1]]
    resumed = Gallery.resume(tmp_path, requests=requests)
    assert resumed.pending == [requests[1]]
    resumed.add(chosen(requests[1]))
    assert [entry["row"] for entry in run_of(tmp_path)["images"]] == [0, 1]
    assert Gallery.resume(tmp_path, requests=requests).pending == []


def test_reasons_that_may_quote_the_prompt_are_withheld_with_it(tmp_path: Path) -> None:
    asked = Request("a secret", 7)
    create(tmp_path, [asked], records_prompts=False).add(chosen(asked, reason="cannot read 'a secret'"))
    assert b"secret" not in (tmp_path / "run.json").read_bytes()
    (entry,) = run_of(tmp_path)["images"]
    assert entry["scores"]["semantic"]["value"] == 0.75
    assert [candidate["total"] for candidate in entry["search"]["candidates"]] == [None, 0.75]


def test_the_page_says_of_how_many_an_image_is_the_best(tmp_path: Path) -> None:
    gallery = create(tmp_path)
    gallery.add(chosen(Request("a", 7)))
    gallery.add(draw(Request("a", 9)))
    assert [gallery_module._label(entry) for entry in gallery.manifest.images] == [
        "0001  ·  seed 8  ·  best of 2",
        "0002  ·  seed 9",
    ]


def test_resume_takes_the_newest_run_and_its_privacy(tmp_path: Path) -> None:
    requests = requests_of(2)
    fill(tmp_path, requests)
    create(tmp_path, requests, records_prompts=False).add(draw(requests[0]))
    resumed = Gallery.resume(tmp_path, requests=requests)
    assert resumed.run_file.name == "run-2.json"
    assert resumed.pending == [requests[1]]
    resumed.add(draw(requests[1]))
    assert b"fisherman" not in (tmp_path / "run-2.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run"),
        (b"", "cannot read"),
        (b"\xff", "cannot read"),
        (b"[]", "run.json"),
        (b'{"schema": 2}', "schema: Input should be 1"),
        (b'{"schema": 1, "version": "1", "created": "", "recipe": {}, "suffix": ".png"}', "records_prompts"),
    ],
)
def test_a_folder_that_cannot_be_resumed_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Gallery.resume(tmp_path)
    assert "\n" not in caught.value.message
    with pytest.raises(InputError, match="holds no run"):
        Gallery.resume(tmp_path / "none")


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(2)
    gallery = create(tmp_path, requests)
    gallery.add(draw(requests[0]))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        gallery.add(draw(requests[1]))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert gallery.pending == [requests[1]]
    monkeypatch.undo()
    assert Gallery.resume(tmp_path, requests=requests).pending == [requests[1]]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(OutputError, match="cannot make the folder"):
        create(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot make the folder"):
        create(tmp_path / "file" / "below")
    (tmp_path / "outputs").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="cannot make the folder outputs"):
        Gallery.create(None, RECIPE, version="0.1.0")


def test_a_folder_that_cannot_be_written_shows_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutputError, match="Permission denied") as caught:
        create(tmp_path)
    assert caught.value.hint == "choose another --out"


def test_a_wrong_key_shows_at_once(tmp_path: Path) -> None:
    pytest.importorskip("c2pa")
    with pytest.raises(InputError, match="cannot read"):
        create(tmp_path / "out", signer=Signer(tmp_path / "chain.pem", tmp_path / "key.pem"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_suffix_shows_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot save an image as .gif"):
        create(tmp_path / "out", suffix=".gif")


def test_a_default_folder_is_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = dt.datetime(2026, 1, 2, 3, 4, 5)
    made = [fresh_folder(tmp_path / "outputs", now).name for _ in range(3)]
    assert made == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]
    monkeypatch.chdir(tmp_path)
    folder = Gallery.create(None, RECIPE, version="0.1.0").folder
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
    assert folder.parent == Path("outputs")


def test_a_run_without_images_has_no_sheet(tmp_path: Path) -> None:
    assert create(tmp_path).finish() is None
    assert names_in(tmp_path) == ["run.json"]


def test_half_a_surrogate_pair_in_a_text_is_kept(tmp_path: Path) -> None:
    create(tmp_path).add(Sample(Request("a", 1), "a \udc80 b", Image.new("RGB", (8, 8))))
    assert run_of(tmp_path)["images"][0]["text"] == "a \udc80 b"
    assert read(tmp_path / "0001.png").text == "a \udc80 b"


def entries(folder: Path, prompts: Sequence[str], size: tuple[int, int] = (128, 128)) -> list[Entry]:
    gallery = create(folder)
    for seed, prompt in enumerate(prompts):
        gallery.add(draw(Request(prompt, seed), size))
    return list(gallery.manifest.images)


@pytest.mark.parametrize(
    ("prompts", "num_columns", "num_rows"),
    [
        (["a"], 1, 1),
        (["a"] * 4, 2, 2),
        (["a"] * 6, 3, 2),
        (["a", "b", "c"], 3, 1),
        (["a"] * 4 + ["b"] * 4, 4, 2),
        ([c for c in "abcd" for _ in range(2)], 4, 2),
        ([c for c in "abc" for _ in range(8)], 8, 3),
        (["a"] * 5, 3, 2),
    ],
)
def test_the_page_adds_up(tmp_path: Path, prompts: list[str], num_columns: int, num_rows: int) -> None:
    """Small images are doubled: 2 x 64 margin, 256 a frame, 36 between; 56 heading, 27 + 18 below each frame."""
    page = draw_contact_sheet(tmp_path, entries(tmp_path, prompts), heading="RealGen")
    assert page.width == 128 + 256 * num_columns + 36 * (num_columns - 1)
    assert page.height == 128 + 56 + (256 + 27 + 18) * num_rows + 36 * (num_rows - 1)
    assert page.getpixel((64 + 128, 64 + 56 + 128)) == (0, 90, 160)
    assert page.getpixel((5, 5)) == (24, 24, 25)


@pytest.mark.parametrize("size", [(1, 1), (1024, 16), (16, 1024), (640, 480)])
def test_any_shape_fits_a_page(tmp_path: Path, size: tuple[int, int]) -> None:
    page = draw_contact_sheet(tmp_path, entries(tmp_path, ["a cat"], size), heading="RealGen")
    assert page.width <= 2 * 64 + 320
    assert page.height <= 2 * 64 + 56 + 320 + 27 + 18


def test_a_long_run_says_how_much_the_page_shows() -> None:
    assert gallery_module._counted(MAX_FRAMES, 1000) == "Made by AI · the first 240 of 1000 images"
    assert gallery_module._counted(1, 1) == "Made by AI · 1 image"


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    made = entries(tmp_path, ["a"])
    (tmp_path / "0001.png").write_bytes(b"x")
    with pytest.raises(InputError, match=r"0001.png for the contact sheet"):
        draw_contact_sheet(tmp_path, made, heading="RealGen")


def font() -> ImageFont.FreeTypeFont:
    return gallery_module._font(14)


@settings(deadline=None)
@given(text=st.text(max_size=600), width=st.floats(40, 400))
def test_a_caption_stays_within_its_frame(text: str, width: float) -> None:
    lines = wrap(text, width, font=font())
    assert len(lines) <= 2
    assert all(font().getlength(line) <= width for line in lines)


def test_a_caption_keeps_its_words_and_ends_with_an_ellipsis() -> None:
    assert wrap("a cat", 200, font=font()) == ["a cat"]
    assert wrap("", 200, font=font()) == []
    lines = wrap("a close-up photograph of a red tulip, soft side light, shallow depth of field", 200, font=font())
    assert lines[0] == "a close-up photograph of a red"
    assert lines[1].endswith("…")


def test_a_caption_shows_no_empty_boxes() -> None:
    assert wrap("Ein Café — in München 東京\n夜晚 bei Regen", 400, font=font()) == ["Ein Cafe - in Munchen … bei Regen"]
