"""Flow-matching training of a FLUX.1: from scratch, in full, or as LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core.errors import ConfigError
from realgen.core.training_recipes import FlowSftRecipe
from realgen.wiring import flow
from realgen.wiring.materials import load_flux, read_split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import AutoencoderKL
    from PIL.Image import Image
    from torch import Tensor

    from realgen.train.flow_sft import FlowSftTrainer
    from realgen.train.representation import RepresentationAlignment


def build_trainer(recipe: FlowSftRecipe, folder: Path) -> "FlowSftTrainer":
    """The trainer of a recipe; latents are kept in `folder`."""
    from torch import nn

    from realgen.train.flow_sft import FlowSftTrainer
    from realgen.train.growth import deepen
    from realgen.train.own_guidance import OwnGuidance
    from realgen.train.scaffold import open_measured

    pipeline = flow.open_flux(recipe, recipe.model)
    if recipe.single_blocks is not None:
        deepen(pipeline.transformer, recipe.single_blocks)
    if recipe.autoencoder is not None:
        other = open_measured(recipe.autoencoder, read_split(recipe, "train"), device=pipeline.device)
        _check_fits(other, pipeline.vae, recipe.autoencoder)
        pipeline.vae = other
    backbone = flow.reader(pipeline, recipe)
    see, alignment = _representation(pipeline.transformer, recipe)
    data, held_out = (
        flow.flow_data(recipe, backbone, split, folder, see if split == "train" else None)
        for split in ("train", "test")
    )
    teacher = recipe.teacher or recipe.model
    own_guidance = None
    if recipe.own_guidance:
        own_guidance = OwnGuidance(
            recipe.own_guidance, recipe.least_sigma, recipe.taught_sources, guided_below=recipe.guided_below
        )
    taught = recipe.distil_guidance or recipe.own_guidance
    return FlowSftTrainer(
        backbone,
        nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2]),
        data,
        held_out,
        flow.saver(pipeline, recipe),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        text_learning_rate=recipe.text_learning_rate,
        caption_dropout=recipe.caption_dropout,
        ema_decay=recipe.ema_decay,
        size=recipe.size,
        hold=recipe.hold,
        short_reader=flow.reader(pipeline, recipe, recipe.short_text_tokens) if recipe.short_text_tokens else None,
        alignment=alignment,
        preview_prompts=recipe.preview_prompts,
        teacher=flow.reader(flow.open_flux(recipe, teacher), recipe) if taught else None,
        weaker=flow.reader(load_flux(recipe.weaker, recipe.machine), recipe) if recipe.weaker else None,
        elaborate=flow.elaborate(recipe, backbone),
        distil_guidance=recipe.distil_guidance or (1.0, 6.0),
        guided_below=recipe.guided_below,
        own_guidance=own_guidance,
        tokenize=backbone.tokenize if recipe.machine.loaders and not recipe.short_text_tokens else None,
        loaders=recipe.machine.loaders,
    )


def _check_fits(other: "AutoencoderKL", own: "AutoencoderKL", folder: Path) -> None:
    """The transformer reads latents of one factor and one number of channels."""
    given, wanted = (
        (2 ** (len(vae.config.block_out_channels) - 1), vae.config.latent_channels) for vae in (other, own)
    )
    if given != wanted:
        message = f"autoencoder: {folder} has factor {given[0]} and {given[1]} channels"
        raise ConfigError(message, hint=f"the model draws latents of factor {wanted[0]} and {wanted[1]} channels")


def _representation(
    transformer: Any, recipe: FlowSftRecipe
) -> "tuple[Callable[[Sequence[Image]], Tensor] | None, RepresentationAlignment | None]":
    """What sees the clean pictures, and what makes a layer of the transformer learn it."""
    import torch

    from realgen.train.dual_encoder import patch_encoder
    from realgen.train.representation import RepresentationAlignment

    if recipe.representation is None:
        return None, None
    encode, width = patch_encoder(recipe.representation, device=transformer.device)
    torch.manual_seed(recipe.seed)
    layers = transformer.single_transformer_blocks
    if recipe.representation_layer >= len(layers):
        message = f"representation_layer={recipe.representation_layer}: the transformer has {len(layers)} single blocks"
        raise ConfigError(message, hint=f"0 to {len(layers) - 1}")
    alignment = RepresentationAlignment(
        layers[recipe.representation_layer],
        width=transformer.inner_dim,
        features=width,
        weight=recipe.representation_weight,
    )
    return encode, alignment.to(transformer.device)
