"""Flow-matching training of a FLUX.1: from scratch, in full, or as LoRA."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from realgen.core.training_recipes import FlowSftRecipe
from realgen.wiring.materials import load_flux, read_split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diffusers import FluxPipeline
    from PIL.Image import Image
    from torch import Tensor

    from realgen.generators.flux import FluxBackbone
    from realgen.train.elaborations import Elaborations
    from realgen.train.flow_sft import FlowSftTrainer
    from realgen.train.representation import RepresentationAlignment


def build_trainer(recipe: FlowSftRecipe, folder: Path) -> "FlowSftTrainer":
    """The trainer of a recipe; latents are kept in `folder`."""
    from torch import nn

    from realgen.generators.flux import FluxBackbone
    from realgen.train.flow_data import FlowData
    from realgen.train.flow_sft import FlowSftTrainer

    pipeline = _open_flux(recipe)
    backbone = FluxBackbone(pipeline, max_text_tokens=recipe.max_text_tokens)
    teacher = weaker = short_reader = None
    if recipe.short_text_tokens:
        short_reader = FluxBackbone(pipeline, max_text_tokens=recipe.short_text_tokens)
    if recipe.distil_guidance is not None:
        teacher = FluxBackbone(_open_flux(recipe), max_text_tokens=recipe.max_text_tokens)
    if recipe.weaker is not None:
        weaker = FluxBackbone(load_flux(recipe.weaker, recipe.machine), max_text_tokens=recipe.max_text_tokens)
    see, alignment = _representation(pipeline.transformer, recipe)
    data, held_out = (
        FlowData(
            shown,
            backbone.latents,
            size=recipe.size[0],
            category_weights=recipe.category_weights,
            seed=recipe.seed,
            cache=folder / f"latents-{split}.pt",
            features=see if split == "train" else None,
        )
        for split, shown in (
            ("train", read_split(recipe, "train")),
            ("test", read_split(recipe, "test")[:256]),
        )
    )
    return FlowSftTrainer(
        backbone,
        nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2]),
        data,
        held_out,
        _saver(pipeline, recipe),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        text_learning_rate=recipe.text_learning_rate,
        caption_dropout=recipe.caption_dropout,
        ema_decay=recipe.ema_decay,
        size=recipe.size,
        hold=recipe.hold,
        short_reader=short_reader,
        alignment=alignment,
        preview_prompts=recipe.preview_prompts,
        teacher=teacher,
        weaker=weaker,
        elaborate=_elaborate(recipe, backbone),
        distil_guidance=recipe.distil_guidance or (1.0, 6.0),
    )


def _elaborate(recipe: FlowSftRecipe, backbone: "FluxBackbone") -> "Elaborations | None":
    """What makes captions longer, as long as the model reads them whole."""
    from realgen.train.elaborations import Elaborations, read_clauses

    if not recipe.elaborations:
        return None
    return Elaborations(
        read_clauses(recipe.elaborations),
        share=recipe.elaborated,
        fits=lambda text: backbone.num_text_tokens(text) <= recipe.max_text_tokens,
        seed=recipe.seed,
    )


def _representation(
    transformer: Any, recipe: FlowSftRecipe
) -> "tuple[Callable[[Sequence[Image]], Tensor] | None, RepresentationAlignment | None]":
    """What sees the clean pictures, and what makes a layer of the transformer learn it."""
    import torch

    from realgen.train.dual_encoder import patch_encoder
    from realgen.train.representation import RepresentationAlignment

    if recipe.representation is None:
        return None, None
    encode, width = patch_encoder(recipe.representation)
    torch.manual_seed(recipe.seed)
    layer = transformer.single_transformer_blocks[recipe.representation_layer]
    return encode, RepresentationAlignment(
        layer, width=transformer.inner_dim, features=width, weight=recipe.representation_weight
    )


def _open_flux(recipe: FlowSftRecipe) -> "FluxPipeline":
    """The recipe's model in float32 for training: the autoencoder frozen, LoRA added where the recipe asks for it."""
    import torch

    pipeline = load_flux(recipe.model, recipe.machine)
    if recipe.lora_rank == 0:
        pipeline.transformer.requires_grad_(True)
        if recipe.machine.compile:
            pipeline.transformer.compile()
        return pipeline
    from peft import LoraConfig

    from realgen.generators.flux import FluxBackbone

    torch.manual_seed(recipe.seed)
    pipeline.transformer.add_adapter(
        LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_rank,
            init_lora_weights="gaussian",
            target_modules=list(FluxBackbone.lora_targets),
        )
    )
    return pipeline


def _saver(pipeline: "FluxPipeline", recipe: FlowSftRecipe) -> "Callable[[Path], None]":
    """Writes what was trained: the whole folder, or the LoRA as diffusers loads it."""
    import torch

    from realgen.train.scaffold import save_pipeline

    def save(folder: Path) -> None:
        if recipe.lora_rank == 0:
            save_pipeline(pipeline, folder, dtype=getattr(torch, recipe.export_dtype))
            return
        from peft.utils import get_peft_model_state_dict

        pipeline.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer))

    return save
