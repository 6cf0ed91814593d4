"""Flow matching of a random FLUX.1: the loss falls, a resume is exact, guidance is what the formula says."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from conftest import FLOAT32
from realgen.formulas.flow import interpolate
from realgen.generators._loading import load_pipeline
from realgen.generators.flux import FluxBackbone
from realgen.train import flow_sft
from realgen.train.flow_data import FlowData
from realgen.train.flow_sft import FlowSftTrainer, guided_velocity
from realgen.train.photographs import Photograph
from realgen.train.representation import RepresentationAlignment

SIZE = (32, 32)


def photographs(count=6):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 255, size=(count, 3))
    pixels = [np.broadcast_to(colour, (32, 32, 3)).astype(np.uint8).copy() for colour in colours]
    return [Photograph(f"{i}.png", one, "plants", "rose", ("a rose",), "flowers") for i, one in enumerate(pixels)]


def backbone_of(folder, *, trains=True):
    pipeline = load_pipeline(FluxPipeline, str(folder), FLOAT32)
    pipeline.transformer.requires_grad_(trains)
    return FluxBackbone(pipeline, max_text_tokens=32)


@pytest.fixture
def data(random_flux):
    return FlowData(photographs(), backbone_of(random_flux).latents, size=32, category_weights={}, seed=3)


def trainer_of(folder, data, *, backbone=None, **options):
    backbone = backbone or backbone_of(folder)
    pipeline = backbone.pipeline
    knobs = {
        "steps": 40,
        "batch": 4,
        "learning_rate": 3e-3,
        "text_learning_rate": 1e-3,
        "caption_dropout": 0.2,
        "ema_decay": 0.5,
        "size": SIZE,
        "preview_prompts": ("a", "b"),
        **options,
    }
    texts = nn.ModuleList([pipeline.text_encoder, pipeline.text_encoder_2])
    return FlowSftTrainer(backbone, texts, data, data, pipeline.save_pretrained, **knobs)


def test_a_batch_depends_on_seed_and_index_alone(data):
    one, same = (data.batch(5, count=4, caption_dropout=0.5) for _ in range(2))
    assert one.captions == same.captions
    assert torch.equal(one.x, same.x)
    assert not torch.equal(one.x, data.batch(6, count=4, caption_dropout=0.5).x)


def test_a_batch_lies_on_the_line_from_latents_to_noise(data):
    batch = data.batch(0, count=6, caption_dropout=0)
    clean = batch.x - batch.sigma.view(-1, 1, 1) * batch.target
    noise = clean + batch.target
    torch.testing.assert_close(interpolate(clean, noise, batch.sigma), batch.x)
    assert ((batch.sigma > 0) & (batch.sigma < 1)).all()
    assert noise.std().item() == pytest.approx(1, abs=0.15)


def test_categories_are_drawn_by_their_weight(random_flux):
    mixed = photographs(2)
    mixed[1] = Photograph("1.png", mixed[1].pixels, "people", "man", (), "pixabay")
    data = FlowData(mixed, backbone_of(random_flux).latents, size=32, category_weights={"people": 0.0}, seed=0)
    batch = data.batch(0, count=32, caption_dropout=0)
    clean = batch.x - batch.sigma.view(-1, 1, 1) * batch.target
    distances = torch.cdist(clean.flatten(1), data._latents[:, 0].float().flatten(1)).min(1).values
    assert (distances < 1e-3).all()


def test_captions_are_dropped_at_the_asked_rate(data):
    captions = data.batch(0, count=400, caption_dropout=0.25).captions
    assert captions.count("") / 400 == pytest.approx(0.25, abs=0.08)


def test_the_loss_falls_and_everything_asked_for_moves(random_flux, data):
    trainer = trainer_of(random_flux, data)
    before = {name: value.clone() for name, value in trainer.module.named_parameters()}
    first = trainer.evaluate()["held_out_loss"] if len(data.photographs) >= 256 else None
    losses = [trainer.step(index)["loss"] for index in range(40)]
    assert first is None
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    moved = {name for name, value in trainer.module.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("flow.single_transformer_blocks") for name in moved)
    assert any(name.startswith("texts.1") for name in moved)


def test_frozen_texts_stay(random_flux, data):
    trainer = trainer_of(random_flux, data, text_learning_rate=0.0)
    before = [value.clone() for value in trainer.module["texts"].parameters()]
    trainer.step(0)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.module["texts"].parameters(), strict=True))


def test_the_shorter_texts_of_a_batch_are_read_with_less_padding(random_flux, data, monkeypatch):
    trainer = trainer_of(random_flux, data, batch=6)
    batch = data.batch(0, count=6, caption_dropout=0.0)
    batch.captions[:] = ["a rose", "a red rose", "a rose in the rain with many more words", "a", "b " * 12, "rose"]
    trainer.short_reader = FluxBackbone(trainer.backbone.pipeline, max_text_tokens=8)
    (shorter, short), (longer, long) = trainer._parts(batch)
    assert sorted(shorter.captions) == ["a", "a rose", "rose"]
    assert {short.max_text_tokens, long.max_text_tokens} == {8, 32}
    assert short.encode(shorter.captions).embeds.shape[1] == 8
    for part in (shorter, longer):
        for place, caption in enumerate(part.captions):
            assert torch.equal(part.target[place], batch.target[batch.captions.index(caption)])
    trainer.short_reader = FluxBackbone(trainer.backbone.pipeline, max_text_tokens=2)
    assert [reader.max_text_tokens for _, reader in trainer._parts(batch)] == [32, 32]


def test_halves_give_the_gradient_of_the_whole(random_flux, data):
    whole, halved = trainer_of(random_flux, data, batch=5), trainer_of(random_flux, data, batch=5)
    halved.short_reader = FluxBackbone(halved.backbone.pipeline, max_text_tokens=32)
    losses = [{name: float(value) for name, value in trainer.step(0).items()} for trainer in (whole, halved)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def aligned(folder, **options):
    def encode(images):
        quadrants = [np.asarray(image.resize((2, 2))).reshape(4, 3) for image in images]
        return torch.from_numpy(np.stack(quadrants)).float()

    plain = backbone_of(folder)
    data = FlowData(photographs(), plain.latents, size=32, category_weights={}, seed=3, features=encode)
    trainer = trainer_of(folder, data, **options)
    layer = trainer.backbone.module.single_transformer_blocks[0]
    torch.manual_seed(1)
    alignment = RepresentationAlignment(layer, width=trainer.backbone.module.inner_dim, features=3, weight=0.5)
    return trainer_of(folder, data, backbone=trainer.backbone, alignment=alignment, **options)


def test_an_aligned_layer_learns_what_the_encoder_sees(random_flux):
    trainer = aligned(random_flux, batch=6)
    losses = [trainer.step(index) for index in range(30)]
    assert set(losses[0]) >= {"loss", "alignment_loss", "grad_norm_alignment"}
    found = [one["alignment_loss"] for one in losses]
    assert np.mean(found[-5:]) < np.mean(found[:5]) - 0.1


def test_an_aligned_run_resumes_exactly(random_flux):
    whole, cut, resumed = (aligned(random_flux) for _ in range(3))
    for index in range(4):
        last = whole.step(index)
    for index in range(2):
        cut.step(index)
    resumed.load_state_dict(cut.state_dict())
    assert [resumed.step(index) for index in (2, 3)][-1] == last


def test_a_resume_is_exact(random_flux, data, tmp_path):
    whole = trainer_of(random_flux, data)
    for index in range(6):
        last = whole.step(index)
    cut = trainer_of(random_flux, data)
    for index in range(3):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed = trainer_of(random_flux, data)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        again = resumed.step(index)
    assert again == last
    for (name, one), (_, other) in zip(whole.module.named_parameters(), resumed.module.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    assert all(torch.equal(value, resumed.ema.shadow[name]) for name, value in whole.ema.shadow.items())


def test_previews_and_exports_are_the_average(random_flux, data, tmp_path):
    trainer = trainer_of(random_flux, data)
    trainer.step(0)
    live = {name: value.clone() for name, value in trainer.module.named_parameters()}
    assert [image.size for image in trainer.preview()] == [SIZE, SIZE]
    trainer.export(tmp_path / "model")
    exported = FluxPipeline.from_pretrained(tmp_path / "model").transformer
    assert torch.equal(exported.proj_out.weight, trainer.ema.shadow["flow.proj_out.weight"])
    assert all(torch.equal(value, live[name]) for name, value in trainer.module.named_parameters())


@torch.no_grad()
def test_guidance_is_the_formula(random_flux):
    backbone = backbone_of(random_flux)
    x, sigma = torch.randn(2, 4, 16), torch.tensor([0.3, 0.8])

    def plain(texts):
        return backbone.velocity(x, sigma, backbone.encode(texts), guidance=1.0, size=SIZE)

    with_text, without = plain(["a", "b"]), plain(["", ""])
    scale = torch.tensor([2.0, 5.0])
    guided = guided_velocity(backbone, ["a", "b"], scale=scale, size=SIZE)(x, sigma)
    expected = without + scale.view(-1, 1, 1) * (with_text - without)
    torch.testing.assert_close(guided, expected, atol=1e-5, rtol=1e-4)


def test_distilling_moves_towards_the_guided_teacher(random_flux, data):
    teacher = backbone_of(random_flux, trains=False)
    trainer = trainer_of(random_flux, data, teacher=teacher, text_learning_rate=0.0, caption_dropout=0.0)
    frozen = [value.clone() for value in teacher.module.parameters()]
    losses = [trainer.step(index)["loss"] for index in range(40)]
    assert np.mean(losses[-8:]) < np.mean(losses[:8])
    assert all(torch.equal(a, b) for a, b in zip(frozen, teacher.module.parameters(), strict=True))


def test_above_a_level_no_guidance_is_distilled(random_flux, data, monkeypatch):
    """What is told stays the drawn scale; what the teacher is led by is 1 there."""
    told, led = [], []
    backbone = backbone_of(random_flux)
    plain = backbone.velocity
    backbone.velocity = lambda *args, guidance, **rest: (
        told.append(guidance),
        plain(*args, guidance=guidance, **rest),
    )[1]

    def guided(*args, scale, **rest):
        led.append(scale)
        return guided_velocity(*args, scale=scale, **rest)

    monkeypatch.setattr(flow_sft, "guided_velocity", guided)
    teacher = backbone_of(random_flux, trains=False)
    options = {"teacher": teacher, "guided_below": 0.5, "distil_guidance": (3.0, 6.0), "batch": 16}
    trainer = trainer_of(random_flux, data, backbone=backbone, text_learning_rate=0.0, **options)
    trainer.step(0)
    sigma = data.batch(0, count=16, caption_dropout=0.2).sigma
    assert (told[0] >= 3).all()
    assert torch.equal(led[0], torch.where(sigma <= 0.5, told[0], 1.0))
    assert (sigma <= 0.5).any()


@torch.no_grad()
def test_half_of_the_guidance_leads_away_from_a_weaker_model(random_flux):
    backbone, weaker = backbone_of(random_flux), backbone_of(random_flux)
    for value in weaker.module.parameters():
        value.mul_(0.9)
    x, sigma = torch.randn(2, 4, 16), torch.tensor([0.3, 0.8])

    def plain(model, texts):
        return model.velocity(x, sigma, model.encode(texts), guidance=1.0, size=SIZE)

    with_text, without, weak = plain(backbone, ["a", "b"]), plain(backbone, ["", ""]), plain(weaker, ["a", "b"])
    guided = guided_velocity(backbone, ["a", "b"], scale=3.0, size=SIZE, weaker=weaker)(x, sigma)
    torch.testing.assert_close(guided, 3 * with_text - without - weak, atol=1e-5, rtol=1e-4)
    assert (with_text - weak).abs().max() > 1e-3


def test_what_is_made_longer_is_read_by_who_learns_and_not_by_the_teacher(random_flux, data):
    teacher, backbone = backbone_of(random_flux, trains=False), backbone_of(random_flux)
    read = {"teacher": [], "learner": []}
    for name, model in (("teacher", teacher), ("learner", backbone)):
        plain = model.encode
        model.encode = lambda texts, plain=plain, name=name: (read[name].extend(texts), plain(texts))[1]
    trainer = trainer_of(
        random_flux,
        data,
        backbone=backbone,
        teacher=teacher,
        caption_dropout=0.0,
        elaborate=lambda captions, index: [f"{caption} {index}" for caption in captions],
    )
    trainer.step(7)
    assert all(text.endswith(" 7") for text in read["learner"])
    assert sorted(read["learner"]) == sorted(f"{text} 7" for text in read["teacher"] if text)


def test_captions_are_made_longer_without_a_teacher_too(random_flux, data):
    backbone, read = backbone_of(random_flux), []
    plain = backbone.encode
    backbone.encode = lambda texts: (read.extend(texts), plain(texts))[1]
    trainer = trainer_of(
        random_flux,
        data,
        backbone=backbone,
        caption_dropout=0.0,
        elaborate=lambda captions, index: [f"{caption} {index}" for caption in captions],
    )
    trainer.step(7)
    assert read
    assert all(text.endswith(" 7") for text in read)


@pytest.mark.parametrize("distils", [False, True])
def test_tokens_made_ahead_teach_what_their_texts_do(random_flux, data, distils):
    found = []
    for ahead in (False, True):
        backbone = backbone_of(random_flux)
        options = {"teacher": backbone_of(random_flux, trains=False)} if distils else {}
        if distils:
            options["elaborate"] = lambda captions, index: [f"{caption} {index}" for caption in captions]
        if ahead:
            options |= {"tokenize": backbone.tokenize, "loaders": 2}
        trainer = trainer_of(random_flux, data, backbone=backbone, text_learning_rate=0.0, **options)
        found.append([float(trainer.step(index)["loss"]) for index in range(3)])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
