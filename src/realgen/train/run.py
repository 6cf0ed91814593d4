"""The run folder: the merged recipe, `metrics.jsonl`, atomic checkpoints, exact resume, kept snapshots.

    RUN/recipe.yaml            what the run is, merged and complete
    RUN/metrics.jsonl          one JSON object a line
    RUN/checkpoints/0001200/   state.pt and a manifest with its SHA-256, written last
    RUN/snapshots/025/         EMA weights at 25 % of the steps, in the format that the trainer saves

A folder is staged under another name and renamed when it is whole, so that a killed process leaves the last
good checkpoint. Knows nothing of what is trained.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from realgen import __version__
from realgen.core import config
from realgen.core.errors import InputError, OutputError
from realgen.core.types import Origin
from realgen.provenance import mark
from realgen.train.world import put


class Trainer(Protocol):
    """What a run drives: one optimiser step at a time, with all that a resume needs in its state."""

    def step(self, index: int) -> Mapping[str, float | Tensor]:
        """Take optimiser step `index` (from 0) and return its metrics; tensors are read at the next log only."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that differs from a fresh trainer."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        ...

    def evaluate(self) -> Mapping[str, float]:
        """Figures on data that is not trained on."""
        ...

    def preview(self) -> list[Image.Image]:
        """Pictures to look at; empty where there is nothing to see."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights that a user loads (EMA) into `folder`."""
        ...


class Run:
    """One run folder."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        """Of several processes only one `writes`; for the others the folder is there to be read."""
        self.folder, self.writes = folder, writes

    @classmethod
    def create(cls, folder: Path, recipe: Mapping[str, Any], *, writes: bool = True) -> "Run":
        """A new run; a folder that already holds one is refused."""
        if not writes:
            return cls(folder, writes=False)
        cls.check_free(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / "recipe.yaml", yaml.safe_dump(dict(recipe), sort_keys=False))
        except OSError as error:
            raise OutputError(f"cannot write the run folder {folder}: {error}", hint="choose another --out") from error
        return cls(folder)

    @staticmethod
    def check_free(folder: Path) -> None:
        """Raise InputError where `folder` already holds a run."""
        if (folder / "recipe.yaml").exists():
            raise InputError(f"{folder} already holds a run", hint=f"realgen train --resume {folder}, or another --out")

    @classmethod
    def open(cls, folder: Path, *, writes: bool = True) -> "Run":
        """A run that exists."""
        if not (folder / "recipe.yaml").is_file():
            raise InputError(f"{folder} holds no run (no recipe.yaml)", hint="give the folder that realgen train made")
        return cls(folder, writes=writes)

    @property
    def recipe(self) -> dict[str, Any]:
        """The merged recipe that the run was started with."""
        return config.read_layer("recipes", str(self.folder / "recipe.yaml"))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; InputError where another process does. The lock goes with the process."""
        if not self.writes or sys.platform == "win32":
            yield
            return
        import fcntl

        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InputError(f"another process trains in {self.folder}", hint="wait for it, or stop it") from error
            yield

    def note(self, name: str, values: Any) -> None:
        """Write `values` as the JSON file `name`."""
        if self.writes:
            with _writing(self.folder):
                _write(self.folder / name, json.dumps(values, indent=1, ensure_ascii=False) + "\n")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`."""
        if not self.writes:
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = json.dumps({"step": step, "time": round(time.time(), 1), **finite})
        with _writing(self.folder), (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def save(self, step: int, state: Mapping[str, Any], *, keep: int = 2) -> None:
        """Write a checkpoint atomically and drop all but the newest `keep`."""
        if not self.writes:
            return
        root = self.folder / "checkpoints"
        staged, final = root / f".{step:07d}", root / f"{step:07d}"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir(parents=True)
            torch.save(dict(state), staged / "state.pt")
            manifest = {"step": step, "files": {"state.pt": _sha256(staged / "state.pt")}}
            (staged / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
            for file in staged.iterdir():
                _to_disk(file)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(staged, final)
        except (OSError, RuntimeError) as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise OutputError(
                f"cannot write a checkpoint into {root}: {error}",
                hint=f"the last one is whole: free some space, then realgen train --resume {self.folder}",
            ) from error
        for old in sorted(root.glob("[0-9]*"))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[int, dict[str, Any]] | None:
        """Step and state of the newest whole checkpoint, or None for a run without one.

        InputError where there are some and none is whole: that run did not begin just now.
        """
        folders = sorted((self.folder / "checkpoints").glob("[0-9]*"), reverse=True)
        for folder in folders:
            try:
                manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
                is_whole = _sha256(folder / "state.pt") == manifest["files"]["state.pt"]
            except (OSError, ValueError, KeyError):  # a kill while it was being removed
                continue
            if is_whole:
                return int(manifest["step"]), torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
        if folders:
            raise InputError(
                f"no checkpoint in {self.folder / 'checkpoints'} is whole",
                hint="put one back, or remove that folder to begin at step 0",
            )
        return None

    def is_best(self, step: int, value: float) -> bool:
        """Whether `value` is above the best before `step`, as `best.json` has it."""
        file = self.folder / "best.json"
        if not file.is_file():
            return True
        held = json.loads(file.read_text(encoding="utf-8"))
        return bool(held["step"] >= step or value > held["value"])

    def note_best(self, step: int, name: str, value: float) -> None:
        """Write down that RUN/best is of `step`."""
        self.note("best.json", {"step": step, "figure": name, "value": value})

    def save_preview(self, step: int, images: Sequence[Image.Image]) -> None:
        """Write pictures of one size side by side as `samples/STEP.png`, eight a row, marked as made by AI."""
        if not images or not self.writes:
            return
        width, height = images[0].size
        sheet = Image.new("RGB", (width * min(8, len(images)), height * -(-len(images) // 8)))
        for place, image in enumerate(images):
            sheet.paste(image, (place % 8 * width, place // 8 * height))
        with _writing(self.folder):
            (self.folder / "samples").mkdir(exist_ok=True)
        recipe = self.recipe
        origin = Origin(int(recipe.get("seed", 0)), __version__, recipe)
        mark(sheet, self.folder / "samples" / f"{step:07d}.png", origin=origin, replace=True)

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that a killed process took after its last checkpoint."""
        file = self.folder / "metrics.jsonl"
        if not file.exists() or not self.writes:
            return
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        with _writing(self.folder):
            _write(file, "".join(line + "\n" for line in lines))


def drive(
    run: Run,
    trainer: Trainer,
    *,
    steps: int,
    log_every: int = 20,
    save_minutes: float = 4.0,
    evaluate_every: int = 0,
    snapshots: tuple[float, ...] = (),
    period: int = 1,
    best: str = "",
    evaluates_first: bool = False,
    agree: Callable[[bool], bool] = bool,
) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Take the run from its last checkpoint to `steps`, yielding (steps taken, metrics) at every log.

    Evaluations fall on the first log from every multiple of `evaluate_every` on, checkpoints on whole periods; with
    `evaluates_first` there is one before the first step too, which others are held against. What was best by the
    evaluation's figure `best` is exported to RUN/best. `agree` gives one process's answer to all.
    """
    start = 0
    if (loaded := run.load()) is not None:
        start, state = loaded
        trainer.load_state_dict(state)
    run.forget_after(start or -1)
    if evaluates_first and evaluate_every and start == 0:
        metrics = _evaluated(run, trainer, 0, best=best, agree=agree)
        run.log(0, metrics)
        yield 0, metrics
    due = {round(share * steps): f"{round(share * 100):03d}" for share in snapshots}
    saved = time.monotonic()
    total: dict[str, float | Tensor] = {}
    for done in range(start + 1, steps + 1):
        for name, value in trainer.step(done - 1).items():
            total[name] = total.get(name, 0.0) + value
        if done % log_every == 0 or done == steps:
            metrics = {name: float(value) / (((done - 1) % log_every) + 1) for name, value in total.items()}
            total = {}
            if evaluate_every and (done == steps or done // evaluate_every > (done - log_every) // evaluate_every):
                metrics |= _evaluated(run, trainer, done, best=best, agree=agree)
            run.log(done, metrics)
            yield done, metrics
        if done in due:
            trainer.export(run.folder / "snapshots" / due[done])
        is_due = done == steps or (time.monotonic() - saved > save_minutes * 60 and done % log_every == 0)
        if done % period == 0 and agree(is_due):
            run.save(done, trainer.state_dict())
            saved = time.monotonic()
    trainer.export(run.folder / "model")


def _evaluated(
    run: Run, trainer: Trainer, done: int, *, best: str, agree: Callable[[bool], bool]
) -> Mapping[str, float]:
    figures = trainer.evaluate()
    run.save_preview(done, trainer.preview())
    if agree(best in figures and run.is_best(done, figures[best])):
        trainer.export(run.folder / "best")
        run.note_best(done, best, figures[best])
    return figures


class Ema:
    """Exponential moving average of what is trained of a module; the decay warms up as (1 + n) / (10 + n)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.shadow = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad
        }

    def update(self, module: nn.Module) -> None:
        """Move one step towards the module's present parameters."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in self.shadow:
                    self.shadow[name].lerp_(parameter.detach(), 1 - decay)

    def between(self, start: Mapping[str, Tensor], *, share: float) -> "Ema":
        """An average of its own that lies `share` of the way from the parameters `start` to this one."""
        found = copy(self)
        found.shadow = {name: start[name].detach().lerp(value, share) for name, value in self.shadow.items()}
        return found

    def swap(self, module: nn.Module) -> None:
        """Exchange the module's parameters with the average; call it again to undo."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in self.shadow:
                    held: Tensor = parameter.detach().clone()
                    parameter.copy_(self.shadow[name])
                    self.shadow[name] = held

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The module with its average within, and as it was after, whatever happens."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    def state_dict(self) -> dict[str, Any]:
        """The average and its age."""
        return {"num_updates": self.num_updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.num_updates = state["num_updates"]
        for name, value in state["shadow"].items():
            put(self.shadow[name], value)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """A disk that refuses becomes one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write into {folder}: {error}",
            hint=f"the last checkpoint is whole: free some space, then realgen train --resume {folder}",
        ) from error


def _write(file: Path, text: str) -> None:
    """Write a text whole or not at all."""
    staged = file.with_name(f".{file.name}.staged")
    staged.write_text(text, encoding="utf-8")
    os.replace(staged, file)


def warmup_cosine(step: int, *, steps: int, warmup: int, hold: float = 0.0, floor: float = 0.0) -> float:
    """Share of the learning rate at `step`: linear rise over `warmup` steps, then a half cosine down to `floor`.

    `hold` is the share of the steps after the rise that stays at the top: a run that is to be continued later
    loses nothing by it, since only its tail comes down.
    """
    if step < warmup:
        return (step + 1) / warmup
    start = warmup + hold * (steps - warmup)
    progress = max(0.0, step - start) / max(1.0, steps - start)
    return floor + (1 - floor) * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))


def _to_disk(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError):  # a line that a killed process left half-written
        return 2**63
