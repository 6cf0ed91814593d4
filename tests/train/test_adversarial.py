"""Adversarial post-training of a random FLUX.1: who learns when, the loss by hand, exact resume, an exported folder."""

import copy

import pytest
import torch
from diffusers import FluxPipeline
from torch.nn import functional as F

from conftest import FLOAT32
from realgen.generators._loading import load_pipeline
from realgen.generators.flux import Condition, FluxBackbone
from realgen.train.adversarial import AdversarialTrainer
from realgen.train.answers import Flows, StepAnswers
from realgen.train.enlarged_discriminator import EnlargedDiscriminator
from realgen.train.feature_discriminator import FeatureDiscriminator, summary
from realgen.train.flow_data import FlowData
from realgen.train.flow_features import FlowFeatures
from realgen.train.half_drawn import OwnTrajectories
from realgen.train.latent_discriminator import LatentDiscriminator
from realgen.train.opponents import EnlargedOpponent, LatentOpponent, PictureOpponent
from train.test_flow_sft import photographs

SIZE = (32, 32)
TOKEN = 16


def eye(pixels):
    return [F.avg_pool2d(pixels, stride) for stride in (2, 4, 8, 16)]


def backbone_of(folder, *, trains):
    pipeline = load_pipeline(FluxPipeline, str(folder), FLOAT32)
    pipeline.transformer.requires_grad_(trains)
    return FluxBackbone(pipeline, max_text_tokens=32)


def trajectories_of(backbone, encode, *, side=32, steps=(3, 4)):
    def texts(number, count):
        return [("a rose", "a cat", "a red rose in the rain")[(number + place) % 3] for place in range(count)]

    knobs = {"batch": 4, "period": 3, "steps": steps, "guidance": (1.0, 4.0), "size": (side, side), "seed": 0}
    return OwnTrajectories(backbone, encode, texts, **knobs)


def read(condition):
    return summary(condition.embeds, condition.pooled)


def opponents_of(folder, side=32, lattice_weight=0.0, older=2, **options):
    """One of pictures, which looks at three of a batch, one of latents, and one of contents."""
    backbone = backbone_of(folder, trains=False)
    blocks = [*backbone.module.transformer_blocks, *backbone.module.single_transformer_blocks]
    features = FlowFeatures(backbone, blocks[:2], size=(side, side))
    condition = backbone.encode(["a"])
    texts = condition.embeds.shape[2] + condition.pooled.shape[1]
    learning = {"weight": 1.0, "learning_rate": 1e-3, "updates": 1, **options}

    def decode(latents):
        return backbone.pipeline.vae.decode(backbone.decoder_input(latents, (side, side))).sample / 2 + 0.5

    torch.manual_seed(0)
    eyed = FeatureDiscriminator(eye, [3, 3, 3, 3], condition=texts + 8, width=8)
    tokens = side // TOKEN
    content = EnlargedDiscriminator(eye, [3, 3, 3, 3], condition=texts + 8, width=8)
    latent = LatentDiscriminator(2, backbone.module.inner_dim, condition=texts + 16, width=8)
    return {
        "pictures": PictureOpponent(
            eyed, read, decode, count=3, lattice_weight=lattice_weight, squares=tokens, **learning
        ),
        "latents": LatentOpponent(
            latent, read, features, Condition._make, levels=(0.1, 0.8), finer=2.0, older=older, **learning
        ),
        "enlarged": EnlargedOpponent(content, read, decode, side=64, noise=0.1, older=older, **learning),
    }


def encoder_of(backbone):
    return lambda texts: backbone.encode(backbone.tokenize(texts))


def trainer_of(folder, side=32, trajectory_steps=(3, 4), opponents=None, lateness=2.0, answers=None, **options):
    backbone, before = backbone_of(folder, trains=True), backbone_of(folder, trains=False)
    data = FlowData(photographs(), before.latents, size=side, category_weights={}, seed=3)
    encode = encoder_of(before)
    trajectories = trajectories_of(backbone, encode, side=side, steps=trajectory_steps)
    flows = Flows(backbone, before, encode, (side, side))
    to_steps = StepAnswers(flows, trajectories=trajectories, lateness=lateness)
    knobs = {
        "steps": 12,
        "batch": 4,
        "learning_rate": 1e-3,
        "warmup": 0,
        "anchor_weight": 1.0,
        "trained_share": 1.0,
        "ema_decay": 0.5,
        "seed": 0,
        "preview_prompts": ("a rose", "a cat"),
        **options,
    }
    answered = answers(flows) if answers else to_steps
    against = opponents or opponents_of(folder, side)
    save = backbone.pipeline.save_pretrained
    trainer = AdversarialTrainer(flows, answered, against, data, save, **knobs)
    trainer.dtype = torch.float32
    return trainer


def weights_of(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def moved(module, before):
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


def test_all_learn_and_the_flow_before_stays(random_flux):
    trainer = trainer_of(random_flux)
    pictures, latents, enlarged = trainer.opponents.values()
    parts = (
        trainer.module,
        pictures.module,
        latents.module,
        enlarged.module,
        trainer.flows.before.module,
        latents.features.backbone.module,
    )
    kept = [weights_of(part) for part in parts]
    metrics = trainer.step(0)
    changed = [moved(part, before) for part, before in zip(parts, kept, strict=True)]
    assert any(name.startswith("single_transformer_blocks") for name in changed[0])
    assert {name.partition(".")[0] for name in changed[1]} == {"heads"}
    assert {name.partition(".")[0] for name in changed[2]} == {"places", "wholes"}
    assert {"place", "whole", "fine", "finer", "wanted"} <= {name.partition(".")[0] for name in changed[3]}
    assert not changed[4]
    assert not changed[5]
    said = {"discriminator", "on_photographs", "on_pictures", "adversarial"}
    wanted = {f"{name}_{what}" for name in trainer.opponents for what in said}
    assert metrics.keys() == wanted | {"anchor", "grad_norm"}
    assert all(isinstance(value, float) for value in metrics.values())


def test_opponents_learn_alone_at_first(random_flux):
    trainer = trainer_of(random_flux, warmup=2)
    before = weights_of(trainer.module)
    kept = {name: weights_of(opponent.module) for name, opponent in trainer.opponents.items()}
    first, second = trainer.step(0), trainer.step(1)
    assert not moved(trainer.module, before)
    assert all(moved(opponent.module, kept[name]) for name, opponent in trainer.opponents.items())
    assert not any("adversarial" in name for name in first | second)
    trainer.step(2)
    assert moved(trainer.module, before)


def test_what_opponents_ask_for_teaches_the_flow_alone(random_flux):
    trainer = trainer_of(random_flux)
    trainer.step(0)
    learned = [one for opponent in trainer.opponents.values() for one in opponent.module.parameters()]
    assert all(parameter.grad is None for parameter in learned)


def test_the_flow_answers_as_before_until_it_has_learned(random_flux):
    """The anchor is the distance from the flow before, so it is nothing at the first step and not after it."""
    trainer = trainer_of(random_flux)
    assert trainer.step(0)["anchor"] == pytest.approx(0, abs=1e-9)
    assert trainer.step(1)["anchor"] > 1e-8


def test_a_strong_anchor_holds_the_flow(random_flux):
    near, far = (trainer_of(random_flux, anchor_weight=weight) for weight in (1e4, 0.0))
    for index in range(6):
        held, free = near.step(index)["anchor"], far.step(index)["anchor"]
    assert held < free / 2


def test_answers_weigh_by_their_level(random_flux):
    trainer = trainer_of(random_flux)
    given = []
    for opponent in trainer.opponents.values():
        opponent.asks = lambda fake, weights, generator: given.append(weights) or (fake.shown[0].sum() * 0, {})
    trainer.step(0)
    assert len(given) == len(trainer.opponents)
    assert all(torch.equal(weights, 1 - trainer.answers.trajectories.at(0).sigma ** 2) for weights in given)


def test_nothing_is_asked_of_what_is_not_drawn_yet(random_flux):
    """At level 1 the adversarial weight is zero: with pure noise alone, an unanchored flow gets no gradient at all."""
    trainer = trainer_of(random_flux, anchor_weight=0.0, trajectory_steps=(1,))
    before = weights_of(trainer.module)
    assert trainer.step(0)["grad_norm"] == 0
    assert not moved(trainer.module, before)


def test_a_resume_in_mid_period_is_exact(random_flux):
    whole, cut = trainer_of(random_flux), trainer_of(random_flux)
    for index in range(5):
        whole.step(index)
        if index < 4:
            cut.step(index)
    state = copy.deepcopy(cut.state_dict())
    fresh = trainer_of(random_flux)
    fresh.load_state_dict(state)
    fresh.step(4)
    learned = [(one.module, *(opponent.module for opponent in one.opponents.values())) for one in (fresh, whole)]
    for ours, theirs in zip(*learned, strict=True):
        assert not moved(ours, weights_of(theirs))
    assert all(torch.equal(fresh.ema.shadow[name], value) for name, value in whole.ema.shadow.items())


def test_the_state_survives_a_file(random_flux, tmp_path):
    trainer = trainer_of(random_flux)
    trainer.step(0)
    torch.save(trainer.state_dict(), tmp_path / "state.pt")
    fresh = trainer_of(random_flux)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert fresh.answers.trajectories.drawn.texts == trainer.answers.trajectories.drawn.texts
    assert torch.equal(fresh.answers.trajectories.drawn.x, trainer.answers.trajectories.drawn.x)


def test_previews_and_export_are_the_averages(random_flux, tmp_path):
    trainer = trainer_of(random_flux)
    for index in range(3):
        trainer.step(index)
    pictures = trainer.preview()
    assert [one.size for one in pictures] == [SIZE, SIZE]
    trainer.export(tmp_path)
    opened = FluxPipeline.from_pretrained(tmp_path).transformer.state_dict()
    name = "proj_out.weight"
    torch.testing.assert_close(opened[name], trainer.ema.shadow[name])
    assert not torch.equal(opened[name], trainer.module.state_dict()[name])
    assert trainer.evaluate() == {}


def test_what_is_exported_may_lie_on_the_way(random_flux, tmp_path):
    trainer = trainer_of(random_flux, trained_share=0.25)
    for index in range(3):
        trainer.step(index)
    name = "proj_out.weight"
    now, average = trainer.module.state_dict()[name].clone(), trainer.ema.shadow[name].clone()
    trainer.export(tmp_path)
    before, exported = (
        FluxPipeline.from_pretrained(one).transformer.state_dict()[name] for one in (random_flux, tmp_path)
    )
    torch.testing.assert_close(exported, before + 0.25 * (average - before))
    assert torch.equal(trainer.module.state_dict()[name], now)
    assert torch.equal(trainer.ema.shadow[name], average)


def test_captions_of_photographs_are_made_longer(random_flux):
    asked = []

    def elaborate(captions, index):
        asked.append((index, len(captions)))
        return [f"{caption}, soft light" for caption in captions]

    trainer = trainer_of(random_flux, elaborate=elaborate)
    read, encode = [], trainer.flows.encode
    trainer.flows = trainer.flows._replace(encode=lambda texts: read.append(list(texts)) or encode(texts))
    trainer.step(0)
    assert asked == [(1, 4)]
    assert [all(text.endswith(", soft light") for text in texts) for texts in read] == [True]


def test_the_flow_leaves_the_lattice_of_its_tokens(random_flux):
    """With hardly anything else to mind, its pictures of the same noise follow it less."""
    opponents = opponents_of(random_flux, 8 * TOKEN, lattice_weight=1e3)
    trainer = trainer_of(random_flux, side=8 * TOKEN, opponents=opponents, steps=40)
    found = [trainer.step(1)["pictures_lattice"] for _ in range(12)]
    assert found[-1] < found[0] - 0.2
