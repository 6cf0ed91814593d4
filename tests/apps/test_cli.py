"""The command line as a person types it: answers, one-line errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from realgen.apps.cli import split_words


def realgen(*words, cwd, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "realgen.apps.cli", *map(str, words)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_words_and_overrides_are_told_apart():
    words = ["a cat", "generator.options.steps=3", "x = y is a prompt", "machine.batch=2"]
    assert split_words(words) == (
        ["a cat", "x = y is a prompt"],
        ["generator.options.steps=3", "machine.batch=2"],
    )


def test_generate_writes_pictures_a_sheet_and_a_record(draw, tmp_path):
    code, out, _ = draw("a cat", "-n", "3", "--seed", "7", "--out", "here", "--json")
    answer = json.loads(out)
    assert code == 0
    assert [image["seed"] for image in answer["images"]] == [7, 8, 9]
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == [
        "0001.png",
        "0002.png",
        "0003.png",
        "contact-sheet.png",
        "run.json",
    ]


def test_rerunning_into_a_folder_overwrites_nothing(draw, tmp_path):
    draw("a cat", "--out", "here")
    before = (tmp_path / "here/0001.png").read_bytes()
    code, _, _ = draw("a dog", "--out", "here")
    assert code == 0
    assert (tmp_path / "here/0001.png").read_bytes() == before
    assert (tmp_path / "here/0002.png").is_file()


def test_an_image_is_drawn_again_from_its_file(draw, run, tmp_path):
    draw("a cat", "--seed", "5", "--out", "here")
    code, out, _ = run("inspect", "here/0001.png", "--json")
    assert code == 0
    assert json.loads(out)["made_by_ai"] is True
    assert json.loads(out)["prompt"] == "a cat"
    code, _, _ = run("generate", "--from", "here/0001.png", "--out", "again")
    assert code == 0
    from PIL import Image

    first, second = Image.open("here/0001.png"), Image.open("again/0001.png")
    assert first.tobytes() == second.tobytes()


def test_a_file_of_prompts_is_resumed(draw, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,seed,name\na cat,1,cat\na dog,2,dog\n")
    assert draw("--prompts", "prompts.csv", "--out", "here")[0] == 0
    (tmp_path / "here/dog.png").unlink()
    cat = (tmp_path / "here/cat.png").stat().st_mtime_ns
    assert draw("--prompts", "prompts.csv", "--resume", "here")[0] == 0
    assert (tmp_path / "here/dog.png").is_file()
    assert (tmp_path / "here/cat.png").stat().st_mtime_ns == cat


def test_the_prompt_may_stay_private(draw, run):
    draw("a secret", "--no-record", "--out", "here")
    assert b"secret" not in Path("here/0001.png").read_bytes() + Path("here/run.json").read_bytes()
    code, out, _ = run("inspect", "here/0001.png", "--json")
    assert json.loads(out)["made_by_ai"] is True
    code, _, err = run("generate", "--from", "here/0001.png")
    assert code == 2
    assert "does not record its prompt" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generate", ""], "empty"),
        (["generate", "x" * 100_000], "2,000"),
        (["generate", "a cat", "--seed", "-1"], "seed"),
        (["generate", "a cat", "--steps", "0"], "steps"),
        (["generate", "a cat", "--size", "130x77"], "multiples of 16"),
        (["generate", "a cat", "--size", "big"], "size"),
        (["generate", "a cat", "--recipe", "tinny"], "tiny"),
        (["generate", "a cat", "generater.name=flux"], "generator"),
        (["generate", "a cat", "generator.name=flax"], "flux"),
        (["generate", "a cat", "--steps", "3", "generator.options.steps=4"], "given twice"),
        (["generate", "a cat", "--recipe", "autoencoder-tiny"], "kind"),
        (["generate", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["generate", "a cat", "generator.card=null", "generator.options.model=./nowhere"], "no model at"),
        (["generate", "a cat", "--format", "gif"], "gif"),
        (["inspect", "nowhere.png"], "nowhere.png"),
        (["train"], "no recipe"),
        (["train", "tiny"], "kind"),
        (["train", "--resume", "nowhere"], "no run"),
        (["list", "kitchens"], "kitchens"),
        (["fetch", "flux9"], "flux9"),
        (["rewrite", "a cat", "--recipe", "tiny"], "no prompt optimiser"),
        (["generate", "a cat", "--best-of", "4", "reward=null"], "no reward"),
        (["generate", "--from", "x.png", "--best-of", "4"], "--best-of beside --from"),
        (["score"], "no picture"),
        (["score", "nowhere.png", "scorers=null"], "has no scorers"),
        (["score", "nowhere.png", "--json", "--csv"], "give one of them"),
        (["score", "nowhere.png", "--recipe", "flow-tiny"], "kind"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, words, said):
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert said in lines[0]


def test_a_file_with_nuls_or_another_encoding(run, tmp_path):
    (tmp_path / "nul.txt").write_bytes(b"a cat\x00\n")
    (tmp_path / "latin.txt").write_bytes("un caf\xe9\n".encode("latin-1"))
    for name in ("nul.txt", "latin.txt"):
        code, _, err = run("generate", "--prompts", name)
        assert code == 2
        assert name in err


def test_rewriting_without_a_model(run):
    code, out, _ = run("rewrite", "a cat", "--recipe", "tiny", "prompt_optimizer={name: template}", "--json")
    assert code == 0
    assert "cat" in json.loads(out)["text"]


def test_listing_and_checking(run):
    for what in ("recipes", "profiles", "cards", "generators", "prompt_optimizers", "scorers"):
        code, out, _ = run("list", what, "--json")
        assert code == 0
        assert all(row["what"] for row in json.loads(out))
    code, out, _ = run("check", "tiny", "generator.options.steps=8")
    assert code == 0
    assert "steps: 8" in out


def test_the_doctor_finds_nothing_missing(run):
    code, out, _ = run("doctor", "--json")
    assert code == 0
    found = {finding["what"]: finding for finding in json.loads(out)}
    assert found["model tiny"]["is_good"]
    assert found["torch"]["is_good"]


# ---- the best of several --------------------------------------------------------------------------------

BARE = ("scorers=null", "reward=null")
RED = "scorers.red={name: shade}"
BY_RED = (*BARE, RED, "reward.weights.red=1")


def shades_of(draw, seeds):
    """The mean red of the pictures of these seeds, each drawn alone."""
    from PIL import Image, ImageStat

    draw("a cat", "-n", len(seeds), "--seed", seeds[0], "--out", "alone")
    return {seed: ImageStat.Stat(Image.open(f"alone/{i:04d}.png")).mean[0] / 255 for i, seed in enumerate(seeds, 1)}


def test_the_best_of_every_three_is_kept_and_run_json_says_why(draw, shade, tmp_path):
    alone = shades_of(draw, range(7, 13))
    code, out, err = draw("a cat", "-n", 2, "--seed", 7, "--best-of", 3, *BY_RED, "--out", "here", "--json")
    assert code == 0
    images = json.loads(out)["images"]
    best = [max(seeds, key=alone.get) for seeds in ((7, 8, 9), (10, 11, 12))]
    assert [image["seed"] for image in images] == best
    assert [image["search"]["asked_seed"] for image in images] == [7, 10]
    assert [image["scores"]["red"]["value"] for image in images] == pytest.approx([alone[seed] for seed in best])
    candidates = images[1]["search"]["candidates"]
    assert [candidate["seed"] for candidate in candidates] == [10, 11, 12]
    assert [candidate["total"] for candidate in candidates] == pytest.approx([alone[seed] for seed in (10, 11, 12)])
    assert "the highest of 3" in images[0]["search"]["why"]
    assert f"(seed {best[0]}: total " in err
    assert json.loads((tmp_path / "here/run.json").read_text())["images"][0]["search"] == images[0]["search"]
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == [
        "0001.png",
        "0002.png",
        "contact-sheet.png",
        "run.json",
    ]


def test_the_chosen_picture_is_that_of_its_own_seed(draw, run, shade):
    draw("a cat", "--best-of", 3, *BY_RED, "--out", "here")
    assert run("generate", "--from", "here/0001.png", "--out", "again")[0] == 0
    from PIL import Image

    assert Image.open("here/0001.png").tobytes() == Image.open("again/0001.png").tobytes()


def test_scorers_outside_of_the_reward_look_at_the_chosen_alone(draw, shade):
    code, out, _ = draw(
        "a cat", "--best-of", 3, *BY_RED, "scorers.other={name: shade, options: {channel: 1}}", "--json"
    )
    assert code == 0
    assert set(json.loads(out)["images"][0]["scores"]) == {"red", "other"}
    assert [(channel, len(prompts)) for channel, prompts in shade.asked] == [(0, 3), (1, 1)]
    assert shade.asked[0][1] == ["a cat"] * 3


def test_a_held_out_scorer_does_not_choose(draw, shade):
    held_out = "scorers.red={name: shade, options: {is_held_out: true}}"
    code, _, err = draw("a cat", "--best-of", 3, held_out, "reward.weights.red=1")
    assert code == 2
    assert "'red' is held out" in err


def test_a_search_is_resumed(draw, shade, tmp_path):
    words = ("a cat", "-n", 3, "--best-of", 2, *BY_RED)
    draw(*words, "--out", "here")
    before = {file.name: file.read_bytes() for file in (tmp_path / "here").glob("0*.png")}
    (tmp_path / "here/0002.png").unlink()
    shade.asked.clear()
    assert draw(*words, "--resume", "here")[0] == 0
    assert [len(prompts) for _, prompts in shade.asked] == [2]
    entries = json.loads((tmp_path / "here/run.json").read_text())["images"]
    assert sorted(entry["search"]["asked_seed"] for entry in entries) == [0, 2, 4]
    drawn = {file.read_bytes() for file in (tmp_path / "here").glob("0*.png")}
    assert len(drawn & set(before.values())) == 3


def test_interrupting_keeps_what_is_finished(draw, monkeypatch, tmp_path):
    from realgen.gallery import Gallery

    original, taken = Gallery.add, []

    def add(self, sample, **kwargs):
        if taken:
            raise KeyboardInterrupt
        taken.append(original(self, sample, **kwargs))
        return taken[0]

    monkeypatch.setattr(Gallery, "add", add)
    code, _, err = draw("a cat", "-n", "3", "--out", "here")
    assert code == 130
    assert "--resume here" in err
    assert (tmp_path / "here/0001.png").is_file()
    assert len(json.loads((tmp_path / "here/run.json").read_text())["images"]) == 1


def test_as_a_process(tmp_path):
    done = realgen("generate", "a cat", "--steps", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr
