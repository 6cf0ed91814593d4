"""What a GRPO recipe will cost on this machine: counted from its sizes, and timed on one micro-batch."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.hub.plugs import use_threads
from realgen.wiring import grpo

if TYPE_CHECKING:
    from realgen.train.geometry import Geometry
    from realgen.train.loop import FlowGrpoTrainer

MEBIBYTE = 2**20


def plan(recipe: FlowGrpoRecipe) -> list[tuple[str, str]]:
    """(what, how much) of sizes, memory and time, in that order; loads the models and draws one micro-batch."""
    from realgen.train.world import World

    use_threads(recipe.machine)
    geometry = grpo.geometry_of(recipe, recipe.machine.processes or 1)
    alone = recipe.model_copy(update={"machine": recipe.machine.model_copy(update={"processes": None, "shard": False})})
    trainer = grpo.build_trainer(alone, World())
    return [*_sizes(recipe, geometry, trainer), *_memory(recipe, geometry, trainer), *_times(recipe, geometry, trainer)]


def _sizes(recipe: FlowGrpoRecipe, geometry: "Geometry", trainer: "FlowGrpoTrainer") -> list[tuple[str, str]]:
    images, length = geometry.num_images, recipe.window.length
    replayed = images * length * recipe.inner_epochs
    return [
        ("images a rollout", f"{images} ({geometry.num_prompts} prompts x {geometry.group})"),
        ("images an optimiser step", f"{images // recipe.updates}"),
        ("processes x accumulated micro-batches x micro-batch", _shape(geometry)),
        ("rollouts x optimiser steps of each", f"{recipe.steps // recipe.period} x {recipe.period}"),
        ("denoiser evaluations a rollout: drawn", f"{images * trainer.policy.steps}"),
        ("denoiser evaluations a rollout: replayed, with gradient", f"{replayed}"),
        ("denoiser evaluations a rollout: reference", f"{replayed if recipe.kl_weight else 0}"),
    ]


def _shape(geometry: "Geometry") -> str:
    return f"{geometry.processes} x {geometry.num_accumulated} x {geometry.micro_batch}"


def _memory(recipe: FlowGrpoRecipe, geometry: "Geometry", trainer: "FlowGrpoTrainer") -> list[tuple[str, str]]:
    from torch import nn

    backbone: Any = trainer.policy.backbone
    trained = sum(value.numel() * value.element_size() for value in trainer.trained.values())
    x = backbone.noise([0], trainer.policy.size)
    states = geometry.num_images // geometry.processes * (2 * recipe.window.length + 2) * x.numel() * 4
    parts = {
        name: sum(value.numel() * value.element_size() for value in part.parameters())
        for name, part in backbone.pipeline.components.items()
        if isinstance(part, nn.Module)
    }
    rows = [(f"memory of {name}", size) for name, size in parts.items()]
    rows += [
        ("memory of what is trained (in the denoiser's)", trained),
        ("memory of its gradients, moments and average", 4 * trained),
        ("memory of the window's states, a process", states),
    ]
    return [(what, f"{size / MEBIBYTE:.1f} MiB") for what, size in rows]


def _times(recipe: FlowGrpoRecipe, geometry: "Geometry", trainer: "FlowGrpoTrainer") -> list[tuple[str, str]]:
    policy = trainer.policy
    own = geometry.num_images // (geometry.processes * geometry.micro_batch)
    rows = next(geometry.micro_batches(0, 0, range(len(trainer.prompts))))
    pairs = [trainer.prompts[row.prompt] for row in rows]
    prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
    window = trainer.window(0)
    policy.rollout(rows, texts, rollout=0, window=window)  # the first draw loads and compiles
    drawn, rollout = _timed(lambda: policy.rollout(rows, texts, rollout=0, window=window))
    pixels, decode = _timed(lambda: policy.decode(drawn))

    def score() -> None:
        trainer.queue.put([row.place for row in rows], pixels, prompts)
        trainer.queue.results()

    def replay() -> None:
        for moment in drawn.moments:
            now = policy.replay(drawn, moment, with_reference=recipe.kl_weight > 0)
            now.log_density.sum().backward()

    score()
    replay()
    _, scoring = _timed(score)
    _, replayed = _timed(replay)
    update = replayed * recipe.inner_epochs
    beside = max(scoring - rollout - decode, 0) if recipe.is_scoring_beside else scoring
    total = own * (rollout + decode + beside + update)
    named = {"draw": rollout, "decode": decode, "score": scoring, "replay": update}
    times = [(f"seconds to {what} a micro-batch", f"{value:.3f}") for what, value in named.items()]
    return [
        *times,
        ("seconds an optimiser step, about", f"{total / recipe.period:.1f}"),
        ("hours of the whole run, about", f"{total * recipe.steps / recipe.period / 3600:.2f}"),
    ]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    import torch

    began = time.perf_counter()
    answer = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return answer, time.perf_counter() - began
