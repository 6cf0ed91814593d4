"""The run folder: atomic checkpoints, exact resume, snapshots, and what a full disk leaves behind."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from realgen import provenance
from realgen.core.errors import ConfigError, InputError, OutputError
from realgen.train.run import Ema, Run, drive, warmup_cosine


class Counter:
    """A trainer whose weights are a random walk that depends on (step) alone."""

    def __init__(self, die_at=None):
        self.weight = torch.zeros(3)
        self.die_at = die_at

    def step(self, index):
        if index == self.die_at:
            raise KeyboardInterrupt
        self.weight = self.weight * 0.9 + torch.randn(3, generator=torch.Generator().manual_seed(index))
        return {"norm": float(self.weight.norm())}

    def state_dict(self):
        return {"weight": self.weight}

    def load_state_dict(self, state):
        self.weight = state["weight"]

    def evaluate(self):
        return {"held_out": float(self.weight.sum())}

    def preview(self):
        return [Image.new("RGB", (4, 4))] * 9

    def export(self, folder):
        folder.mkdir(parents=True)
        torch.save(self.weight, folder / "weight.pt")


def metrics_of(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def go(run, trainer, **kwargs):
    options = {"steps": 20, "log_every": 2, "save_minutes": 0, "evaluate_every": 10, **kwargs}
    return list(drive(run, trainer, **options))


def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    whole = Run.create(tmp_path / "whole", {"a": 1})
    go(whole, Counter())
    cut = Run.create(tmp_path / "cut", {"a": 1})
    for die_at in (3, 7, 13, 19):
        with pytest.raises(KeyboardInterrupt):
            go(cut, Counter(die_at))
    go(cut, Counter())
    assert metrics_of(cut) == metrics_of(whole)
    assert torch.equal(cut.load()[1]["weight"], whole.load()[1]["weight"])
    assert (cut.folder / "model" / "weight.pt").read_bytes() == (whole.folder / "model" / "weight.pt").read_bytes()


def test_evaluations_previews_and_snapshots(tmp_path):
    run = Run.create(tmp_path, {})
    go(run, Counter(), snapshots=(0.1, 0.5))
    assert [line["step"] for line in metrics_of(run) if "held_out" in line] == [10, 20]
    assert Image.open(tmp_path / "samples" / "0000010.png").size == (32, 8)
    assert provenance.read(tmp_path / "samples" / "0000010.png").is_ai
    assert sorted(folder.name for folder in (tmp_path / "snapshots").iterdir()) == ["010", "050"]


@pytest.mark.parametrize(
    ("every", "found"), [(3, [4, 6, 10, 12, 16, 18, 20]), (7, [8, 14, 20]), (1, list(range(2, 21, 2)))]
)
def test_an_evaluation_between_two_logs_waits_for_the_next(tmp_path, every, found):
    run = Run.create(tmp_path, {})
    go(run, Counter(), evaluate_every=every)
    assert [line["step"] for line in metrics_of(run) if "held_out" in line] == found


def test_only_the_newest_checkpoints_stay(tmp_path):
    run = Run.create(tmp_path, {})
    go(run, Counter())
    assert [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())] == ["0000018", "0000020"]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    run = Run.create(tmp_path, {})
    go(run, Counter())
    file = tmp_path / "checkpoints" / "0000020" / "state.pt"
    file.write_bytes(file.read_bytes()[:-10])
    assert run.load()[0] == 18


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path):
    run = Run.create(tmp_path, {})
    go(run, Counter())
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "manifest.json").unlink()
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole"):
        go(run, Counter())
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("text", ["{", "", "[1]", "a: 2024-13-45"])
def test_a_damaged_recipe_is_named(tmp_path, text):
    run = Run.create(tmp_path, {"a": 1})
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        assert run.recipe


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    run = Run.create(tmp_path, {})
    run.save(2, {"weight": torch.ones(1)})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("realgen.train.run.os.replace", full)
    with pytest.raises(OutputError, match="No space left"):
        run.save(4, {"weight": torch.zeros(1)})
    monkeypatch.undo()
    assert run.load()[0] == 2
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["0000002"]


def test_a_folder_holds_one_run(tmp_path):
    Run.create(tmp_path, {"a": 1})
    with pytest.raises(InputError, match="already holds a run"):
        Run.create(tmp_path, {"a": 2})
    assert Run.open(tmp_path).recipe == {"a": 1}
    with pytest.raises(InputError, match="holds no run"):
        Run.open(tmp_path / "empty")


def test_a_half_written_metrics_line_is_dropped(tmp_path):
    run = Run.create(tmp_path, {})
    run.log(2, {"a": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "a"')
    run.forget_after(10)
    assert [line["step"] for line in metrics_of(run)] == [2]


def test_the_average_by_hand():
    """Decay min(0.5, (1 + n) / (10 + n)): after the weight moves 0 -> 1, 1 - 2/11 = 9/11; once more 1 - 2/11 * 3/12."""
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.zero_()
    ema = Ema(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(1)
    ema.update(module)
    assert ema.shadow["weight"].item() == pytest.approx(9 / 11)
    ema.update(module)
    assert ema.shadow["weight"].item() == pytest.approx(1 - 2 / 11 * 3 / 12)
    ema.swap(module)
    assert module.weight.item() == pytest.approx(1 - 2 / 11 * 3 / 12)
    ema.swap(module)
    assert module.weight.item() == 1


def test_the_learning_rate_rises_and_falls():
    shares = [warmup_cosine(step, steps=100, warmup=10, floor=0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[10] == 1
    assert shares[55] == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-6)
    assert shares[99] == pytest.approx(0.1, abs=1e-3)


def test_the_learning_rate_stays_up_while_held():
    shares = [warmup_cosine(step, steps=110, warmup=10, hold=0.5, floor=0.1) for step in range(110)]
    assert shares[10:61] == [1] * 51
    assert shares[85] == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-6)
    assert shares[109] == pytest.approx(0.1, abs=3e-3)
