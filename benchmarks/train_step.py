"""Where the time of a GRPO step goes, on the embedded generator or any recipe of kind flow_grpo.

    python benchmarks/train_step.py [--recipe RECIPE] [--steps 4] [--windows 1 2 4] [KEY=VALUE ...]

Prints images a second of whole rollouts with their updates; the share of each part (the denoiser without and with
gradient, backward, decoder, scorers) and of all that is none of them; floating-point operations a second over those of
a large matrix product, measured in the same run; and peak memory by the window's length, each in a process of its own.
Scoring does not run beside drawing here, so that parts add up. Without a recipe the scorer is an untrained classifier.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from realgen.core import config
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.train.world import World
from realgen.wiring import grpo
from resume import random_recipe


class Clock:
    """Seconds by part; on a GPU it waits for the work to be done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, part: Callable[[], str], work: Callable[..., Any]) -> Callable[..., Any]:
        """`work`, with its time added to what `part` names."""

        def run(*given: Any, **named: Any) -> Any:
            name, began = part(), now()
            answer = work(*given, **named)
            self.seconds[name] = self.seconds.get(name, 0.0) + now() - began
            return answer

        return run


def now() -> float:
    """Seconds, after all work that was asked of a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default=None)
    parser.add_argument("--steps", type=int, default=4, help="rollouts that are timed, after one that warms up")
    parser.add_argument("--windows", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--peak", action="store_true", help="print the peak memory of one rollout alone")
    parser.add_argument("overrides", nargs="*")
    given, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        name = given.recipe or str(random_recipe(Path(folder)))
        overrides = ["is_scoring_beside=false", *given.overrides, *more]
        if given.peak:
            print(peak_memory(name, overrides))
            return
        report = measure(name, overrides, rollouts=given.steps)
        report["peak MiB by window length"] = {
            length: peak_elsewhere(name, [*overrides, f"window={{length: {length}}}"]) for length in given.windows
        }
    print(json.dumps(report, indent=1))


def build(name: str, overrides: list[str]) -> Any:
    """The trainer of a recipe, in this process."""
    recipe = config.load(name, overrides=overrides)
    assert isinstance(recipe, FlowGrpoRecipe)
    return grpo.build_trainer(recipe, World())


def measure(name: str, overrides: list[str], *, rollouts: int) -> dict[str, Any]:
    """Shares and rates of whole rollouts with their updates."""
    trainer = build(name, overrides)
    period, images = trainer.recipe.period, trainer.geometry.num_images
    for index in range(period):  # the first rollout is checked as well
        trainer.step(index)
    with FlopCounterMode(display=False) as counter:
        for index in range(period, 2 * period):
            trainer.step(index)
    clock = watch(trainer)
    began = now()
    for index in range(2 * period, period * (rollouts + 2)):
        trainer.step(index)
    seconds = now() - began
    parts = {part: value / seconds for part, value in sorted(clock.seconds.items())}
    in_denoiser = sum(value for part, value in clock.seconds.items() if part.startswith(("denoiser", "backward")))
    operations = sum(counter.get_flop_counts()[type(trainer.module).__name__].values())
    rate = operations * rollouts / in_denoiser
    return {
        "images a second": round(images * rollouts / seconds, 2),
        "seconds an optimiser step": round(seconds / (rollouts * period), 3),
        "share of the time": {part: round(value, 4) for part, value in parts.items()},
        "share outside of them": round(1 - sum(parts.values()), 4),
        "GFLOP/s in denoiser and backward": round(rate / 1e9, 1),
        "over a matrix product's": round(rate / matmul_rate(trainer.policy.dtype), 3),
    }


def watch(trainer: Any) -> Clock:
    """A clock on the trainer's denoiser, decoder, scorers and backward passes."""
    clock = Clock()
    backbone, queue = trainer.policy.backbone, trainer.queue
    backbone.velocity = clock.timed(
        lambda: "denoiser, with gradient" if torch.is_grad_enabled() else "denoiser", backbone.velocity
    )
    backbone.decode = clock.timed(lambda: "decoder", backbone.decode)
    queue._score = clock.timed(lambda: "scorers", queue._score)  # noqa: SLF001 - a benchmark may look inside
    torch.Tensor.backward = clock.timed(lambda: "backward", torch.Tensor.backward)  # type: ignore[method-assign]
    return clock


def matmul_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """Floating-point operations a second of a square product: the best of ten."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        began = now()
        a @ b
        best = min(best, now() - began)
    return 2 * side**3 / best


def peak_memory(name: str, overrides: list[str]) -> float:
    """Peak memory in MiB of this process after one rollout and its updates: of the GPU where there is one."""
    trainer = build(name, overrides)
    for index in range(trainer.recipe.period):
        trainer.step(index)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage's peak is inherited from the parent
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def peak_elsewhere(name: str, overrides: list[str]) -> float:
    """Peak memory of a process of its own."""
    command = [sys.executable, __file__, "--peak", "--recipe", name, *overrides]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return round(float(done.stdout.split()[-1]), 1)


if __name__ == "__main__":
    main()
