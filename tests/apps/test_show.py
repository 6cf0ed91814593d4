"""What is printed and where: answers on stdout, everything else on stderr."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from realgen.apps import _show as show
from realgen.catalogue import Finding
from realgen.core.errors import InputError, RealGenError
from realgen.core.types import Candidate, Choice, Metric, Progress, Request, Rewrite, Sample, Score, ScorerInfo
from realgen.gallery import Entry, Gallery, RunFile
from realgen.provenance import TRAINED, Record
from realgen.score_table import Row

FIELDS = {"prompt": "a cat", "text": "a cat on a sofa", "note": None, "seconds": 1.5, "recorded": True}


def gallery_of(folder, *files, sheet=None):
    entries = tuple(Entry(file=file, row=i, seed=7 + i, size=(8, 8), **FIELDS) for i, file in enumerate(files))
    manifest = RunFile(
        version="1",
        created="2026-01-01T00:00:00",
        recipe={},
        records_prompts=True,
        suffix=".png",
        contact_sheet=sheet,
        images=entries,
    )
    return Gallery(folder, folder / "run.json", manifest, requests=[], signer=None)


def sample(text="a cat", note=""):
    return Sample(Request("a cat", 1), text, Image.new("RGB", (1, 1)), note)


# ---- lines ----------------------------------------------------------------------------------------------


def test_a_note_goes_to_stderr(capsys):
    show.note("wait")
    assert capsys.readouterr() == ("", "wait\n")


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (RealGenError("it broke"), "error: it broke\n"),
        (InputError("no file x", hint="give one"), "error: no file x (give one)\n"),
        (RealGenError("two\n  lines\tand   gaps"), "error: two lines and gaps\n"),
    ],
)
def test_an_error_is_one_line_on_stderr(capsys, failure, line):
    show.error(failure)
    assert capsys.readouterr() == ("", line)


def test_metrics_are_one_line_of_five_digits(capsys):
    show.metrics(20, 100, {"loss": 0.123456789, "grad_norm": 12.0})
    assert capsys.readouterr().out == "20/100  loss 0.12346  grad_norm 12\n"


# ---- progress -------------------------------------------------------------------------------------------


def test_the_progress_bar_writes_nothing_to_stdout(capsys):
    with show.progress(2) as bar:
        bar.within(Progress(3, 20))
        bar.drawn(sample(), Path("out/1.png"))
        bar.drawn(sample("a cat [bold]on a sofa[/bold]", note=""), Path("out/2.png"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "out/1.png\n" in err
    assert "out/2.png  a cat [bold]on a sofa[/bold]\n" in err  # a person's words are no markup


def test_a_kept_prompt_says_why(capsys):
    with show.progress(1) as bar:
        bar.drawn(sample(note="the answer was empty"), Path("1.png"))
    assert "1.png  (prompt kept: the answer was empty)\n" in capsys.readouterr().err


def test_a_chosen_picture_says_why(capsys):
    def chosen(seed, total, why, reason=""):
        candidates = (Candidate(1, total, {}, reason=reason), Candidate(2, 0.1, {}))
        picture = sample()
        return replace(picture, request=Request("a cat", seed), choice=Choice(picture.request, candidates, why))

    with show.progress(2) as bar:
        bar.drawn(chosen(2, 0.05, "total 0.1, the highest of 2"), Path("1.png"))
        bar.drawn(chosen(1, None, "the first of the unscored", "a: it broke"), Path("2.png"))
    err = capsys.readouterr().err
    assert "1.png  (seed 2: total 0.1, the highest of 2)\n" in err
    assert "2.png  (seed 1: the first of the unscored: a: it broke)\n" in err


def test_the_bar_counts_pictures_and_shows_the_step():
    told = []
    fake = SimpleNamespace(
        add_task=lambda name, **state: told.append((name, state)) or 5,
        update=lambda task, **state: told.append((task, state)),
        console=SimpleNamespace(print=lambda text, **options: told.append(text)),
    )
    bar = show.Bar(fake, 3)
    bar.within(Progress(4, 20))
    bar.drawn(sample(), Path("a.png"))
    assert told == [
        ("drawing", {"total": 3, "step": ""}),
        (5, {"step": "step 4/20"}),
        (5, {"advance": 1, "step": ""}),
        "a.png",
    ]


def test_a_bar_says_what_is_being_done():
    told = []
    fake = SimpleNamespace(
        add_task=lambda name, **state: told.append(name), update=lambda task, **state: told.append(state)
    )
    show.Bar(fake, 3, "scoring").advance()
    assert told == ["scoring", {"advance": 1, "step": ""}]


def test_a_fetch_is_told_on_stderr_alone(capsys):
    with show.transfer() as tell:
        tell(SimpleNamespace(stage="fetching tiny", done=10, total=None))
        tell(SimpleNamespace(stage="fetching tiny", done=20, total=20))
    assert capsys.readouterr().out == ""


def test_a_failure_under_the_bar_passes_through(capsys):
    with pytest.raises(InputError, match="stop"), show.progress(1):
        raise InputError("stop")
    assert capsys.readouterr().out == ""


# ---- answers --------------------------------------------------------------------------------------------


def test_one_picture_is_answered_by_its_path(capsys, tmp_path):
    show.finished(gallery_of(tmp_path, "a.png"), as_json=False)
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}\n"


def test_several_pictures_are_answered_by_their_folder(capsys, tmp_path):
    show.finished(gallery_of(tmp_path, "a.png", "b.png"), as_json=False)
    assert capsys.readouterr().out == f"{tmp_path} (2 pictures)\n"


@pytest.mark.parametrize("sheet", [None, "contact-sheet.png"])
def test_a_finished_run_as_json(capsys, tmp_path, sheet):
    show.finished(gallery_of(tmp_path, "a.png", "b.png", sheet=sheet), as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["folder"] == str(tmp_path)
    assert answer["run"] == str(tmp_path / "run.json")
    assert answer["contact_sheet"] == (str(tmp_path / sheet) if sheet else None)
    assert [image["file"] for image in answer["images"]] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    given = {"row": 1, "seed": 8, "size": [8, 8], **FIELDS}
    assert answer["images"][1] == {"file": str(tmp_path / "b.png"), **given, "scores": {}, "search": None}


ASKED = [Request("a cat", 7), Request("a dog", 8)]
WRITTEN = [Rewrite("a tabby cat on a sofa"), Rewrite("a dog", reason="the answer was too long")]


def test_rewrites_are_lines_and_reasons_go_to_stderr(capsys):
    show.rewrites(ASKED, WRITTEN, as_json=False)
    assert capsys.readouterr() == ("a tabby cat on a sofa\na dog\n", "prompt kept: the answer was too long\n")


def test_rewrites_as_json_are_an_object_a_line(capsys):
    show.rewrites(ASKED, WRITTEN, as_json=True)
    out, err = capsys.readouterr()
    assert [json.loads(line) for line in out.splitlines()] == [
        {"prompt": "a cat", "seed": 7, "text": "a tabby cat on a sofa", "reason": ""},
        {"prompt": "a dog", "seed": 8, "text": "a dog", "reason": "the answer was too long"},
    ]
    assert err == ""


def test_a_rewrite_too_few_is_our_bug():
    with pytest.raises(ValueError, match="shorter"):
        show.rewrites(ASKED, WRITTEN[:1], as_json=True)


RECORD = Record(
    seed=7,
    version="0.1.0",
    recipe={"kind": "generate"},
    prompt="a cat",
    text=None,
    digital_source_type=TRAINED,
    size=(128, 64),
)


def test_a_record_as_json(capsys):
    show.record(Path("a.png"), RECORD, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert answer["file"] == "a.png"
    assert answer["made_by_ai"] is True
    assert (answer["seed"], answer["prompt"], answer["text"]) == (7, "a cat", None)
    assert (answer["size"], answer["recipe"]) == ([128, 64], {"kind": "generate"})


def test_a_record_as_lines(capsys):
    show.record(Path("a.png"), RECORD, as_json=False)
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.replace("made by ai", "ai").splitlines())
    assert lines["file"] == "a.png"
    assert lines["ai"] == "True"
    assert lines["seed"] == "7"
    assert lines["recipe"] == '{"kind": "generate"}'


def test_a_table_is_as_wide_as_it_needs(capsys):
    table = [{"name": "flux", "what": "FLUX.1"}, {"name": "pretrained", "what": ""}]
    show.rows(table, as_json=False)
    assert capsys.readouterr().out == "flux        FLUX.1\npretrained\n"
    show.rows(table, as_json=True)
    assert json.loads(capsys.readouterr().out) == table


def test_an_empty_table(capsys):
    show.rows([], as_json=False)
    assert capsys.readouterr().out == ""
    show.rows([], as_json=True)
    assert json.loads(capsys.readouterr().out) == []


INFO = ScorerInfo(0, 1, is_detector=True, is_held_out=False, licence="MIT", source="here")
SCORED = [
    Row("long/" * 40 + "a.png", "a cat", {"real": Score(0.25), "[bold]odd": Score(1.5)}),
    Row("[red]b.png", None, {"real": Score(0.75), "[bold]odd": Score(None, "it broke")}),
    Row("c.png", None, reason="the file is empty"),
]
METRICS = {"real": Metric(0.5, 0.25, 0.75, 2), "[bold]odd": Metric(1.5, math.nan, math.nan, 1, 1)}
INFOS = {"real": INFO, "[bold]odd": replace(INFO, is_held_out=True)}


def test_what_several_scorers_are_not_good_for_is_said_once(capsys):
    blind = replace(INFO, caution="sees nothing")
    show.cautions({"a": blind, "b": INFO, "c": blind})
    out, err = capsys.readouterr()
    assert (out, err) == ("", "a, c: sees nothing\n")


def shown(capsys, *, as_json=False, as_csv=False):
    show.scores(SCORED, METRICS, INFOS, as_json=as_json, as_csv=as_csv)
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_scores_are_a_table_that_is_cut_nowhere(capsys):
    lines = [line.replace("│", "|") for line in shown(capsys).splitlines()]
    cells = [[cell.strip(" ┃|") for cell in line.strip("┃|").split("|")] for line in lines if "|" in line]
    assert cells[:3] == [
        ["long/" * 40 + "a.png", "0.2500", "1.5000"],
        ["[red]b.png", "0.7500", "-"],
        ["c.png", "-", "-"],
    ]
    assert cells[3:] == [["mean", "0.5000", "1.5000"], ["95 %", "0.2500 to 0.7500", "-"], ["scored", "2", "1"]]
    head = "\n".join(lines[:3])
    assert "[bold]odd" in head
    assert "(held out)" in head


def test_scores_as_json_and_csv(capsys):
    answer = json.loads(shown(capsys, as_json=True))
    assert [image["file"] for image in answer["images"]] == [row.file for row in SCORED]
    assert answer["scorers"]["[bold]odd"]["low"] is None
    text = shown(capsys, as_csv=True)
    assert text.splitlines()[0] == "file,prompt,real,[bold]odd,reason"
    assert text.splitlines()[2] == "[red]b.png,,0.75,,[bold]odd: it broke"


def test_what_is_left_out_is_listed_and_counted_on_stderr(capsys):
    show.unscored(SCORED)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "unreadable: c.png: the file is empty",
        "unscored: [red]b.png: [bold]odd: it broke",
        "1 of 3 could not be read",
    ]


def test_a_reason_that_pictures_share_is_said_once(capsys):
    show.unscored([Row(f"{number}.png", None, {"fit": Score(None, "no prompt")}) for number in range(3)])
    assert capsys.readouterr().err.splitlines() == ["unscored: 0.png and 2 more: fit: no prompt"]


def test_where_nothing_is_left_out_nothing_is_said(capsys):
    show.unscored(SCORED[:1])
    assert capsys.readouterr() == ("", "")


FOUND = [
    Finding("torch", is_good=True, is_needed=True, detail="2.9"),
    Finding("disk", is_good=False, is_needed=True, detail="1 GB free", mend="free some space"),
    Finding("peft", is_good=False, is_needed=False, detail="not installed", mend="pip install peft"),
]


def test_findings_tell_what_is_missing_from_what_could_be_there(capsys):
    show.findings(FOUND, as_json=False)
    good, missing, other = capsys.readouterr().out.splitlines()
    assert good.split() == ["ok", "torch", "2.9"]
    assert missing.startswith("missing  disk")
    assert missing.endswith("1 GB free  -> free some space")
    assert other.startswith("-        peft")


def test_findings_as_json(capsys):
    show.findings(FOUND, as_json=True)
    answer = json.loads(capsys.readouterr().out)
    assert [finding["what"] for finding in answer] == ["torch", "disk", "peft"]
    assert answer[1] == {
        "what": "disk",
        "is_good": False,
        "is_needed": True,
        "detail": "1 GB free",
        "mend": "free some space",
    }
