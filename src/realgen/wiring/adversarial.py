"""Adversarial post-training of a FLUX.1's flow."""

from pathlib import Path
from typing import TYPE_CHECKING

from realgen.core.training_recipes import AdversarialRecipe
from realgen.wiring import flow
from realgen.wiring.materials import load_flux

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from realgen.generators.flux import FluxBackbone
    from realgen.train.adversarial import AdversarialTrainer


def build_trainer(recipe: AdversarialRecipe, folder: Path) -> "AdversarialTrainer":
    """The trainer of a recipe; latents are kept in `folder`."""
    import torch

    from realgen.train.adversarial import AdversarialTrainer
    from realgen.train.efficientnet_lite import open_efficientnet_lite
    from realgen.train.feature_discriminator import FeatureDiscriminator, level_waves, summary

    pipeline = flow.open_flux(recipe, recipe.model)
    backbone = flow.reader(pipeline, recipe)
    before = flow.reader(load_flux(recipe.model, recipe.machine), recipe)
    data = flow.flow_data(recipe, backbone, "train", folder)
    eye = open_efficientnet_lite(recipe.eye).to(pipeline.device, memory_format=torch.channels_last)
    condition = pipeline.transformer.config.joint_attention_dim + pipeline.transformer.config.pooled_projection_dim
    condition += level_waves(torch.ones(1)).shape[1]
    torch.manual_seed(recipe.seed)
    discriminator = FeatureDiscriminator(eye, eye.channels, condition=condition, width=recipe.discriminator_width)
    encode, longer = flow.encoder(before), flow.elaborate(recipe, backbone)
    return AdversarialTrainer(
        backbone,
        before,
        _decode(before, recipe),
        discriminator.to(pipeline.device),
        encode,
        lambda condition: summary(condition.embeds, condition.pooled),
        data,
        flow.saver(pipeline, recipe),
        trajectories=flow.own_trajectories(recipe, backbone, encode, data, longer),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        discriminator_learning_rate=recipe.discriminator_learning_rate,
        discriminator_updates=recipe.discriminator_updates,
        warmup=recipe.warmup,
        lateness=recipe.lateness,
        anchor_weight=recipe.anchor_weight,
        lattice_weight=recipe.lattice_weight,
        trained_share=recipe.trained_share,
        ema_decay=recipe.ema_decay,
        size=recipe.size,
        seed=recipe.seed,
        preview_prompts=recipe.preview_prompts,
        elaborate=longer,
    )


def _decode(backbone: "FluxBackbone", recipe: AdversarialRecipe) -> "Callable[[Tensor], Tensor]":
    """Packed latents to pixels around [0, 1], not clamped: a clamped pixel teaches nothing."""
    import torch

    vae = backbone.pipeline.vae.to(memory_format=torch.channels_last)
    return lambda latents: vae.decode(backbone.decoder_input(latents, recipe.size), return_dict=False)[0] / 2 + 0.5
