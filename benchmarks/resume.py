"""Kills GRPO runs at random moments, resumes them, and compares all that they leave with an uncut run's, byte by byte.

    python benchmarks/resume.py [--kills 10] [--recipe flow-grpo-...] [KEY=VALUE ...]

Without a recipe it post-trains the embedded generator a few steps under a small untrained classifier. Every kill is
SIGKILL, at a random moment after the first step of each start. Exit code 1 where anything differs.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from untrained import save_classifier

WALL_TIMES = ("time", "seconds_")


def main() -> None:
    """Run, kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = given.recipe or str(random_recipe(Path(folder)))
        report = compare(recipe, Path(folder), kills=given.kills, seed=given.seed, overrides=given.overrides)
    print(json.dumps(report, indent=1))
    sys.exit(bool(report["differences"]))


def compare(recipe: str, folder: Path, *, kills: int, seed: int, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """One run without a cut and one with `kills` kills; what differs between them, and when they were killed."""
    whole, cut = folder / "whole", folder / "cut"
    start = [recipe, "save_minutes=1e-9", *overrides, "--out"]
    realgen("train", *start, str(whole))
    times = [line["time"] for line in read_metrics(whole) if line["step"]]
    moments = random.Random(seed)
    waits: list[float] = []
    while len(waits) < kills and not is_finished(cut):
        waits.append(moments.uniform(0, 1.5 * (times[-1] - times[0]) / kills))
        kill_after(waits[-1], cut, "train", *(["--resume"] if is_begun(cut) else start), str(cut))
    if not is_finished(cut):
        realgen("train", *(["--resume"] if is_begun(cut) else start), str(cut))
    return {
        "steps": len(times),
        "seconds_of_the_uncut_run_from_its_first_step": round(times[-1] - times[0], 1),
        "killed_seconds_after_a_step": [round(wait, 1) for wait in waits],
        "differences": differences(whole, cut),
    }


def differences(one: Path, other: Path) -> list[str]:
    """What is not equal: metrics but for wall times, every tensor of the last checkpoint, the exported files."""
    found = [] if metrics(one) == metrics(other) else ["metrics.jsonl"]
    states = [last_state(folder) for folder in (one, other)]
    found += [f"checkpoint: {path}" for path in unequal(*states)]
    for file in sorted((one / "model").rglob("*.safetensors")):
        twin = other / file.relative_to(one)
        if not twin.is_file() or twin.read_bytes() != file.read_bytes():
            found.append(str(file.relative_to(one)))
    return found


def metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics without wall times."""
    lines = read_metrics(folder)
    return [{key: value for key, value in line.items() if not key.startswith(WALL_TIMES)} for line in lines]


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def last_state(folder: Path) -> Any:
    """The state in the last checkpoint."""
    last = sorted((folder / "checkpoints").glob("[0-9]*"))[-1]
    return torch.load(last / "state.pt", weights_only=True)


def unequal(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths of leaves that differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in unequal(one[key], other[key], f"{path}/{key}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [path]
    return [] if one == other else [path]


def realgen(*words: str) -> None:
    """Run the command line to its end; its words are shown where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "realgen.apps.cli", *words], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)


def kill_after(seconds: float, folder: Path, *words: str) -> None:
    """Run the command line and kill it by SIGKILL so many seconds after its next step in `folder`, if it still runs."""
    file = folder / "metrics.jsonl"
    before = file.stat().st_mtime_ns if file.exists() else 0
    process = subprocess.Popen(
        [sys.executable, "-m", "realgen.apps.cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and not (file.exists() and file.stat().st_mtime_ns > before and file.stat().st_size):
        time.sleep(0.02)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def is_begun(folder: Path) -> bool:
    """Whether there is a run to resume."""
    return (folder / "recipe.yaml").is_file()


def is_finished(folder: Path) -> bool:
    """Whether the run exported its model."""
    return any((folder / "model").rglob("*.safetensors"))


def random_recipe(folder: Path) -> Path:
    """A GRPO of the embedded generator under an untrained classifier: seconds a step, of no use but this one."""
    save_classifier(folder / "classifier", seed=0)
    recipe = {
        "kind": "flow_grpo",
        "generator": {"name": "flux", "card": "tiny", "options": {"steps": 4}},
        "scorers": {
            "real": {"name": "image_classifier", "options": {"model": str(folder / "classifier"), "real_label": "real"}}
        },
        "reward": {"weights": {"real": 1}},
        "prompts": "tiny-train",
        "eval_prompts": str(folder / "eval.txt"),
        "num_prompts": 2,
        "group": 4,
        "updates": 2,
        "window": {"length": 2, "first": 0, "last": 1},
        "clip": 1e-4,
        "steps": 40,
        "learning_rate": 1e-3,
        "lora": {"rank": 4, "alpha": 8},
        "evaluate_every": 10,
        "snapshots": [],
        "machine": {"device": "cpu", "dtype": "float32", "batch": 4, "threads": os.cpu_count()},
    }
    (folder / "eval.txt").write_text("a cat\na red rose\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
