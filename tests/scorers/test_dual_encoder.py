"""The score is scale times the cosine of the model's two embeddings, in every layout, and keeps a scorer's contract."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.hub import card as cards
from realgen.scorers import dual_encoder
from realgen.scorers._scoring import NO_PROMPT
from realgen.scorers.dual_encoder import Options, build
from tiny_clip import (
    MEAN,
    SIDE,
    STD,
    TEXTS,
    by_hand,
    difficult_pictures,
    openai_tensors,
    picture_embedding,
    pictures,
    random_clip,
    save_tokenizer,
    text_embedding,
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP as transformers saves it, with its tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    random_clip().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return build(Options(model=str(folder)), FLOAT32)


def cosine(a, b):
    return (a @ b / a.norm() / b.norm()).item()


def directly(model, tokenizer, image, text):
    """transformers' own forward on one picture and one text."""
    ids = torch.tensor([tokenizer(text).input_ids])
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=by_hand(image)[None])
    return out.logits_per_image.item() / math.exp(model.logit_scale.item())


def values(scores):
    return [score.value for score in scores]


def test_it_is_the_cosine_that_transformers_computes_of_one_picture_and_one_text(scorer, folder):
    model, tokenizer = random_clip(), save_tokenizer(folder)
    images = [*pictures(2), *pictures(1, size=(64, 96)), *pictures(1, size=(96, 32))]
    found = values(scorer(images, TEXTS))
    wanted = [directly(model, tokenizer, *pair) for pair in zip(images, TEXTS, strict=True)]
    assert found == pytest.approx(wanted, abs=1e-5)
    assert np.ptp(wanted) > 0.02


@pytest.mark.parametrize("layout", ["openai.pt", "openai.safetensors", "open_clip.pt", "folder"])
def test_every_layout_gives_the_same_cosines(layout, tmp_path, tokenizer):
    is_open_clip = layout == "open_clip.pt"
    kind = {"act": "gelu", "head_width": 32} if is_open_clip else {"act": "quick_gelu", "head_width": 64}
    tensors = openai_tensors(random_clip(seed=3, **kind))
    path = tmp_path / layout
    if layout == "openai.pt":
        torch.save(tensors, path)
    elif is_open_clip:
        wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
        torch.save({"epoch": 3, "state_dict": wrapped}, path)
    else:
        path.mkdir(exist_ok=True) if layout == "folder" else None
        save_file(tensors, path / "model.safetensors" if layout == "folder" else path)
    options = {"activation": kind["act"], "vision_head_width": kind["head_width"], "tokenizer": str(tokenizer)}
    scorer = build(Options(model=str(path), **options), FLOAT32)
    letters = save_tokenizer(tmp_path / "t")
    wanted = [
        cosine(picture_embedding(tensors, by_hand(image), **kind), text_embedding(tensors, tokens, act=kind["act"]))
        for image, tokens in zip(pictures(), (letters(text).input_ids for text in TEXTS), strict=True)
    ]
    assert values(scorer(pictures(), TEXTS)) == pytest.approx(wanted, abs=1e-5)


def test_long_clip_scores_a_text_beyond_the_first_table(tmp_path, tokenizer):
    tensors = openai_tensors(random_clip(positions=40))
    tensors["positional_embedding_res"] = torch.randn(40, 64, generator=torch.Generator().manual_seed(1))
    torch.save(tensors, tmp_path / "longclip.pt")
    scorer = build(Options(model=str(tmp_path / "longclip.pt"), tokenizer=str(tokenizer)), FLOAT32)
    text = "a long text of thirty letters and"
    tokens = scorer.tokens(text)
    assert 20 < len(tokens) <= 40
    wanted = cosine(picture_embedding(tensors, by_hand(pictures()[0])), text_embedding(tensors, tokens))
    assert scorer(pictures(1), [text])[0].value == pytest.approx(wanted, abs=1e-5)
    assert scorer.num_truncated == 0


def test_a_long_text_is_cut_its_end_kept_and_counted(folder):
    scorer = build(Options(model=str(folder)), FLOAT32)
    start, *letters, end = scorer._all_tokens("abcdefghijklmnopqrstuvwxyz")
    assert len(letters) == 26
    assert scorer.tokens("abcdefghijklmnopqrstuvwxyz") == [start, *letters[:14], end]
    assert scorer.tokens("abcdefghijklmn") == [start, *scorer._all_tokens("abcdefghijklmn")[1:]]
    long, cut = scorer(pictures(1) * 2, ["abcdefghijklmnopqrstuvwxyz", "abcdefghijklmn"])
    assert long.value != cut.value  # the last letter kept does not end a word
    assert (long.reason, scorer.num_truncated) == ("", 1)
    tensors = openai_tensors(random_clip())
    wanted = cosine(
        picture_embedding(tensors, by_hand(pictures(1)[0])), text_embedding(tensors, [start, *letters[:14], end])
    )
    assert long.value == pytest.approx(wanted, abs=1e-5)
    scorer(pictures(1), ["abcdefghijklmnopqrstuvwxyz"])
    assert scorer.num_truncated == 2


@pytest.mark.parametrize(("scale", "factor"), [(1.0, 1.0), (100.0, 100.0), (2.5, 2.5), (None, math.exp(2.0))])
def test_the_scale_multiplies_the_cosine_and_bounds_the_range(folder, scorer, scale, factor):
    scaled = build(Options(model=str(folder), scale=scale), FLOAT32)
    wanted = [factor * value for value in values(scorer(pictures(), TEXTS))]
    assert values(scaled(pictures(), TEXTS)) == pytest.approx(wanted, rel=1e-5)
    assert (scaled.info.low, scaled.info.high) == pytest.approx((-factor, factor))
    assert not scaled.info.is_detector
    assert scaled.info.source == str(folder)


def test_a_dot_product_that_grows_with_the_embedding_does_not_raise_the_score(tmp_path, scorer):
    louder = random_clip()
    louder.visual_projection.weight.mul_(7)
    louder.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found = values(build(Options(model=str(tmp_path)), FLOAT32)(pictures(), TEXTS))
    assert found == pytest.approx(values(scorer(pictures(), TEXTS)), abs=1e-5)


def test_a_batch_of_four_is_four_batches_of_one_in_any_order(folder, scorer):
    images, texts = pictures(), TEXTS
    alone = build(Options(model=str(folder)), Machine(device="cpu", dtype="float32", batch=1))
    together = values(scorer(images, texts))
    assert values(alone(images, texts)) == pytest.approx(together, abs=1e-5)
    assert values(scorer(images[::-1], texts[::-1]))[::-1] == pytest.approx(together, abs=1e-5)
    before = torch.random.get_rng_state()
    single = [alone([image], [text])[0].value for image, text in zip(images, texts, strict=True)]
    assert single == pytest.approx(together, abs=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_difficult_pictures_are_scored_and_broken_ones_are_not(scorer):
    images, broken = difficult_pictures()
    copies = [image.copy() for image in images]
    scores = scorer([*images, broken], ["a cat"] * (len(images) + 1))
    assert len(scores) == len(images) + 1
    assert all(-1 <= score.value <= 1 for score in scores[:-1])
    assert scores[-1].value is None
    assert scores[-1].reason
    assert all(a.mode == b.mode and a.tobytes() == b.tobytes() for a, b in zip(images, copies, strict=True))
    assert scorer([], []) == []
    with pytest.raises(ValueError, match="1 images, 2 prompts"):
        scorer(pictures(1), ["a", "b"])


def test_a_picture_that_comes_alone_is_not_measured_against_an_empty_text(scorer):
    assert scorer(pictures(1), [""]) == [Score(None, NO_PROMPT)]


def test_texts_are_embedded_once_and_not_without_end(folder, monkeypatch):
    scorer = build(Options(model=str(folder)), FLOAT32)
    seen = []
    embed = scorer._embed_texts
    monkeypatch.setattr(scorer, "_embed_texts", lambda texts: seen.extend(texts) or embed(texts))
    monkeypatch.setattr(dual_encoder, "CACHED_TEXTS", 2)
    scorer.embed_texts(["a", "b", "a"])
    scorer.embed_texts(["b", "a"])
    assert seen == ["a", "b"]
    scorer.embed_texts(["c"])  # b was used longest ago
    scorer.embed_texts(["a"])
    assert seen == ["a", "b", "c"]
    assert scorer.embed_texts(["b", "d", "e", "f"]).shape == (4, 24)
    assert len(scorer._texts) == 2


def test_the_gradient_to_the_pixels_is_that_of_finite_differences(folder):
    scorer = build(Options(model=str(folder), scale=10.0), FLOAT32)
    scorer.embed_texts(["a cat", "a dog"])  # kept: transformers 4 masks no text in float64
    scorer.module.double()
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(2, 3, SIDE, SIDE, generator=generator, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    scores = scorer.differentiable(pixels, ["a cat", "a dog"])
    assert scores.shape == (2,)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    step = 1e-5 * direction
    with torch.no_grad():
        ahead, behind = (scorer.differentiable(pixels + sign * step, ["a cat", "a dog"]) for sign in (1, -1))
    assert ((ahead - behind).sum() / 2e-5).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)
    assert all(row.abs().max() > 1e-4 for row in gradient)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (48, 40)])
def test_the_differentiable_score_is_the_score(scorer, size):
    images = pictures(size=size)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    found = scorer.differentiable(pixels.requires_grad_(), TEXTS)
    # torch's resize is not Pillow's, least of all on noise
    assert found.tolist() == pytest.approx(values(scorer(images, TEXTS)), abs=1e-5 if size[0] == SIDE else 0.05)
    found.sum().backward()
    assert pixels.grad.abs().max() > 0
    assert not any(weight.requires_grad for weight in scorer.module.parameters())
    assert not scorer.module.training


def test_a_small_model_with_a_tokenizer_of_its_own_end_is_read_from_its_folder(tmp_path):
    model = random_clip(end=1)
    model.save_pretrained(tmp_path)
    tokenizer = save_tokenizer(tmp_path, ends_last=False)
    scorer = build(Options(model=str(tmp_path)), FLOAT32)
    wanted = [directly(model, tokenizer, *pair) for pair in zip(pictures(), TEXTS, strict=True)]
    assert values(scorer(pictures(), TEXTS)) == pytest.approx(wanted, abs=1e-5)
    assert np.ptp(scorer.embed_texts(TEXTS).numpy(), axis=0).max() > 0.01


@pytest.mark.parametrize("end", [1, 2, 40])
def test_a_tokenizer_that_ends_texts_elsewhere_than_the_model_reads_them_is_refused(tmp_path, end):
    random_clip(end=end).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, ends_last=end == 1)
    with pytest.raises(ModelError, match="its tokenizer ends them with"):
        build(Options(model=str(tmp_path)), FLOAT32)


def test_an_old_configuration_says_2_and_means_the_highest_token(tmp_path, scorer):
    random_clip(end=2).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    found = values(build(Options(model=str(tmp_path)), FLOAT32)(pictures(), TEXTS))
    assert found == pytest.approx(values(scorer(pictures(), TEXTS)), abs=1e-6)


def test_mean_and_deviation_are_those_of_the_folder(tmp_path, folder, scorer):
    random_clip().save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    image = Image.new("RGB", (SIDE, SIDE), (200, 60, 90))
    shifted = [
        level / 255 - (level / 255 - mean) / std for level, mean, std in zip((200, 60, 90), MEAN, STD, strict=True)
    ]
    config = f'{{"image_mean": {shifted}, "image_std": [1, 1, 1]}}'  # the same normalised colour
    (tmp_path / "preprocessor_config.json").write_text(config)
    found = build(Options(model=str(tmp_path)), FLOAT32)([image], ["a"])[0].value
    assert found == pytest.approx(scorer([image], ["a"])[0].value, abs=1e-5)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert abs(build(Options(model=str(tmp_path)), FLOAT32)([image], ["a"])[0].value - found) > 1e-3


def test_an_automatic_number_format_is_float32(folder):
    assert build(Options(model=str(folder)), Machine(device="cpu")).module.dtype == torch.float32
    coarse = build(Options(model=str(folder)), Machine(device="cpu", dtype="bfloat16"))
    assert coarse.module.dtype == torch.bfloat16
    assert coarse.embed_texts(["a"]).dtype == torch.float32


def test_no_model_and_no_tokenizer_are_said(tmp_path, folder):
    with pytest.raises(ConfigError, match="no model"):
        build(Options(), FLOAT32)
    with pytest.raises(ModelError, match="no model at"):
        build(Options(model=str(tmp_path / "nowhere")), FLOAT32)
    torch.save(openai_tensors(random_clip()), tmp_path / "clip.pt")
    with pytest.raises(ModelError, match="no tokenizer in") as caught:
        build(Options(model=str(tmp_path / "clip.pt")), FLOAT32)
    assert "options.tokenizer" in caught.value.hint
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match="holds a bert, not a clip"):
        build(Options(model=str(tmp_path)), FLOAT32)


SHIPPED = {"clip-vit-l-14": 100.0, "longclip-l": 1.0, "pickscore": None, "hps-v2.1": 1.0}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_cards_are_for_this_plugin(name):
    card = cards.read(name)
    assert (card.room, card.plugin) == ("scorers", "dual_encoder")
    options = configure("scorers", "dual_encoder", card.options)
    assert options.scale == SHIPPED[name]
    assert (options.activation == "gelu") == (options.vision_head_width == 80) == (name == "hps-v2.1")
