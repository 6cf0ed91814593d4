"""Adversarial post-training of a FLUX.1's flow."""

from pathlib import Path
from typing import TYPE_CHECKING

from realgen.core.adversarial_recipe import (
    AdversarialRecipe,
    EnlargedOpponentSpec,
    LatentOpponentSpec,
    OpponentSpec,
    PictureOpponentSpec,
)
from realgen.core.errors import ConfigError
from realgen.wiring import flow
from realgen.wiring.materials import load_flux

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

    from realgen.generators.flux import Condition, FluxBackbone
    from realgen.train.adversarial import AdversarialTrainer
    from realgen.train.answers import Answers, Flows
    from realgen.train.efficientnet_lite import EfficientNetLite
    from realgen.train.elaborations import Elaborations
    from realgen.train.flow_data import FlowData
    from realgen.train.likeness import Likeness
    from realgen.train.opponents import EnlargedOpponent, LatentOpponent, Opponent, PictureOpponent


def build_trainer(recipe: AdversarialRecipe, folder: Path) -> "AdversarialTrainer":
    """The trainer of a recipe; latents are kept in `folder`."""
    import torch

    from realgen.train.adversarial import AdversarialTrainer
    from realgen.train.answers import Flows

    pipeline = flow.open_flux(recipe, recipe.model)
    backbone = flow.reader(pipeline, recipe)
    before = flow.reader(load_flux(recipe.model, recipe.machine, beside=pipeline), recipe)
    data = flow.flow_data(recipe, backbone, "train", folder)
    torch.manual_seed(recipe.seed)
    opponents: dict[str, Opponent] = {}
    if recipe.pictures is not None:
        opponents["pictures"] = _of_pictures(recipe, recipe.pictures, before)
    if recipe.latents is not None:
        opponents["latents"] = _of_latents(recipe, recipe.latents, before)
    if recipe.enlarged is not None:
        opponents["enlarged"] = _of_enlarged(recipe, recipe.enlarged, before)
    flows, longer = Flows(backbone, before, flow.encoder(before), recipe.size), flow.elaborate(recipe, backbone)
    return AdversarialTrainer(
        flows,
        _answers(recipe, flows, data, longer),
        opponents,
        data,
        flow.saver(pipeline, recipe),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        warmup=recipe.warmup,
        anchor_weight=recipe.anchor_weight,
        trained_share=recipe.trained_share,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
        likeness=_likeness(recipe, before),
        preview_prompts=recipe.preview_prompts,
        elaborate=longer,
    )


def _answers(recipe: AdversarialRecipe, flows: "Flows", data: "FlowData", longer: "Elaborations | None") -> "Answers":
    from realgen.train.answers import FinishedAnswers, StepAnswers, WholeAnswers

    texts = flow.own_texts(data, longer)
    if not (recipe.finished_from or recipe.unrolled):
        trajectories = flow.own_trajectories(recipe, flows.learning, flows.encode, texts)
        return StepAnswers(flows, trajectories=trajectories, lateness=recipe.lateness)
    drawn = recipe.model_dump(include={"batch", "guidance", "seed"}) | {"steps": recipe.trajectory_steps[0]}
    if recipe.finished_from:
        photographs = flow.own_photographs(data, longer)
        return FinishedAnswers(flows, photographs=photographs, begun=recipe.finished_from, **drawn)
    return WholeAnswers(flows, texts=texts, unrolled=recipe.unrolled, kept=recipe.kept_steps, **drawn)


def _of_pictures(recipe: AdversarialRecipe, spec: PictureOpponentSpec, backbone: "FluxBackbone") -> "PictureOpponent":
    from realgen.train.feature_discriminator import FeatureDiscriminator
    from realgen.train.lattice import LEAST_SQUARES
    from realgen.train.opponents import PictureOpponent

    squares = _side(backbone, recipe)
    if spec.lattice_weight and squares < LEAST_SQUARES:
        message = f"pictures.lattice_weight: a picture of {recipe.size[0]} pixels has {squares} tokens a side"
        raise ConfigError(message, hint=f"give pictures.lattice_weight=0, or a size with {LEAST_SQUARES} or more")
    eye = _open_eye(recipe, backbone)
    condition = _condition(backbone) + _waves()
    discriminator = FeatureDiscriminator(eye, eye.channels, condition=condition, width=spec.width)
    return PictureOpponent(
        discriminator.to(backbone.pipeline.device),
        _read,
        _decode(backbone, recipe),
        count=spec.count,
        lattice_weight=spec.lattice_weight,
        squares=squares,
        **_learning(spec),
    )


def _of_latents(recipe: AdversarialRecipe, spec: LatentOpponentSpec, before: "FluxBackbone") -> "LatentOpponent":
    from realgen.generators.flux import Condition
    from realgen.train.flow_features import FlowFeatures
    from realgen.train.latent_discriminator import LatentDiscriminator
    from realgen.train.opponents import LatentOpponent

    backbone = before
    if spec.model is not None:
        backbone = flow.reader(load_flux(spec.model, recipe.machine, beside=before.pipeline), recipe)
    transformer = backbone.pipeline.transformer
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    if not all(0 <= place < len(blocks) for place in spec.blocks):
        message = f"latents.blocks: {list(spec.blocks)}, where the flow has {len(blocks)} blocks"
        raise ConfigError(message, hint=f"name some of 0 to {len(blocks) - 1}")
    chosen = [blocks[place] for place in sorted(set(spec.blocks))]
    discriminator = LatentDiscriminator(
        len(chosen),
        transformer.inner_dim,
        condition=_condition(backbone) + 2 * _waves(),
        width=spec.width,
    )
    return LatentOpponent(
        discriminator.to(backbone.pipeline.device),
        _read,
        FlowFeatures(backbone, chosen, size=recipe.size),
        Condition._make,
        levels=spec.levels,
        finer=spec.finer,
        **_learning(spec),
    )


def _of_enlarged(recipe: AdversarialRecipe, spec: EnlargedOpponentSpec, before: "FluxBackbone") -> "EnlargedOpponent":
    from realgen.train.enlarged_discriminator import EnlargedDiscriminator
    from realgen.train.opponents import EnlargedOpponent

    eye = _open_eye(recipe, before)
    condition = _condition(before) + _waves()
    discriminator = EnlargedDiscriminator(eye, eye.channels, condition=condition, width=spec.width)
    return EnlargedOpponent(
        discriminator.to(before.pipeline.device),
        _read,
        _decode(before, recipe),
        side=spec.side,
        noise=spec.noise,
        **_learning(spec),
    )


def _likeness(recipe: AdversarialRecipe, backbone: "FluxBackbone") -> "Likeness | None":
    from realgen.train.likeness import Likeness

    if not (recipe.finished_from and recipe.likeness_weight):
        return None
    side = (recipe.enlarged or EnlargedOpponentSpec()).side
    return Likeness(_open_eye(recipe, backbone), _decode(backbone, recipe), side=side, weight=recipe.likeness_weight)


def _open_eye(recipe: AdversarialRecipe, backbone: "FluxBackbone") -> "EfficientNetLite":
    import torch

    from realgen.train.efficientnet_lite import open_efficientnet_lite

    eye = open_efficientnet_lite(recipe.eye)
    eye.to(backbone.pipeline.device, memory_format=torch.channels_last)
    return eye


def _learning(spec: OpponentSpec) -> "dict[str, Any]":
    return spec.model_dump(include={"weight", "learning_rate", "updates", "older"})


def _read(condition: "Condition") -> "Tensor":
    from realgen.train.feature_discriminator import summary

    return summary(condition.embeds, condition.pooled)


def _condition(backbone: "FluxBackbone") -> int:
    """Numbers in what `_read` makes of a text."""
    config = backbone.pipeline.transformer.config
    return int(config.joint_attention_dim) + int(config.pooled_projection_dim)


def _waves() -> int:
    """Numbers in what is said of a level."""
    import torch

    from realgen.train.feature_discriminator import level_waves

    return int(level_waves(torch.ones(1)).numel())


def _side(backbone: "FluxBackbone", recipe: AdversarialRecipe) -> int:
    """Tokens a side."""
    return recipe.size[0] // int(backbone.pipeline.vae_scale_factor * 2)


def _decode(backbone: "FluxBackbone", recipe: AdversarialRecipe) -> "Callable[[Tensor], Tensor]":
    """Packed latents to pixels around [0, 1], not clamped: a clamped pixel teaches nothing."""
    import torch

    vae = backbone.pipeline.vae.to(memory_format=torch.channels_last)
    return lambda latents: vae.decode(backbone.decoder_input(latents, recipe.size), return_dict=False)[0] / 2 + 0.5
