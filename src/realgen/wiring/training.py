"""What trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from realgen.core import config
from realgen.core.errors import ConfigError
from realgen.core.recipes import Recipe
from realgen.core.spec import Machine, Plug
from realgen.core.training_recipes import (
    AlignmentRecipe,
    AutoencoderRecipe,
    ClassifierRecipe,
    DecoderRecipe,
    DetectorRecipe,
    FlowGrpoRecipe,
    FlowSftRecipe,
    PhotographRecipe,
    TextDistillationRecipe,
    TrainRecipe,
)
from realgen.hub import card as cards
from realgen.hub import fetch, plugs
from realgen.hub.plugs import use_threads
from realgen.wiring import grpo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from diffusers import FluxPipeline
    from PIL.Image import Image
    from torch import Tensor

    from realgen.train.detectors import Fakes
    from realgen.train.networks import Network
    from realgen.train.photographs import Photograph
    from realgen.train.representation import RepresentationAlignment
    from realgen.train.run import Trainer


def recipe_of(folder: Path, overrides: "Sequence[str]", *, profile: str | None = None) -> Recipe:
    """The recipe that the run in `folder` was started with; only its machine and its data may be overridden."""
    from realgen.train.run import Run

    merged = Run.open(folder).recipe
    if profile is not None:
        merged = config.merge(merged, config.read_profile(profile))
    for text in overrides:
        layer = config.parse_override(text)
        if not layer.keys() <= {"machine", "data"}:
            held = _at(merged, text.partition("=")[0])
            raise ConfigError(
                f"{text}: a resumed run keeps its recipe, where it is {held!r}",
                hint="only machine.* and data may change; another recipe is another --out",
            )
        merged = config.merge(merged, layer)
    return config.from_mapping(merged, where=str(folder))


def _at(recipe: "Mapping[str, Any]", key: str) -> Any:
    found: Any = recipe
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def train(recipe: TrainRecipe, folder: Path, *, resume: bool) -> "Iterator[tuple[int, Mapping[str, float]]]":
    """Start or continue the run in `folder`; yields (steps taken, metrics) at every log."""
    from realgen.train.run import Run, drive

    if isinstance(recipe, FlowGrpoRecipe):
        yield from grpo.train(recipe, folder, resume=resume)
        return
    use_threads(recipe.machine)
    if resume:
        run = Run.open(folder)
        trainer = build_trainer(recipe, folder)
    else:
        Run.check_free(folder)
        trainer = build_trainer(recipe, folder)
        run = Run.create(folder, recipe.model_dump(mode="json"))
    yield from drive(
        run,
        trainer,
        steps=recipe.steps,
        evaluate_every=recipe.evaluate_every,
        save_minutes=recipe.save_minutes,
        snapshots=recipe.snapshots,
    )


def build_trainer(recipe: TrainRecipe, folder: Path) -> "Trainer":
    """The trainer of a training recipe, computing in the machine's number format."""
    from realgen.hub.device import pick_device, pick_dtype

    trainer: Any = _TRAINERS[type(recipe)](recipe, folder)
    trainer.dtype = pick_dtype(recipe.machine, pick_device(recipe.machine))
    return cast("Trainer", trainer)


def _photographs(recipe: PhotographRecipe, split: str) -> "list[Photograph]":
    from realgen.train.photographs import read_photographs

    if recipe.data is None:
        raise ConfigError("no photographs", hint="give data=FOLDER")
    return read_photographs(recipe.data, split=split)


def _autoencoder_trainer(recipe: AutoencoderRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.autoencoder import AutoencoderTrainer, build_autoencoder

    torch.manual_seed(recipe.seed)
    model = build_autoencoder(
        widths=recipe.widths, latent_channels=recipe.latent_channels, groups=recipe.groups, size=128
    )
    held_out = [photograph for photograph in _photographs(recipe, "test") if photograph.pixels.shape[:2] == (128, 128)]
    return AutoencoderTrainer(
        model,
        _photographs(recipe, "train"),
        held_out[:128],
        steps=recipe.steps,
        batch=recipe.batch,
        crop=recipe.crop,
        learning_rate=recipe.learning_rate,
        kl_weight=recipe.kl_weight,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
    )


def _decoder_trainer(recipe: DecoderRecipe, folder: Path) -> "Trainer":
    import torch

    from realgen.train.decoder import DecoderTrainer, Windows, of_one_size, open_autoencoder
    from realgen.train.discriminator import PatchDiscriminator

    model = open_autoencoder(recipe.model)
    photographs = of_one_size(_photographs(recipe, "train"))
    held_out = of_one_size(_photographs(recipe, "test"))
    torch.manual_seed(recipe.seed)
    return DecoderTrainer(
        model,
        PatchDiscriminator(),
        Windows(photographs, model, crop=recipe.crop, seed=recipe.seed, cache=folder / "latents-train.pt"),
        held_out[:128],
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        discriminator_learning_rate=recipe.discriminator_learning_rate,
        adversarial_weight=recipe.adversarial_weight,
        adversarial_warmup=recipe.adversarial_warmup,
        ema_decay=recipe.ema_decay,
    )


def _classifier_trainer(recipe: ClassifierRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.classifier import ClassifierTrainer, build_classifier

    torch.manual_seed(recipe.seed)
    return ClassifierTrainer(
        build_classifier(recipe.categories),
        _photographs(recipe, "train"),
        _photographs(recipe, "test"),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
    )


def _detector_trainer(recipe: DetectorRecipe, folder: Path) -> "Trainer":
    import numpy as np
    import torch

    from realgen.train import fakes
    from realgen.train.detectors import DetectorTrainer

    photographs = fakes.select(_photographs(recipe, "train"), side=recipe.side, sources=recipe.sources)
    parts = {"train": [one for place, one in enumerate(photographs) if place % 10], "apart": photographs[::10]}
    made = {
        part: [_fakes(name, recipe, pool, folder / f"fakes-{part}-{name}.npz", share) for name in recipe.fakes]
        for (part, pool), share in zip(parts.items(), (1.0, 0.1), strict=True)
    }
    torch.manual_seed(recipe.seed)
    train, apart = (np.stack([one.pixels for one in parts[part]]) for part in ("train", "apart"))
    return DetectorTrainer(
        _network(recipe.network),
        train,
        made["train"],
        (apart[:256], made["apart"]),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
    )


def _fakes(name: str, recipe: DetectorRecipe, photographs: "list[Photograph]", file: Path, share: float) -> "Fakes":
    """One family's pictures, made once: they stay in the run folder."""
    from realgen.generators.flux import FluxBackbone
    from realgen.train import fakes

    spec, batch = recipe.fakes[name], recipe.machine.batch
    model = spec.model or _embedded()
    count = max(1, round(spec.count * share))

    def make() -> "Fakes":
        if spec.how == "redrawn":
            backbone = FluxBackbone(_load_flux(model, recipe.machine), max_text_tokens=64)
            return fakes.redrawn(name, backbone, photographs, count=count, batch=batch, seed=recipe.seed)
        options = {
            "model": model,
            "steps": spec.steps,
            "guidance": spec.guidance,
            "max_text_tokens": 64,
        }
        plug = Plug(name="flux", options={**options, "size": (recipe.side, recipe.side)})
        generator = plugs.build("generators", plug, recipe.machine)
        return fakes.drawn(name, generator, photographs, count=count, batch=batch, seed=recipe.seed)

    return fakes.kept(file, f"{spec} {recipe.seed} {[one.file for one in photographs]}", make)


def _network(name: str) -> "Network":
    from realgen.scorers.residual import Residual, ResidualNet
    from realgen.train.networks import Network, build_convnext, build_vit

    if name == "residual":
        module = ResidualNet()
        return Network(module, Residual(module).log_odds, module.head, module.save_pretrained)
    return build_vit() if name == "vit" else build_convnext()


def _alignment_trainer(recipe: AlignmentRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.dual_encoder import DualEncoderTrainer, build_dual_encoder

    pipeline = _load_flux(recipe.text_model or _embedded(), recipe.machine)
    torch.manual_seed(recipe.seed)
    return DualEncoderTrainer(
        build_dual_encoder(pipeline.text_encoder, side=recipe.side),
        pipeline.tokenizer,
        _photographs(recipe, "train"),
        _photographs(recipe, "test"),
        side=recipe.side,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
    )


def _text_trainer(recipe: TextDistillationRecipe, folder: Path) -> "Trainer":
    from diffusers import AutoencoderKL

    from realgen.train.captions import text_corpus
    from realgen.train.scaffold import build_pipeline, measure_latents
    from realgen.train.text_distillation import SentenceTeacher, TextDistiller, with_words
    from realgen.train.tokenizers import train_tokenizers

    photographs = _photographs(recipe, "train")
    texts = list(text_corpus(photographs, recipe.prompts, seed=recipe.seed, rounds=3))
    if not (folder / "tokenizer_2").is_dir():
        train_tokenizers(texts, folder)
    autoencoder = AutoencoderKL.from_pretrained(recipe.autoencoder).eval()
    square = [photograph for photograph in photographs if photograph.pixels.shape[:2] == (128, 128)]
    scaling, shift = measure_latents(autoencoder, square[:2000])
    autoencoder.register_to_config(scaling_factor=scaling, shift_factor=shift)
    teacher = SentenceTeacher(recipe.teacher)
    texts = with_words(texts, teacher.words(), seed=recipe.seed)
    return TextDistiller(
        build_pipeline(autoencoder, folder, seed=recipe.seed),
        teacher,
        texts[512:],
        texts[:512],
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
    )


def _flow_trainer(recipe: FlowSftRecipe, folder: Path) -> "Trainer":
    from torch import nn

    from realgen.generators.flux import FluxBackbone
    from realgen.train.flow_data import FlowData
    from realgen.train.flow_sft import FlowSftTrainer

    pipeline = _open_flux(recipe)
    backbone = FluxBackbone(pipeline, max_text_tokens=recipe.max_text_tokens)
    teacher = short_reader = None
    if recipe.short_text_tokens:
        short_reader = FluxBackbone(pipeline, max_text_tokens=recipe.short_text_tokens)
    if recipe.distil_guidance is not None:
        teacher = FluxBackbone(_open_flux(recipe), max_text_tokens=recipe.max_text_tokens)
    see, alignment = _representation(pipeline.transformer, recipe)
    data, held_out = (
        FlowData(
            photographs,
            backbone.latents,
            size=recipe.size[0],
            category_weights=recipe.category_weights,
            seed=recipe.seed,
            cache=folder / f"latents-{split}.pt",
            features=see if split == "train" else None,
        )
        for split, photographs in (
            ("train", _photographs(recipe, "train")),
            ("test", _photographs(recipe, "test")[:256]),
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
        distil_guidance=recipe.distil_guidance or (1.0, 6.0),
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


def _embedded() -> str:
    return str(fetch.locate(cards.read("tiny")))


def _load_flux(model: str, machine: Machine) -> "FluxPipeline":
    from diffusers import FluxPipeline

    from realgen.generators._loading import load_pipeline

    return load_pipeline(FluxPipeline, model, machine.model_copy(update={"dtype": "float32"}))


def _open_flux(recipe: FlowSftRecipe) -> "FluxPipeline":
    """The recipe's model in float32 for training: the autoencoder frozen, LoRA added where the recipe asks for it."""
    import torch

    pipeline = _load_flux(recipe.model, recipe.machine)
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


_TRAINERS: "dict[type[TrainRecipe], Callable[[Any, Path], Trainer]]" = {
    AutoencoderRecipe: _autoencoder_trainer,
    DecoderRecipe: _decoder_trainer,
    TextDistillationRecipe: _text_trainer,
    ClassifierRecipe: _classifier_trainer,
    DetectorRecipe: _detector_trainer,
    AlignmentRecipe: _alignment_trainer,
    FlowSftRecipe: _flow_trainer,
}
