"""GRPO's recipe to its trainer and run."""

import json
import platform
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen import pipeline, requests
from realgen.core.errors import InputError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.types import Request
from realgen.hub.device import keep_gradients_right, pick_device
from realgen.hub.names import expand
from realgen.hub.plugs import use_threads
from realgen.wiring import policy, processes, use

if TYPE_CHECKING:
    from realgen.generators._flow import FlowGenerator
    from realgen.train.geometry import Geometry
    from realgen.train.loop import FlowGrpoTrainer
    from realgen.train.run import Run
    from realgen.train.world import World

Texts = dict[str, list[tuple[str, str]]]
"""(prompt, text) pairs of `train` and of `eval`."""

_LIBRARIES = ("realgen", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")


def train(recipe: FlowGrpoRecipe, folder: Path, *, resume: bool) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Start or continue the run in `folder`; yields (steps taken, metrics) after every step, in the main process."""
    from realgen.train.run import Run

    world = processes.join(recipe.machine)
    if resume:
        run = Run.open(folder, writes=world.is_main)
        machine = recipe.machine.model_copy(update={"threads": recipe.machine.threads or _threads_of(folder)})
        recipe = recipe.model_copy(update={"machine": machine})
    elif world.is_main:
        Run.check_free(folder)
    use_threads(recipe.machine)
    texts = _kept_texts(folder) if resume else None
    trainer = build_trainer(recipe, world, texts=texts)
    if not resume:
        run = Run.create(folder, recipe.model_dump(mode="json"), writes=world.is_main)
        _note_start(run, trainer, world)
    track, is_noted = _tracker(recipe, folder) if world.is_main else None, False
    try:
        with run.locked():
            for step, metrics in _drive(run, trainer, recipe, world):
                if step and not is_noted:
                    run.note("self_checks.json", {"step": step, **trainer.checks})
                    is_noted = True
                if track is not None:
                    track.log(dict(metrics), step=step)
                if world.is_main:
                    yield step, metrics
    finally:
        trainer.queue.close()
    if track is not None:
        track.end_training()


def _drive(
    run: "Run", trainer: "FlowGrpoTrainer", recipe: FlowGrpoRecipe, world: "World"
) -> Iterator[tuple[int, Mapping[str, float]]]:
    from realgen.train.run import drive

    return drive(
        run,
        trainer,
        steps=recipe.steps,
        log_every=1,
        save_minutes=recipe.save_minutes,
        evaluate_every=recipe.evaluate_every,
        snapshots=recipe.snapshots,
        period=recipe.period,
        best="eval_total",
        evaluates_first=True,
        agree=world.agree,
    )


def build_trainer(recipe: FlowGrpoRecipe, world: "World", *, texts: Texts | None = None) -> "FlowGrpoTrainer":
    """The trainer, with its models loaded, adapters added, texts encoded and weights shared out.

    `texts` are those of a run that goes on; None reads the prompts and rewrites them.
    """
    from realgen.train.evaluation import Evaluation
    from realgen.train.geometry import prompts_of
    from realgen.train.loop import FlowGrpoTrainer
    from realgen.train.scoring import ScoringQueue

    geometry = geometry_of(recipe, world.size)
    keep_gradients_right(pick_device(recipe.machine))
    generator = policy.build_generator(recipe)
    # of several processes one writes the texts: a language model may answer another differently
    found: Texts = world.gather([texts or texts_of(recipe, generator)])[0]
    prompts, held_out = found["train"], found["eval"]
    prompts_of(0, total=len(prompts), count=recipe.num_prompts, seed=recipe.seed)
    generator.backbone.remember([text for _, text in (*prompts, *held_out)])
    score = partial(pipeline.score_images, scorers=use.build_scorers(recipe))
    return FlowGrpoTrainer(
        recipe,
        policy.build_policy(recipe, generator, world),
        ScoringQueue(score, is_beside=recipe.is_scoring_beside),
        Evaluation(generator, score, held_out, batch=recipe.machine.batch, num_previews=recipe.num_previews),
        prompts,
        lambda folder: policy.save(recipe, generator, folder, world),
        geometry=geometry,
        world=world,
    )


def geometry_of(recipe: FlowGrpoRecipe, size: int) -> "Geometry":
    """The sizes of a rollout on `size` processes; ConfigError where it cannot be shared out."""
    from realgen.train.geometry import Geometry

    geometry = Geometry(recipe.num_prompts, recipe.group, recipe.updates, recipe.machine.batch, size)
    geometry.check()
    return geometry


def texts_of(recipe: FlowGrpoRecipe, generator: "FlowGenerator") -> Texts:
    """(prompt, text) pairs of training and of evaluation, each prompt once; InputError where a text is too long."""
    optimizer = use.build_optimizer(recipe)
    found: Texts = {}
    for name, source in (("train", recipe.prompts), ("eval", recipe.eval_prompts)):
        asked = [Request(prompt, place) for place, prompt in enumerate(read_prompts(source))]
        rewrites = pipeline.rewrite(asked, generator, optimizer=optimizer)
        generator.check_texts([one.text for one in rewrites])
        found[name] = [(one.prompt, rewritten.text) for one, rewritten in zip(asked, rewrites, strict=True)]
    return found


def read_prompts(source: str) -> list[str]:
    """The prompts of a list in the package, or of a file; blank lines, # lines and repetitions are left out."""
    shipped = resources.files("realgen") / "prompts" / f"{source}.txt"
    path: Any = shipped if "/" not in source and shipped.is_file() else expand(source)
    return list(dict.fromkeys(request.prompt for request in requests.read_requests(str(path), seed=0)))


def _note_start(run: "Run", trainer: "FlowGrpoTrainer", world: "World") -> None:
    """What the recipe does not say and a figure may depend on, and the texts, which a resumed run reads here."""
    import torch

    circumstances = {
        "versions": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "num_trained": sum(value.numel() for value in trainer.trained.values()),
    }
    run.note("circumstances.json", circumstances)
    run.note("texts.json", {"train": trainer.prompts, "eval": trainer.evaluation.prompts})


def _threads_of(folder: Path) -> int | None:
    found: dict[str, Any] = _read(folder / "circumstances.json")
    return found.get("threads")


def _kept_texts(folder: Path) -> Texts:
    found: dict[str, Any] = _read(folder / "texts.json")
    return {name: [(prompt, text) for prompt, text in pairs] for name, pairs in found.items()}


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {file}: {error}", hint="the run cannot go on without it: start another"
        ) from error


def _tracker(recipe: FlowGrpoRecipe, folder: Path) -> Any:
    if not recipe.trackers:
        return None
    from accelerate import Accelerator

    tracker = Accelerator(log_with=list(recipe.trackers), project_dir=str(folder), cpu=recipe.machine.device == "cpu")
    tracker.init_trackers("tracker", config={"recipe": json.dumps(recipe.model_dump(mode="json"))})
    return tracker
