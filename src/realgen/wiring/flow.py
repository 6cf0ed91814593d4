"""What trainings of a FLUX.1's flow start from, and what they write."""

from pathlib import Path
from typing import TYPE_CHECKING

from realgen.core.training_recipes import FlowRecipe, TrajectoryRecipe
from realgen.wiring.materials import load_flux, read_split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    import torch
    from diffusers import FluxPipeline
    from PIL.Image import Image
    from torch import Tensor

    from realgen.core.protocols import FlowBackbone
    from realgen.generators.flux import FluxBackbone
    from realgen.train.elaborations import Elaborations
    from realgen.train.flow_data import FlowData
    from realgen.train.half_drawn import OwnTrajectories
    from realgen.train.photographs import Photograph


def open_flux(recipe: FlowRecipe, model: str) -> "FluxPipeline":
    """`model` in float32 for training: the autoencoder frozen, LoRA added where the recipe asks for it."""
    import torch

    pipeline = load_flux(model, recipe.machine)
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


def reader(pipeline: "FluxPipeline", recipe: FlowRecipe, max_text_tokens: int | None = None) -> "FluxBackbone":
    """A backbone that reads a whole batch's texts at once."""
    from realgen.generators.flux import FluxBackbone

    length = max_text_tokens or recipe.max_text_tokens
    return FluxBackbone(pipeline, max_text_tokens=length, texts_at_once=recipe.batch)


def flow_data(
    recipe: FlowRecipe,
    backbone: "FluxBackbone",
    split: str,
    folder: Path,
    see: "Callable[[Sequence[Image]], Tensor] | None" = None,
) -> "FlowData":
    """The photographs of a split, at most 256 of those held out, with their latents; captions say whom an eye sees."""
    from realgen.train.flow_data import FlowData, digest

    photographs = read_split(recipe, split)
    if split != "train":
        photographs = photographs[:256]
    as_before = None
    if recipe.eye is not None:
        from realgen.train.captions import said_of

        unsaid, photographs = photographs, _said_who(photographs, recipe.eye, backbone.pipeline.device)
        # an official portrait that did not say who was a man to a flow that had seen three men to a woman:
        # what a woman looks like there has to be learned from photographs
        as_before = [was if said_of(now) != "woman" else now for was, now in zip(unsaid, photographs, strict=True)]
    return FlowData(
        photographs,
        backbone.latents,
        size=recipe.size[0],
        category_weights=recipe.category_weights,
        source_weights=recipe.source_weights,
        seed=recipe.seed,
        cache=folder / f"latents-{split}.pt",
        encoder=digest(backbone.pipeline.vae.encoder),
        features=see,
        as_before=as_before,
    )


def _said_who(photographs: "list[Photograph]", eye: Path, device: "torch.device") -> "list[Photograph]":
    from realgen.train.efficientnet_lite import open_efficientnet_lite
    from realgen.train.portraits import said_who

    network = open_efficientnet_lite(eye).to(device)
    return said_who(photographs, lambda pixels: [seen.cpu() for seen in network(pixels.to(device))])


def saver(pipeline: "FluxPipeline", recipe: FlowRecipe) -> "Callable[[Path], None]":
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


def elaborate(recipe: FlowRecipe, backbone: "FluxBackbone") -> "Elaborations | None":
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


def encoder(backbone: "FluxBackbone") -> "Callable[[Sequence[str]], Any]":
    """Encodes texts whatever was encoded earlier, so that a resumed run reads what an uncut one would."""
    return lambda texts: backbone.encode(backbone.tokenize(texts))


def own_photographs(
    data: "FlowData", longer: "Elaborations | None"
) -> "Callable[[int, int], tuple[Tensor, list[str]]]":
    """What a flow goes on from to learn: latents of the even batches of photographs, with captions, some longer."""

    def photographs(number: int, count: int) -> "tuple[Tensor, list[str]]":
        batch = data.batch(2 * number, count=count, caption_dropout=0.0)
        return batch.clean, batch.captions if longer is None else longer(batch.captions, 2 * number)

    return photographs


def own_texts(data: "FlowData", longer: "Elaborations | None") -> "Callable[[int, int], list[str]]":
    """What a flow draws itself to learn from: the captions of those photographs."""
    photographs = own_photographs(data, longer)
    return lambda number, count: photographs(number, count)[1]


def own_trajectories(
    recipe: TrajectoryRecipe,
    backbone: "FlowBackbone",
    encode: "Callable[[Sequence[str]], Any]",
    texts: "Callable[[int, int], list[str]]",
) -> "OwnTrajectories":
    """The flow's own half-drawn pictures of some texts."""
    from realgen.train.half_drawn import OwnTrajectories

    return OwnTrajectories(
        backbone,
        encode,
        texts,
        batch=recipe.batch,
        period=recipe.period,
        steps=recipe.trajectory_steps,
        guidance=recipe.guidance,
        size=recipe.size,
        seed=recipe.seed,
    )
