"""The dual encoder: its text tower is the generator's, its loss and figures by hand, its folder a CLIP like any."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel

from conftest import FLOAT32, letter_tokenizers
from realgen.scorers.dual_encoder import Options, build
from realgen.train.dual_encoder import (
    MEAN,
    STD,
    DualEncoderTrainer,
    build_dual_encoder,
    contrastive_loss,
    patch_encoder,
    recalls,
)
from realgen.train.photographs import Photograph

SIDE = 32
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (20, 40, 220), "white": (245, 245, 245)}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "max_position_embeddings": 77}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letter_tokenizers(tmp_path_factory.mktemp("letters"))[0]


def text_config(tokenizer):
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    return CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=32, **size, **SPECIAL)


def small_clip(tokenizer):
    """A CLIP of one layer a tower."""
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": SIDE, "patch_size": 8, "projection_dim": 32}
    return CLIPModel(CLIPConfig(text_config=text_config(tokenizer).to_dict(), vision_config=vision, projection_dim=32))


def photographs(count, *, side=SIDE, seed=0):
    """Coloured noise, its colour said by two people."""
    rng = np.random.default_rng(seed)
    return [
        Photograph(
            f"{index}.jpg",
            np.clip(rng.normal(COLOURS[name], 25, (side, side, 3)), 0, 255).astype(np.uint8),
            name,
            "",
            (name, f"all {name}"),
            "",
        )
        for index in range(count)
        for name in [list(COLOURS)[index % 4]]
    ]


def trainer_of(tokenizer, model=None, *, held_out=None, **knobs):
    knobs = {"side": SIDE, "steps": 30, "batch": 8, "learning_rate": 1e-2, "ema_decay": 0.7, "seed": 0} | knobs
    return DualEncoderTrainer(
        model or small_clip(tokenizer), tokenizer, photographs(24), held_out or photographs(12, seed=1), **knobs
    )


@pytest.fixture(scope="module")
def trained(tokenizer):
    trainer = trainer_of(tokenizer)
    trainer.told = [trainer.step(index) for index in range(30)]
    return trainer


# ---- the model ------------------------------------------------------------------------------------------


def test_the_text_tower_is_a_copy_and_the_image_tower_is_new(tokenizer):
    torch.manual_seed(0)
    text_model = CLIPTextModel(text_config(tokenizer)).eval()
    model = build_dual_encoder(text_model, side=64).eval()
    source = {name.removeprefix("text_model."): value for name, value in text_model.state_dict().items()}
    copied = model.text_model.state_dict()
    assert source.keys() == copied.keys()
    assert all(torch.equal(source[name], copied[name]) for name in source)
    tokens = tokenizer(["a cat", "a red rose at dawn"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        found = model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
        assert torch.equal(found, wanted)
        assert not torch.equal(found[0], found[1])
        for parameter in model.text_model.parameters():
            parameter.zero_()
        assert torch.equal(text_model(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output, wanted)
        images = model.get_image_features(torch.zeros(1, 3, 64, 64))
    assert model.config.projection_dim == 32
    assert getattr(images, "pooler_output", images).shape == (1, 32)
    assert model.vision_model.embeddings.num_patches == 64
    assert 2e6 < sum(parameter.numel() for parameter in model.vision_model.parameters()) < 4e6


# ---- the loss and the figures ---------------------------------------------------------------------------


def units(count, width=5, seed=0):
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def by_hand(images, texts, captions, scale):
    """Cross entropy of every row and column with the even share of those of its caption."""
    total, count = 0.0, len(captions)
    for one, other in ((images, texts), (texts, images)):
        for i in range(count):
            logits = [scale * float(one[i] @ other[j]) for j in range(count)]
            whole = math.log(sum(map(math.exp, logits)))
            own = [j for j in range(count) if captions[j] == captions[i]]
            total += sum(whole - logits[j] for j in own) / len(own)
    return total / (2 * count)


@pytest.mark.parametrize("captions", [["a", "b", "c", "d"], ["a", "b", "a", "a"], ["a"] * 4])
def test_the_contrastive_loss_by_hand(captions):
    images, texts = units(4), units(4, seed=1)
    found = contrastive_loss(images, texts, captions, scale=torch.tensor(7.0))
    assert found.item() == pytest.approx(by_hand(images, texts, captions, 7.0), rel=1e-5)


def test_the_loss_at_its_ends():
    """Perfect pairs cost nothing, equal ones the logarithm of the batch, and twins that of two."""
    axes, scale = torch.eye(4), torch.tensor(100.0)
    assert contrastive_loss(axes, axes, list("abcd"), scale=scale).item() == pytest.approx(0, abs=1e-6)
    same = axes[:1].expand(4, 4)
    assert contrastive_loss(same, same, list("abcd"), scale=scale).item() == pytest.approx(math.log(4))
    twins = axes[[0, 0, 1, 2]]
    assert contrastive_loss(twins, twins, list("aabc"), scale=scale).item() == pytest.approx(math.log(2) / 2)
    assert contrastive_loss(twins, twins, list("abcd"), scale=scale).item() == pytest.approx(math.log(2) / 2)
    crossed = torch.eye(2)
    assert contrastive_loss(crossed, crossed.flip(0), ["a", "a"], scale=torch.tensor(3.0)).item() == pytest.approx(
        math.log(1 + math.exp(3)) - 1.5
    )


def test_the_loss_turns_with_the_two_sides_and_with_the_order():
    images, texts, captions = units(4), units(4, seed=1), ["a", "b", "a", "c"]
    scale = torch.tensor(5.0)
    wanted = contrastive_loss(images, texts, captions, scale=scale)
    assert contrastive_loss(texts, images, captions, scale=scale).item() == pytest.approx(wanted.item(), rel=1e-5)
    order = [2, 0, 3, 1]
    turned = contrastive_loss(images[order], texts[order], [captions[i] for i in order], scale=scale)
    assert turned.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_recalls_by_hand():
    """Texts whose own image is first, second, sixth and seventh of seven."""
    rank = torch.tensor([1, 2, 6, 7, 1, 1, 1])
    similarity = torch.empty(7, 7)
    for row in range(7):
        others = [place for place in range(7) if place != row]
        ahead = int(rank[row]) - 1
        similarity[row, others] = torch.tensor([0.9] * ahead + [0.1] * (6 - ahead))
        similarity[row, row] = 0.5
    assert recalls(similarity) == pytest.approx({"recall_1": 4 / 7, "recall_5": 5 / 7})
    assert recalls(torch.eye(9)) == {"recall_1": 1, "recall_5": 1}


def test_an_encoder_that_gives_all_images_alike_recalls_nothing():
    assert recalls(torch.ones(8, 8)) == {"recall_1": 0, "recall_5": 0}


# ---- training -------------------------------------------------------------------------------------------


def test_it_learns_colours(trained, tokenizer):
    """Eight pictures of four captions cannot cost less than the logarithm of the twins; chance is that of eight."""
    losses = [told["loss"] for told in trained.told]
    assert losses[0] > 1.6
    assert np.mean(losses[-5:]) < losses[0] - 0.3
    figures = trained.evaluate()
    assert set(figures) == {"recall_1", "recall_5", "zero_shot"}
    assert figures["zero_shot"] > 0.8
    assert figures["recall_5"] > trainer_of(tokenizer).evaluate()["recall_5"]
    assert all(told["scale"] <= math.exp(4.6) * 1.001 for told in trained.told)
    assert trained.preview() == []


def test_a_resume_is_exact(tokenizer, tmp_path):
    whole, cut, resumed = (trainer_of(tokenizer, steps=6) for _ in range(3))
    for index in range(4):
        last = whole.step(index)
    for index in range(2):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    torch.rand(1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(2, 4):
        again = resumed.step(index)
    assert again == last
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(torch.equal(value, resumed.ema.shadow[name]) for name, value in whole.ema.shadow.items())


def test_all_weights_learn_and_the_scale_stays_below_100(tokenizer):
    model = small_clip(tokenizer)
    with torch.no_grad():
        model.logit_scale.fill_(9)
    before = {name: value.clone() for name, value in model.named_parameters()}
    trainer = trainer_of(tokenizer, model)
    assert trainer.step(0)["scale"] == pytest.approx(math.exp(4.6), rel=1e-3)
    same = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert same == set()


def test_figures_need_what_they_are_of(tokenizer):
    plain = [
        Photograph(one.file, one.pixels, None, one.cls, one.captions[:1], one.source) for one in photographs(4, seed=1)
    ]
    assert trainer_of(tokenizer, held_out=plain).evaluate() == {}
    named = photographs(4, seed=1)[:3] + plain[3:]
    assert set(trainer_of(tokenizer, held_out=named).evaluate()) == {"recall_1", "recall_5", "zero_shot"}


def test_figures_are_the_average_s_and_leave_the_weights(trained):
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    shadow = {name: value.clone() for name, value in trained.ema.shadow.items()}
    assert trained.evaluate() == trained.evaluate()
    assert all(torch.equal(before[name], value) for name, value in trained.model.state_dict().items())
    assert all(torch.equal(shadow[name], value) for name, value in trained.ema.shadow.items())


@torch.no_grad()
def own_cosines(trainer, texts):
    """Of the trainer's average, on its held-out photographs."""
    trainer.ema.swap(trainer.model)
    trainer.model.eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    pixels = torch.from_numpy(trainer.held_out_pixels).permute(0, 3, 1, 2) / 255
    cosines = (trainer._embed_images((pixels - mean) / std) * trainer._embed_texts(texts)).sum(1)
    trainer.ema.swap(trainer.model)
    return cosines.tolist()


@pytest.mark.parametrize("side", [SIDE, 50])
def test_the_exported_folder_s_scorer_gives_the_trainer_s_own_cosines(tokenizer, tmp_path, side):
    held_out = photographs(6, side=side, seed=1)
    trainer = trainer_of(tokenizer, held_out=held_out)
    for index in range(3):
        trainer.step(index)
    trainer.export(tmp_path)
    texts = ["red", "a photo of green", "blue", "?", "a red white and blue flag", "x" * 100]
    scorer = build(Options(model=str(tmp_path)), FLOAT32)
    scores = scorer([Image.fromarray(one.pixels) for one in held_out], texts)
    wanted = own_cosines(trainer, texts)
    assert [score.value for score in scores] == pytest.approx(wanted, abs=2e-3)  # bfloat16 weights
    assert np.ptp(wanted) > 0.01
    assert scorer.num_truncated == 1
    assert CLIPModel.from_pretrained(tmp_path).config.vision_config.image_size == SIDE


def test_patches_are_what_the_image_tower_reads_before_its_last_layer(tokenizer, tmp_path):
    model = small_clip(tokenizer)
    model.save_pretrained(tmp_path)
    encode, width = patch_encoder(tmp_path, device=torch.device("cpu"))
    image = Image.fromarray(photographs(1, side=48)[0].pixels)
    found = encode([image, image.resize((SIDE, SIDE))])
    assert found.shape == (2, (SIDE // 8) ** 2, width)
    small = torch.from_numpy(np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (MEAN, STD))
    pixels = ((small - mean) / std)[None]
    tower = model.vision_model
    with torch.no_grad():  # the only layer is the last
        states = tower.pre_layrnorm(tower.embeddings(pixels))
    torch.testing.assert_close(found[:1], states[:, 1:], atol=1e-4, rtol=1e-3)
