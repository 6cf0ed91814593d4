"""The generator of a GRPO recipe as what is trained, and what was trained as files."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core import config
from realgen.core.errors import ConfigError, InputError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.spec import Machine
from realgen.hub.device import pick_device, pick_dtype
from realgen.wiring import use

if TYPE_CHECKING:
    from realgen.core.protocols import FlowBackbone
    from realgen.generators._flow import FlowGenerator
    from realgen.train.flow_policy import FlowPolicy
    from realgen.train.world import World


def check_machine(recipe: FlowGrpoRecipe) -> None:
    """Raise ConfigError for what this trainer cannot do on a machine, before anything is loaded."""
    machine = recipe.machine
    refused = [
        (machine.dtype == "float16", "machine.dtype=float16 underflows", "machine.dtype=bfloat16"),
        (machine.compile, "machine.compile is not for GRPO: adapters are switched at every step", "leave it out"),
        (machine.offload == "sequential", "weights that come and go cannot be trained", "machine.offload=model"),
        (machine.quantize != "none" and recipe.lora is None, "quantised weights cannot be trained", "train a LoRA"),
        (machine.shard and recipe.lora is None, "machine.shard trains LoRA only", "lora={rank: 64, alpha: 128}"),
        (
            bool(recipe.generator.options.get("lora")),
            "generator.options.lora would be switched off by the one that is trained",
            "merge it into the model first: realgen export --merged, or diffusers' fuse_lora",
        ),
    ]
    for is_so, message, hint in refused:
        if is_so:
            raise ConfigError(message, hint=hint)
    for name in recipe.trackers:
        if find_spec(name) is None:  # accelerate would leave it out in silence
            raise ConfigError(f"trackers: {name} is not installed", hint=f"pip install {name}")


def build_generator(recipe: FlowGrpoRecipe) -> "FlowGenerator":
    """The generator that is trained; ConfigError where it has no flow to train, or the window is too long for it.

    Everything stays on the device but the text encoders, which `remember` moves to the CPU: that is what
    machine.offload=model means here.
    """
    from realgen.generators._flow import FlowGenerator

    check_machine(recipe)
    resident = recipe.machine.model_copy(update={"offload": "none"})
    generator = use.build_generator(recipe.model_copy(update={"machine": resident}))
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
        add_lora(generator.backbone, recipe)
        held = reference.adapters_off(module)
    else:
        module.requires_grad_(True).float()
        held = reference.frozen_copy(module)
    if recipe.gradient_checkpointing:
        module.enable_gradient_checkpointing()
        module.train()
    if world.is_sharded:
        worlds.shard(module, _blocks(module))
    device = pick_device(recipe.machine)
    return FlowPolicy(
        generator.backbone,
        steps=generator.steps,
        guidance=generator.guidance,
        size=generator.size,
        sampler=recipe.sampler,
        eta=recipe.eta,
        seed=recipe.seed,
        same_latent=recipe.same_latent,
        dtype=pick_dtype(recipe.machine, device),
        device=device,
        reference=held,
    )


def add_lora(backbone: "FlowBackbone", recipe: FlowGrpoRecipe) -> None:
    """Fresh float32 adapters on the layers that the backbone names, but for those whose output nothing reads."""
    from peft import LoraConfig

    assert recipe.lora is not None
    module: Any = backbone.module
    module.add_adapter(
        LoraConfig(
            r=recipe.lora.rank,
            lora_alpha=recipe.lora.alpha,
            init_lora_weights="gaussian",
            target_modules=list(backbone.lora_targets),
            exclude_modules=list(backbone.idle_layers) or None,
        )
    )
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _blocks(module: Any) -> Sequence[Any]:
    """The module's own lists of equal blocks: what is gathered and let go of one at a time."""
    from torch import nn

    return [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]


def save(recipe: FlowGrpoRecipe, generator: "FlowGenerator", folder: Path, world: "World") -> None:
    """What is trained, as it is now, as a user loads it: the LoRA, or the whole pipeline."""
    from realgen.train.export import write_lora

    if recipe.lora is not None:
        write_lora(generator.backbone.module, folder, writes=world.is_main)
    elif world.is_main:
        backbone: Any = generator.backbone
        backbone.pipeline.save_pretrained(folder)


def export(folder: Path, out: Path, *, is_raw: bool, is_merged: bool) -> None:
    """Write what the run in `folder` trained: its average, or the weights as they are; as LoRA, or merged in full.

    On the CPU and unquantised, whatever the run was on; merged in float32.
    """
    from realgen.train.export import merge_lora
    from realgen.train.run import Run
    from realgen.train.world import World, put

    run = Run.open(folder)
    recipe = config.from_mapping(run.recipe, where=str(folder))
    if not isinstance(recipe, FlowGrpoRecipe):
        raise InputError(f"{folder} is a run of kind {recipe.kind}", hint=f"its weights are in {folder / 'model'}")
    if (loaded := run.load()) is None:
        raise InputError(f"{folder} has no checkpoint yet", hint=f"realgen train --resume {folder}")
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder", hint="choose another --out")
    machine = Machine(device="cpu", dtype="float32" if is_merged else "auto")
    recipe = recipe.model_copy(update={"machine": machine, "trackers": ()})
    generator = build_generator(recipe)
    build_policy(recipe, generator, World())
    module: Any = generator.backbone.module
    values = loaded[1]["parameters"] if is_raw else loaded[1]["ema"]["shadow"]
    trained = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if trained.keys() != values.keys():
        raise InputError(f"the checkpoint in {folder} is of another model", hint="put the model back that it trained")
    for name, parameter in trained.items():
        put(parameter, values[name])
    if is_merged and recipe.lora is not None:
        merge_lora(module)
        recipe = recipe.model_copy(update={"lora": None})
    save(recipe, generator, out, World())
