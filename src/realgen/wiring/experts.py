"""Distillation of two experts of a FLUX.1, by noise level, into one."""

from pathlib import Path
from typing import TYPE_CHECKING

from realgen.core.training_recipes import ExpertsRecipe
from realgen.wiring import flow
from realgen.wiring.materials import load_flux

if TYPE_CHECKING:
    from realgen.train.experts import ExpertTrainer


def build_trainer(recipe: ExpertsRecipe, folder: Path) -> "ExpertTrainer":
    """The trainer of a recipe; latents are kept in `folder`."""
    from realgen.train.experts import ExpertTrainer

    pipeline = flow.open_flux(recipe, recipe.model)
    backbone = flow.reader(pipeline, recipe)
    early, late = (
        flow.reader(load_flux(model, recipe.machine, beside=pipeline), recipe) for model in (recipe.model, recipe.late)
    )
    data, encode = flow.flow_data(recipe, backbone, "train", folder), flow.encoder(early)
    return ExpertTrainer(
        backbone,
        early,
        late,
        encode,
        flow.own_trajectories(recipe, backbone, encode, flow.own_texts(data, flow.elaborate(recipe, backbone))),
        flow.saver(pipeline, recipe),
        boundary=recipe.boundary,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        size=recipe.size,
        preview_prompts=recipe.preview_prompts,
    )
