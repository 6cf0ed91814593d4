"""Pictures drawn again, and runs that go on: by what was recorded, and by nothing else."""

import pytest
import torch


def test_a_resumed_run_keeps_the_recipe_that_it_began_with(draw, run, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,seed,name\na cat,1,cat\na dog,2,dog\n")
    draw("--prompts", "prompts.csv", "--out", "here", steps=3)
    dog = (tmp_path / "here/dog.png").read_bytes()
    (tmp_path / "here/dog.png").unlink()
    words = ("generate", "--prompts", "prompts.csv", "--resume", "here")
    code, _, err = draw("--prompts", "prompts.csv", "--resume", "here", steps=2)
    assert code == 2
    assert "here was drawn with another generator" in err
    assert not (tmp_path / "here/dog.png").exists()
    assert run(*words, "machine.batch=1")[0] == 0
    assert (tmp_path / "here/dog.png").read_bytes() == dog
    assert run(*words, "--recipe", "tiny")[0] == 2
    for more in (("--out", "there"), ("--format", "jpg"), ("--no-record",)):
        code, _, err = run(*words, *more)
        assert code == 2
        assert f"{more[0]} beside --resume" in err


def test_a_search_goes_on_with_as_many_candidates(draw, shade, tmp_path):
    rewarded = ("scorers.red={name: shade}", "reward.weights.red=1")
    draw("a cat", "-n", 2, "--best-of", 2, *rewarded, "--out", "here")
    (tmp_path / "here/0002.png").unlink()
    for other in ((), ("--best-of", 3)):
        code, _, err = draw("a cat", "-n", 2, *other, *rewarded, "--resume", "here")
        assert code == 2
        assert "another --best-of (give --best-of 2" in err
    assert draw("a cat", "-n", 2, "--best-of", 2, *rewarded, "--resume", "here")[0] == 0


def test_a_search_that_only_its_images_speak_of_goes_on_too(draw, shade, tmp_path):
    words = ("a cat", "-n", 2, "--best-of", 2, "scorers.red={name: shade}", "reward.weights.red=1")
    draw(*words, "--out", "here")
    run_file = tmp_path / "here/run.json"
    run_file.write_text(run_file.read_text().replace('"best_of": 2', '"best_of": null'))
    (tmp_path / "here/0002.png").unlink()
    assert draw(*words, "--resume", "here")[0] == 0
    assert (tmp_path / "here/0003.png").exists() or (tmp_path / "here/0002.png").exists()


def test_a_run_that_goes_on_with_other_seeds_says_what_it_holds_besides(draw):
    draw("a cat", "-n", 2, "--out", "here")
    code, _, err = draw("a cat", "-n", 3, "--resume", "here")
    assert (code, "other prompts" in err) == (0, False)
    code, _, err = draw("a cat", "-n", 2, "--seed", 9, "--resume", "here")
    assert code == 0
    assert "3 of its pictures answered other prompts, seeds or rows" in err


def test_paths_of_options_may_be_in_the_home_folder(draw, run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a cat\n")
    assert draw("--prompts=~/prompts.txt", "--out=~/there")[0] == 0
    assert (tmp_path / "there/0001.png").is_file()
    assert run("generate", "a=~b", "--resume=~/there")[0] == 2  # a setting is not an option


def test_a_run_goes_on_with_the_prompts_that_it_records(draw, run, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,seed,size,name\na cat,1,32x48,cat\na dog,2,,dog\n")
    draw("--prompts", "prompts.csv", "--out", "here")
    before = [(tmp_path / f"here/{name}.png").read_bytes() for name in ("cat", "dog")]
    (tmp_path / "here/cat.png").unlink()
    assert run("generate", "--resume", "here")[0] == 0
    assert [(tmp_path / f"here/{name}.png").read_bytes() for name in ("cat", "dog")] == before
    code, _, err = run("generate", "--resume", "here", "--seed", 3)
    assert code == 2
    assert "--seed beside --resume" in err


def test_a_search_goes_on_by_itself(draw, shade, run, tmp_path):
    draw("a cat", "-n", 2, "--best-of", 2, "scorers.red={name: shade}", "reward.weights.red=1", "--out", "here")
    before = (tmp_path / "here/0002.png").read_bytes()
    (tmp_path / "here/0002.png").unlink()
    assert run("generate", "--resume", "here")[0] == 0
    assert (tmp_path / "here/0002.png").read_bytes() == before


def test_a_run_that_withholds_its_prompts_asks_for_them(draw, run):
    draw("a cat", "--no-record", "--out", "here")
    code, _, err = run("generate", "--resume", "here")
    assert code == 2
    assert "does not record its prompts" in err


@pytest.mark.parametrize(
    "more",
    [("a dog",), ("-n", 2), ("--seed", 9), ("--prompts", "p.csv"), ("--resume", "here"), ("--steps", 2), ("--raw",)],
)
def test_what_an_image_records_is_drawn_and_nothing_else(draw, run, more):
    draw("a cat", "--out", "here")
    code, _, err = run("generate", "--from", "here/0001.png", "--out", "again", *more)
    assert code == (0 if more == ("--raw",) else 2), err  # the fixture draws --raw itself
    assert code == 0 or "--from" in err


def test_an_image_from_another_machine_is_drawn_on_this_one(draw, run):
    draw("a cat", "machine.batch=7", "--out", "here")
    assert run("generate", "--from", "here/0001.png", "--out", "again", "machine.batch=1")[0] == 0


def test_a_contact_sheet_is_not_drawn_again(draw, run):
    draw("a cat", "--out", "here")
    code, _, err = run("generate", "--from", "here/contact-sheet.png")
    assert code == 2
    assert "contact sheet" in err


def test_a_run_that_draws_nothing_leaves_nothing(draw, tmp_path):
    code, _, err = draw("a cat", "generator.options.stepz=3", "--out", "here")
    assert code == 2
    assert "stepz" in err
    assert not (tmp_path / "here").exists()


def test_a_size_that_cannot_be_drawn_keeps_the_pictures_before_it_and_their_sheet(draw, tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt,seed,size\na cat,1,32x32\na dog,2,33x33\n")
    code, _, err = draw("--prompts", "prompts.csv", "--out", "here")
    assert code == 2
    assert "33x33" in err
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["0001.png", "contact-sheet.png", "run.json"]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_is_one_line_and_keeps_what_is_drawn(draw, monkeypatch, tmp_path, kind):
    from realgen.generators.flux import FluxBackbone

    decode, calls = FluxBackbone.decode, []

    def ends(self, x, size):
        calls.append(size)
        if len(calls) > 1:
            raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return decode(self, x, size)

    monkeypatch.setattr(FluxBackbone, "decode", ends)
    code, _, err = draw("a cat", "-n", 2, "machine.batch=1", "--out", "here")
    assert code == 2
    assert "error: out of memory" in err
    assert "machine.batch=1" in err
    assert sorted(file.name for file in (tmp_path / "here").iterdir()) == ["0001.png", "contact-sheet.png", "run.json"]
