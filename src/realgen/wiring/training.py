"""What trains."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from realgen.core import config
from realgen.core.adversarial_recipe import AdversarialRecipe
from realgen.core.errors import ConfigError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.core.recipes import Recipe
from realgen.core.spec import Plug
from realgen.core.training_recipes import (
    AlignmentRecipe,
    AutoencoderRecipe,
    ClassifierRecipe,
    DecoderRecipe,
    DetectorRecipe,
    ExpertsRecipe,
    FlowRecipe,
    FlowSftRecipe,
    TextDistillationRecipe,
    TrainRecipe,
    UnseenWordsRecipe,
)
from realgen.hub import plugs
from realgen.hub.device import keep_gradients_right, pick_device, pick_dtype
from realgen.hub.plugs import use_threads
from realgen.wiring import adversarial, experts, flow_sft, grpo, processes
from realgen.wiring.materials import embedded, load_flux, read_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from realgen.train.decoder import Windows
    from realgen.train.detectors import Fakes
    from realgen.train.networks import Network
    from realgen.train.photographs import Photograph
    from realgen.train.run import Trainer


def recipe_of(folder: Path, overrides: "Sequence[str]", *, profile: str | None = None) -> Recipe:
    """The recipe that the run in `folder` was started with; only its machine and its data may be overridden."""
    from realgen.train.run import Run

    recorded = Run.open(folder).recipe
    for text in overrides:
        if not config.parse_override(text).keys() <= {"machine", "data"}:
            held = _at(recorded, text.partition("=")[0])
            raise ConfigError(
                f"{text}: a resumed run keeps its recipe, where it is {held!r}",
                hint="only machine.* and data may change; another recipe is another --out",
            )
    return config.on_top(recorded, where=str(folder), profile=profile, overrides=overrides)


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
    _check_machine(recipe)
    use_threads(recipe.machine)
    if resume:
        run = Run.open(folder)
        trainer = build_trainer(recipe, folder)
    else:
        Run.check_free(folder)
        trainer = build_trainer(recipe, folder)
        run = Run.create(folder, recipe.model_dump(mode="json"))
    with run.locked():
        yield from drive(
            run,
            trainer,
            steps=recipe.steps,
            evaluate_every=recipe.evaluate_every,
            save_minutes=recipe.save_minutes,
            snapshots=recipe.snapshots,
        )


def _check_machine(recipe: TrainRecipe) -> None:
    """Raise ConfigError for what these trainers cannot do on a machine, before anything is loaded."""
    machine, kind = recipe.machine, getattr(recipe, "kind", "")
    processes.check_alone(machine, kind)
    if not isinstance(recipe, FlowRecipe | UnseenWordsRecipe):
        return
    if machine.offload != "none":
        raise ConfigError(f"machine.offload: {kind} trains what stays in its place", hint="machine.offload=none")
    if machine.quantize != "none" and getattr(recipe, "lora_rank", 0) == 0:
        raise ConfigError("quantised weights cannot be trained", hint="train a LoRA: lora_rank=16, say")


def build_trainer(recipe: TrainRecipe, folder: Path) -> "Trainer":
    """The trainer of a training recipe, computing in the machine's number format."""
    device = pick_device(recipe.machine)
    keep_gradients_right(device)
    trainer: Any = _TRAINERS[type(recipe)](recipe, folder)
    trainer.dtype = pick_dtype(recipe.machine, device)
    return cast("Trainer", trainer)


def _autoencoder_trainer(recipe: AutoencoderRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.autoencoder import AutoencoderTrainer, linear_autoencoder, open_autoencoder
    from realgen.train.photographs import of_one_size

    photographs = read_split(recipe, "train")
    torch.manual_seed(recipe.seed)
    if recipe.model is not None:
        model = open_autoencoder(recipe.model).requires_grad_(True)
    else:
        model = linear_autoencoder(
            photographs,
            widths=recipe.widths,
            latent_channels=recipe.latent_channels,
            groups=recipe.groups,
            size=128,
            seed=recipe.seed,
        )
    held_out = of_one_size(read_split(recipe, "test"))
    return AutoencoderTrainer(
        model.to(pick_device(recipe.machine)),
        photographs,
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

    from realgen.train.autoencoder import open_autoencoder
    from realgen.train.decoder import DecoderTrainer, Windows
    from realgen.train.discriminator import PatchDiscriminator
    from realgen.train.photographs import of_one_size

    device = pick_device(recipe.machine)
    model = open_autoencoder(recipe.model).to(device)
    photographs = of_one_size(read_split(recipe, "train"))
    held_out = of_one_size(read_split(recipe, "test"))
    torch.manual_seed(recipe.seed)
    return DecoderTrainer(
        model,
        PatchDiscriminator().to(device),
        Windows(photographs, model, crop=recipe.crop, seed=recipe.seed, cache=folder / "latents-train.pt"),
        held_out[:128],
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        discriminator_learning_rate=recipe.discriminator_learning_rate,
        adversarial_weight=recipe.adversarial_weight,
        adversarial_warmup=recipe.adversarial_warmup,
        ema_decay=recipe.ema_decay,
        drawn=_drawn_windows(recipe, photographs, folder) if recipe.drawn else None,
    )


def _drawn_windows(recipe: DecoderRecipe, photographs: "Sequence[Photograph]", folder: Path) -> "Windows":
    """Windows of pictures that the recipe's pipeline draws, with the latents that they were decoded from."""
    from realgen.generators.flux import FluxBackbone
    from realgen.train import drawn
    from realgen.train.decoder import Windows
    from realgen.train.flow_data import cached

    backbone = FluxBackbone(load_flux(str(recipe.model), recipe.machine), max_text_tokens=64)
    batch = recipe.machine.batch
    packed = cached(
        folder / "drawn.pt",
        f"{recipe.model} {recipe.drawn} {recipe.guidance} {recipe.seed} {[one.file for one in photographs]}",
        lambda: drawn.draw(
            backbone,
            photographs,
            count=recipe.drawn,
            steps=20,
            guidance=recipe.guidance,
            batch=batch,
            seed=recipe.seed,
        ),
    )
    size = drawn.size_of(photographs)
    latents, before = drawn.decoded(backbone, backbone.decoder_input, packed, size=size, batch=batch)
    return Windows(before, backbone.pipeline.vae, crop=recipe.crop, seed=recipe.seed, latents=latents)


def _classifier_trainer(recipe: ClassifierRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.classifier import ClassifierTrainer, build_classifier

    torch.manual_seed(recipe.seed)
    return ClassifierTrainer(
        build_classifier(recipe.categories).to(pick_device(recipe.machine)),
        read_split(recipe, "train"),
        read_split(recipe, "test"),
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

    photographs = fakes.select(read_split(recipe, "train"), side=recipe.side, sources=recipe.sources)
    parts = {"train": [one for place, one in enumerate(photographs) if place % 10], "apart": photographs[::10]}
    made = {
        part: [_fakes(name, recipe, pool, folder / f"fakes-{part}-{name}.npz", share) for name in recipe.fakes]
        for (part, pool), share in zip(parts.items(), (1.0, 0.1), strict=True)
    }
    torch.manual_seed(recipe.seed)
    train, apart = (np.stack([one.pixels for one in parts[part]]) for part in ("train", "apart"))
    return DetectorTrainer(
        _network(recipe, pick_device(recipe.machine)),
        train,
        made["train"],
        (apart[:256], made["apart"]),
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
        min_crop=recipe.min_crop,
        degraded_photographs=recipe.degraded_photographs,
        spoilt_photographs=recipe.spoilt_photographs,
        loaders=recipe.machine.loaders,
    )


def _fakes(name: str, recipe: DetectorRecipe, photographs: "list[Photograph]", file: Path, share: float) -> "Fakes":
    """One family's pictures, made once: they stay in the run folder."""
    from realgen.generators.flux import FluxBackbone
    from realgen.train import fakes

    spec, batch = recipe.fakes[name], recipe.machine.batch
    model = spec.model or embedded()
    count = max(1, round(spec.count * share))

    def make() -> "Fakes":
        if spec.how == "redrawn":
            backbone = FluxBackbone(load_flux(model, recipe.machine), max_text_tokens=64)
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


def _network(recipe: DetectorRecipe, device: "torch.device") -> "Network":
    from realgen.scorers.residual import Residual, ResidualNet
    from realgen.train.networks import Network, build_convnext, build_pvt, go_on_from

    if recipe.network == "residual":
        module = ResidualNet()
        network = Network(module, Residual(module).log_odds, module.head, module.save_pretrained)
    else:
        network = build_convnext() if recipe.network == "convnext" else build_pvt()
    if recipe.start is not None:
        go_on_from(network.module, recipe.start)
    network.module.to(device)
    return network


def _alignment_trainer(recipe: AlignmentRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train.dual_encoder import DualEncoderTrainer, build_dual_encoder

    pipeline = load_flux(recipe.text_model or embedded(), recipe.machine)
    torch.manual_seed(recipe.seed)
    return DualEncoderTrainer(
        build_dual_encoder(pipeline.text_encoder, side=recipe.side).to(pick_device(recipe.machine)),
        pipeline.tokenizer,
        read_split(recipe, "train"),
        read_split(recipe, "test"),
        side=recipe.side,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        ema_decay=recipe.ema_decay,
        seed=recipe.seed,
    )


def _text_trainer(recipe: TextDistillationRecipe, folder: Path) -> "Trainer":
    from realgen.train.captions import text_corpus
    from realgen.train.scaffold import build_pipeline, open_measured
    from realgen.train.text_distillation import SentenceTeacher, TextDistiller, with_words
    from realgen.train.tokenizers import train_tokenizers

    photographs, device = read_split(recipe, "train"), pick_device(recipe.machine)
    texts = list(text_corpus(photographs, recipe.prompts, seed=recipe.seed, rounds=3))
    if not (folder / "tokenizer_2").is_dir():
        train_tokenizers(texts, folder)
    autoencoder = open_measured(recipe.autoencoder, photographs, device=device)
    teacher = SentenceTeacher(recipe.teacher)
    texts = with_words(texts, teacher.words(), seed=recipe.seed)
    return TextDistiller(
        build_pipeline(autoencoder, folder, seed=recipe.seed).to(device),
        teacher,
        texts[512:],
        texts[:512],
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
    )


def _unseen_words_trainer(recipe: UnseenWordsRecipe, _: Path) -> "Trainer":
    import torch

    from realgen.train import unseen_words
    from realgen.train.captions import text_corpus
    from realgen.train.text_distillation import SentenceTeacher
    from realgen.train.wordnet import WordNet

    photographs = read_split(recipe, "train")
    captions = list(text_corpus(photographs, (), seed=recipe.seed, rounds=3))
    words = unseen_words.without_known(unseen_words.read_words(recipe.words), captions)
    meanings = unseen_words.nearest_subjects(
        SentenceTeacher(recipe.teacher),
        words,
        unseen_words.subjects_of(photographs),
        least=recipe.least_cosine,
        wordnet=None if recipe.wordnet is None else WordNet(recipe.wordnet),
    )
    return unseen_words.UnseenWordsTrainer(
        load_flux(recipe.model, recipe.machine),
        meanings,
        captions,
        steps=recipe.steps,
        batch=recipe.batch,
        learning_rate=recipe.learning_rate,
        seed=recipe.seed,
        export_dtype=getattr(torch, recipe.export_dtype),
    )


_TRAINERS: "dict[type[TrainRecipe], Callable[[Any, Path], Trainer]]" = {
    AutoencoderRecipe: _autoencoder_trainer,
    DecoderRecipe: _decoder_trainer,
    TextDistillationRecipe: _text_trainer,
    ClassifierRecipe: _classifier_trainer,
    DetectorRecipe: _detector_trainer,
    AlignmentRecipe: _alignment_trainer,
    UnseenWordsRecipe: _unseen_words_trainer,
    FlowSftRecipe: flow_sft.build_trainer,
    AdversarialRecipe: adversarial.build_trainer,
    ExpertsRecipe: experts.build_trainer,
}
