"""GRPO's recipe to its trainer and run."""

import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen import pipeline, requests
from realgen.core import config
from realgen.core.errors import ConfigError, InputError
from realgen.core.training_recipes import FlowGrpoRecipe
from realgen.core.types import Request
from realgen.hub.device import pick_device, pick_dtype
from realgen.hub.plugs import use_threads
from realgen.wiring import processes, use

if TYPE_CHECKING:
    from realgen.generators._flow import FlowGenerator
    from realgen.train.flow_policy import FlowPolicy
    from realgen.train.geometry import Geometry
    from realgen.train.loop import FlowGrpoTrainer
    from realgen.train.run import Run
    from realgen.train.world import World

_LIBRARIES = ("realgen", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow")


def train(recipe: FlowGrpoRecipe, folder: Path, *, resume: bool) -> Iterator[tuple[int, Mapping[str, float]]]:
    """Start or continue the run in `folder`; yields (steps taken, metrics) after every step, in the main process."""
    from realgen.train.run import Run, drive

    use_threads(recipe.machine)
    world = processes.join(recipe.machine)
    if not resume and world.is_main:
        Run.check_free(folder)
    trainer = build_trainer(recipe, world)
    if resume:
        run = Run.open(folder, writes=world.is_main)
    else:
        run = Run.create(folder, recipe.model_dump(mode="json"), writes=world.is_main)
    _note_circumstances(run, trainer, world)
    track = _tracker(recipe, folder) if world.is_main else None
    taken = drive(
        run,
        trainer,
        steps=recipe.steps,
        log_every=1,
        save_minutes=recipe.save_minutes,
        evaluate_every=recipe.evaluate_every,
        snapshots=recipe.snapshots,
        period=recipe.period,
        best="eval_total",
        agree=world.agree,
    )
    for step, metrics in taken:
        if track is not None:
            track.log(dict(metrics), step=step)
        if world.is_main:
            yield step, metrics
    if track is not None:
        track.end_training()


def build_trainer(recipe: FlowGrpoRecipe, world: "World") -> "FlowGrpoTrainer":
    """The trainer, with its models loaded, adapters added, texts encoded and weights shared out."""
    from realgen.train.evaluation import Evaluation
    from realgen.train.loop import FlowGrpoTrainer
    from realgen.train.scoring import ScoringQueue

    geometry = geometry_of(recipe, world.size)
    generator = build_generator(recipe)
    prompts, held_out = texts_of(recipe, generator)
    backbone = generator.backbone
    backbone.remember([text for _, text in (*prompts, *held_out)])
    policy = build_policy(recipe, generator, world)
    score = partial(pipeline.score_images, scorers=use.build_scorers(recipe))
    evaluation = Evaluation(generator, score, held_out, batch=recipe.machine.batch, num_previews=recipe.num_previews)
    return FlowGrpoTrainer(
        recipe,
        policy,
        ScoringQueue(score, is_beside=recipe.is_scoring_beside),
        evaluation,
        prompts,
        lambda folder: _save(recipe, generator, folder, world),
        geometry=geometry,
        world=world,
    )


def export(folder: Path, out: Path, *, is_raw: bool, is_merged: bool) -> None:
    """Write what the run in `folder` trained: its average, or the weights as they are; as LoRA, or merged in full."""
    from realgen.train.export import merge_lora
    from realgen.train.run import Run
    from realgen.train.world import World, put

    run = Run.open(folder)
    recipe = config.from_mapping(run.recipe, where=str(folder))
    if not isinstance(recipe, FlowGrpoRecipe):
        raise InputError(f"{folder} is a run of kind {recipe.kind}", hint=f"its weights are in {folder / 'model'}")
    if (loaded := run.load()) is None:
        raise InputError(f"{folder} has no checkpoint yet", hint=f"realgen train --resume {folder}")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty", hint="choose another --out")
    generator = build_generator(recipe)
    build_policy(recipe, generator, World())
    module: Any = generator.backbone.module
    values = loaded[1]["parameters"] if is_raw else loaded[1]["ema"]["shadow"]
    for name, parameter in module.named_parameters():
        if name in values:
            put(parameter, values[name])
    if is_merged and recipe.lora is not None:
        merge_lora(module)
        recipe = recipe.model_copy(update={"lora": None})
    _save(recipe, generator, out, World())


def geometry_of(recipe: FlowGrpoRecipe, size: int) -> "Geometry":
    """The sizes of a rollout on `size` processes; ConfigError where it cannot be shared out."""
    from realgen.train.geometry import Geometry

    geometry = Geometry(recipe.num_prompts, recipe.group, recipe.updates, recipe.machine.batch, size)
    geometry.check()
    return geometry


def build_generator(recipe: FlowGrpoRecipe) -> "FlowGenerator":
    """The generator that is trained; ConfigError where it has no flow to train, or the window is too long for it."""
    from realgen.generators._flow import FlowGenerator

    generator = use.build_generator(recipe)
    if not isinstance(generator, FlowGenerator):
        raise ConfigError(f"the generator {recipe.generator.name} cannot be trained", hint="flux can, for one")
    end = recipe.window.last + recipe.window.length
    limit = generator.steps - (recipe.sampler == "cps")  # its last step adds no noise
    if end > limit:
        raise ConfigError(
            f"the window may reach step {end}, and there are {limit} stochastic ones",
            hint=f"window.last={max(0, limit - recipe.window.length)}, or more generator.options.steps",
        )
    return generator


def build_policy(recipe: FlowGrpoRecipe, generator: "FlowGenerator", world: "World") -> "FlowPolicy":
    """The policy: what is trained is marked so, in float32, and shared out among the processes where asked for."""
    import torch

    from realgen.train import reference
    from realgen.train import world as worlds
    from realgen.train.flow_policy import FlowPolicy

    module: Any = generator.backbone.module
    torch.manual_seed(recipe.seed)
    if recipe.lora is not None:
        _add_lora(module, recipe, generator.backbone.lora_targets)
        held = reference.adapters_off(module)
    else:
        module.requires_grad_(True).float()
        held = reference.frozen_copy(module)
    if recipe.gradient_checkpointing:
        module.enable_gradient_checkpointing()
        module.train()
    if world.is_sharded:
        worlds.shard(module, _blocks(module))
    return FlowPolicy(
        generator.backbone,
        steps=generator.steps,
        guidance=generator.guidance,
        size=generator.size,
        sampler=recipe.sampler,
        eta=recipe.eta,
        seed=recipe.seed,
        dtype=pick_dtype(recipe.machine, pick_device(recipe.machine)),
        reference=held,
    )


def _add_lora(module: Any, recipe: FlowGrpoRecipe, targets: Sequence[str]) -> None:
    from peft import LoraConfig

    assert recipe.lora is not None
    module.add_adapter(
        LoraConfig(
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
    )
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _blocks(module: Any) -> list[Any]:
    """The module's own lists of equal blocks: what is gathered and let go of one at a time."""
    from torch import nn

    return [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]


def texts_of(recipe: FlowGrpoRecipe, generator: "FlowGenerator") -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(prompt, text) pairs of training and of evaluation, each prompt once; InputError where a text is too long."""
    optimizer = use.build_optimizer(recipe)
    found = []
    for source in (recipe.prompts, recipe.eval_prompts):
        asked = [Request(prompt, place) for place, prompt in enumerate(read_prompts(source))]
        rewrites = pipeline.rewrite(asked, generator, optimizer=optimizer)
        generator.check_texts([one.text for one in rewrites])
        found.append([(one.prompt, text.text) for one, text in zip(asked, rewrites, strict=True)])
    return found[0], found[1]


def read_prompts(source: str) -> list[str]:
    """The prompts of a list in the package, or of a file; blank lines, # lines and repetitions are left out."""
    shipped = resources.files("realgen") / "prompts" / f"{source}.txt"
    path: Any = shipped if "/" not in source and shipped.is_file() else source
    return list(dict.fromkeys(request.prompt for request in requests.read_requests(str(path), seed=0)))


def _save(recipe: FlowGrpoRecipe, generator: "FlowGenerator", folder: Path, world: "World") -> None:
    from realgen.train.export import write_lora

    module: Any = generator.backbone.module
    if recipe.lora is not None:
        write_lora(module, folder, writes=world.is_main)
    elif world.is_main:
        backbone: Any = generator.backbone
        backbone.pipeline.save_pretrained(folder)


def _note_circumstances(run: "Run", trainer: "FlowGrpoTrainer", world: "World") -> None:
    """What the recipe does not say and a figure may depend on."""
    import torch

    if not world.is_main:
        return
    circumstances = {
        "versions": {name: version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "num_prompts": len(trainer.prompts),
        "num_trained": sum(value.numel() for value in trainer.trained.values()),
    }
    (run.folder / "circumstances.json").write_text(json.dumps(circumstances, indent=1) + "\n", encoding="utf-8")


def _tracker(recipe: FlowGrpoRecipe, folder: Path) -> Any:
    if not recipe.trackers:
        return None
    from accelerate import Accelerator

    tracker = Accelerator(log_with=list(recipe.trackers), project_dir=str(folder), cpu=recipe.machine.device == "cpu")
    tracker.init_trackers("realgen", config={"recipe": json.dumps(recipe.model_dump(mode="json"))})
    return tracker
