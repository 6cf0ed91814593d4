"""What post-training changed: the same prompts and seeds before and after, and the best of N beside it.

    python benchmarks/post_training.py RUN [RUN ...] --out FOLDER [--prompts tiny-test] [--seeds 2] [--searched 32]

RUNs are finished runs of one `flow_grpo` recipe and differ by their seeds. Every scorer of the recipe, rewarded or not,
looks at every picture; changes are means over prompts with the paired bootstrap's 95 % interval. The best of N is what
the reward prefers of N pictures of the model before, N being what the evaluations of the denoiser that a run takes (a
backward pass counting as two) would draw for every picture here; it is measured on `--searched` of the prompts.
FOLDER gets report.json, pictures.png (before on the left, after each run to its right) and curves.png.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from realgen import reward
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.protocols import Generator, Scorer
from realgen.core.types import Progress, Score
from realgen.formulas import stats
from realgen.formulas.pixels import sharpness, to_pixels
from realgen.wiring import use
from realgen.wiring.grpo import read_prompts
from realgen.wiring.training import recipe_of

Scores = Mapping[str, Tensor]
"""By name: (prompts, seeds), NaN where a scorer had no answer."""
GRID_PROMPTS, GRID_SEEDS = 14, 2
SMOOTHED = 25
"""Points of a curve that are averaged for its bold line."""
BATCH = 32


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--prompts", default="tiny-test")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--searched", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    recipe = _recipe(given.runs[0])
    prompts, scorers = read_prompts(given.prompts), use.build_scorers(recipe)
    before = draw(recipe, prompts, given.seeds)
    was = score(scorers, before, prompts)
    report: dict[str, Any] = {"before": {name: float(values.nanmean()) for name, values in was.items()}}
    columns = [before]
    for run in given.runs:
        columns.append(draw(_recipe(run), prompts, given.seeds, lora=run / "model"))
        report[run.name] = changes(was, score(scorers, columns[-1], prompts))
        print(run.name, json.dumps(report[run.name]), flush=True)
    num = evaluations(recipe) // (recipe.generator.options["steps"] * len(prompts) * given.seeds)
    if given.searched:
        few = prompts[:: max(1, len(prompts) // given.searched)][: given.searched]
        report["best of"] = search(recipe, scorers, few, num)
    given.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2)
    print(text)
    (given.out / "report.json").write_text(text + "\n", encoding="utf-8")
    grid(columns, len(prompts)).save(given.out / "pictures.png")
    plot({run.name: _metrics(run) for run in given.runs}, given.out / "curves.png")


def _recipe(run: Path) -> FlowGrpoRecipe:
    recipe = recipe_of(run, [])
    assert isinstance(recipe, FlowGrpoRecipe), f"{run} is no run of flow_grpo"
    return recipe


def draw(
    recipe: FlowGrpoRecipe, prompts: Sequence[str], seeds: int, lora: Path | None = None
) -> list[list[Image.Image]]:
    """Pictures of every prompt with seeds 0 to `seeds` - 1, as the recipe's generator draws them."""
    plug = recipe.generator
    if lora is not None:
        plug = plug.model_copy(update={"options": {**plug.options, "lora": str(lora)}})
    generator: Generator = use.build_generator(recipe.model_copy(update={"generator": plug}))
    texts = [prompt for prompt in prompts for _ in range(seeds)]
    images = [
        item for item in generator(texts, seeds=list(range(seeds)) * len(prompts)) if not isinstance(item, Progress)
    ]
    return [images[place : place + seeds] for place in range(0, len(images), seeds)]


def score(scorers: Mapping[str, Scorer], pictures: Sequence[Sequence[Image.Image]], prompts: Sequence[str]) -> Scores:
    """Every scorer's values, and the sharpness."""
    answers = [_answers(scorers, row, prompt) for row, prompt in zip(pictures, prompts, strict=True)]
    found = {name: torch.tensor([[_value(one[name]) for one in row] for row in answers]) for name in scorers}
    return found | {"sharpness": torch.stack([sharpness(to_pixels(row)) for row in pictures])}


def _answers(scorers: Mapping[str, Scorer], images: Sequence[Image.Image], prompt: str) -> list[dict[str, Score]]:
    answers: list[dict[str, Score]] = []
    for start in range(0, len(images), BATCH):
        chunk = images[start : start + BATCH]
        columns = {name: scorer(chunk, [prompt] * len(chunk)) for name, scorer in scorers.items()}
        answers += [{name: column[place] for name, column in columns.items()} for place in range(len(chunk))]
    return answers


def _value(answer: Score) -> float:
    return float("nan") if answer.value is None else answer.value


def changes(before: Scores, after: Scores) -> dict[str, stats.Interval]:
    """Mean change of every score over the prompts, with its interval."""
    return {name: _interval((after[name] - before[name]).nanmean(1)) for name in before}


def _interval(values: Tensor) -> stats.Interval:
    return stats.bootstrap(values[values.isfinite()], generator=torch.Generator().manual_seed(0))


def evaluations(recipe: FlowGrpoRecipe) -> int:
    """Evaluations of the denoiser in the run: drawn, replayed with gradients (three each), and of the reference."""
    images = recipe.num_prompts * recipe.group
    replayed = recipe.inner_epochs * recipe.window.length * (3 + (recipe.kl_weight > 0))
    return recipe.steps // recipe.period * images * (int(recipe.generator.options["steps"]) + replayed)


def search(recipe: FlowGrpoRecipe, scorers: Mapping[str, Scorer], prompts: Sequence[str], num: int) -> dict[str, Any]:
    """The change from the first picture to the best of n by the reward, for n doubling up to `num`."""
    answers = [_answers(scorers, row, prompt) for row, prompt in zip(draw(recipe, prompts, num), prompts, strict=True)]
    table: dict[str, Any] = {}
    for count in sorted({2**power for power in range(1, num.bit_length())} | {num}):
        best = [row[_best(row[:count], recipe)] for row in answers]
        table[str(count)] = {
            name: _interval(
                torch.tensor([_value(one[name]) - _value(row[0][name]) for one, row in zip(best, answers, strict=True)])
            )
            for name in scorers
        }
    return table


def _best(answers: Sequence[dict[str, Score]], recipe: FlowGrpoRecipe) -> int:
    return reward.order(reward.parts(answers, recipe.reward), recipe.reward.weights)[0]


def grid(columns: Sequence[Sequence[Sequence[Image.Image]]], num_prompts: int) -> Image.Image:
    """A row a prompt, evenly chosen: before and after each run, a picture of each of the first seeds."""
    rows = range(0, num_prompts, max(1, num_prompts // GRID_PROMPTS))[:GRID_PROMPTS]
    width, height = columns[0][0][0].size
    gap, count = 8, min(GRID_SEEDS, len(columns[0][0]))
    sheet = Image.new("RGB", (len(columns) * (count * width + gap) - gap, len(rows) * height), "white")
    for down, place in enumerate(rows):
        for across, column in enumerate(columns):
            for seed, image in enumerate(column[place][:count]):
                sheet.paste(image, (across * (count * width + gap) + seed * width, down * height))
    return sheet


def _metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def plot(runs: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """A panel a figure, a line a run: scores of the rollouts and of the evaluations, KL, clipped share, sharpness.

    Where there are many points they are faint, and their running mean is bold.
    """
    names = sorted({name for rows in runs.values() for row in rows for name in row})
    shown = [name for name in names if name.startswith(("score_", "eval_")) or name in {"kl", "clipped", "sharpness"}]
    shown = [name for name in shown if any(row.get(name) for rows in runs.values() for row in rows)]
    rows = -(-len(shown) // 4)
    figure = Figure(figsize=(16, 2.6 * rows))
    for place, name in enumerate(shown):
        axis = figure.add_subplot(rows, 4, place + 1)
        for number, (label, metrics) in enumerate(runs.items()):
            steps = [row["step"] for row in metrics if name in row]
            values = [row[name] for row in metrics if name in row]
            colour, is_many = f"C{number}", len(steps) > 2 * SMOOTHED
            if is_many:
                axis.plot(steps, values, color=colour, linewidth=0.5, alpha=0.3)
                values = np.convolve(values, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
                steps = steps[SMOOTHED // 2 :][: len(values)]
            axis.plot(steps, values, color=colour, label=label, marker=None if is_many else ".")
        axis.set_title(name, fontsize=9)
        if not place:
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
