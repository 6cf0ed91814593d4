"""The score is the first output of the head on the reward token's state, as transformers' own classes compute it."""

import inspect
import json
import math
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.hub import card as cards
from realgen.scorers._scoring import NO_PROMPT
from realgen.scorers.hpsv3 import PIXELS, PROMPT_MARK, REWARD_TOKEN, Options, Patches, _question, build
from tiny_clip import difficult_pictures, pictures

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
TEMPLATE = (
    "<|im_start|>system\nYou help.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROCESSOR = getattr(transformers, "Qwen2VLImageProcessorPil", None) or transformers.Qwen2VLImageProcessor
QUESTION = f"How good is {PROMPT_MARK}? {REWARD_TOKEN}\n\nEND\n"
PROMPTS = ["a cat", "a red rose in the rain", "?", "two dogs"]
SIZES = [(64, 64), (90, 40), (30, 200), (700, 500)]


def save_tokenizer(folder):
    from tokenizers.pre_tokenizers import ByteLevel

    words = {letter: index for index, letter in enumerate(sorted(ByteLevel.alphabet()))}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    ends = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder, **ends)
    tokenizer.add_tokens(SPECIALS, special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def small_config(tokenizer, rows):
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")
    }
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    scaling = {"type": "mrope", "mrope_section": [2, 3, 3]}
    text |= {"num_key_value_heads": 1, "rope_theta": 10000.0, "rope_scaling": scaling, "vocab_size": rows}
    config = {"model_type": "qwen2_vl", **text, **ids, "image_token_id": tokenizer.convert_tokens_to_ids(SPECIALS[-1])}
    return {**config, "video_token_id": 0, "vision_config": vision}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The base's configuration and tokenizer, the weights in the published layout, a question, and both models."""
    base = tmp_path_factory.mktemp("base")
    tokenizer = save_tokenizer(base)
    rows = len(tokenizer) + 1
    config = small_config(tokenizer, rows)
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 400}))  # the checkpoint's own says otherwise
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config)).eval().requires_grad_(False)
    head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Dropout(0.05), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(0)
    for name, weight in [*model.named_parameters(), *head.named_parameters()]:
        is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2 + float(is_norm)
    published = {}
    for name, tensor in model.state_dict().items():
        short = name.removeprefix("model.").replace("language_model.", "model.")
        published[short] = tensor.clone()
    published |= {f"rm_head.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
    assert {"visual.patch_embed.proj.weight", "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= set(
        published
    )
    weights = tmp_path_factory.mktemp("weights")
    save_file(published, weights / "HPSv3.safetensors")
    (weights / "question.txt").write_text(QUESTION)
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    return weights, base, tokenizer, model, head.eval()


@pytest.fixture(scope="module")
def options(files):
    weights, base, *_ = files
    return Options(model=str(weights), base=str(base), instruction=str(weights / "question.txt"))


@pytest.fixture(scope="module")
def scorer(options):
    return build(options, FLOAT32)


def images():
    return [pictures(1, size=size, seed=seed)[0] for seed, size in enumerate(SIZES)]


def processor():
    return PROCESSOR(min_pixels=PIXELS, max_pixels=PIXELS)


@torch.no_grad()
def slowly(files, image, prompt, *, two_dimensional=False):
    """Both outputs for one picture: transformers' image processor, the whole chat, its model, and the head by hand."""
    _, _, tokenizer, model, head = files
    seen = processor()(images=[image], return_tensors="pt")
    content = [{"type": "image"}, {"type": "text", "text": QUESTION.replace(PROMPT_MARK, prompt)}]
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    count = int(seen["image_grid_thw"].prod()) // 4
    ids = tokenizer(chat.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt").input_ids
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    if two_dimensional:
        place = model.model.get_rope_index
        types = {"mm_token_type_ids": (ids == model.config.image_token_id).int()}
        is_told = "mm_token_type_ids" in inspect.signature(place).parameters  # transformers 4 finds them out
        positions, _ = place(ids, image_grid_thw=seen["image_grid_thw"], **(types if is_told else {}))
    states = model.model(input_ids=ids, position_ids=positions, **seen).last_hidden_state
    state = states[ids == tokenizer.convert_tokens_to_ids(REWARD_TOKEN)][0].double().numpy()
    for place in (0, 3, 5):
        weight, bias = (getattr(head[place], part).detach().double().numpy() for part in ("weight", "bias"))
        state = weight @ state + bias if place == 5 else np.maximum(weight @ state + bias, 0)
    return state.tolist()


def values(scores):
    return [score.value for score in scores]


def test_it_is_the_heads_mean_at_the_reward_token_of_one_picture_and_one_prompt(scorer, files):
    wanted = [slowly(files, *pair) for pair in zip(images(), PROMPTS, strict=True)]
    assert values(scorer(images(), PROMPTS)) == pytest.approx([mean for mean, _ in wanted], abs=1e-4)
    assert np.ptp(wanted, axis=0).min() > 0.01
    assert not scorer.info.is_detector


def test_no_state_leaves_the_declared_range(scorer):
    """Served scorers travel as JSON, which has no infinity; the widest states that the last norm lets through."""
    info, scale = scorer.info, scorer._model.language_model.norm.weight.abs().max()
    assert math.isfinite(info.high)
    assert info.low == -info.high
    states = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    states = nn.functional.normalize(states, dim=-1) * 32**0.5 * scale
    assert scorer._head(states).abs().max() < info.high


def test_positions_run_through_text_and_picture_alike(scorer, files):
    image, prompt = images()[3], PROMPTS[1]
    found = scorer([image], [prompt])[0].value
    assert found == pytest.approx(slowly(files, image, prompt)[0], abs=1e-4)
    assert abs(found - slowly(files, image, prompt, two_dimensional=True)[0]) > 1e-3


def test_a_batch_of_four_is_four_batches_of_one_in_any_order(options, scorer):
    alone = build(options, Machine(device="cpu", dtype="float32", batch=1))
    before = torch.random.get_rng_state()
    together = values(scorer(images(), PROMPTS))
    assert values(alone(images(), PROMPTS)) == pytest.approx(together, abs=1e-5)
    assert values(scorer(images()[::-1], PROMPTS[::-1]))[::-1] == pytest.approx(together, abs=1e-5)
    assert torch.equal(before, torch.random.get_rng_state())


def test_difficult_pictures_are_scored_and_broken_ones_are_not(options):
    scorer = build(options, FLOAT32)
    given, broken = difficult_pictures()
    scores = scorer([*given, broken], ["a cat"] * (len(given) + 1))
    assert all(math.isfinite(score.value) for score in scores[:-1])
    assert scores[-1].value is None
    assert scores[-1].reason
    assert scorer([], []) == []


def test_a_picture_that_comes_alone_is_not_measured_against_an_empty_text(scorer):
    assert scorer(images()[:1], [""]) == [Score(None, NO_PROMPT)]


def test_the_models_own_tokens_in_a_prompt_are_words(scorer):
    said = scorer(images()[:1], [f"{REWARD_TOKEN}<|image_pad|><|vision_start|> a cat"])[0]
    assert math.isfinite(said.value)
    assert said.value != scorer(images()[:1], [" a cat"])[0].value


def test_patches_are_those_of_transformers_image_processor():
    for image in images():
        patches = Patches()(image)
        seen = processor()(images=[image], return_tensors="pt")
        rows, columns = patches.shape[0] * 2, patches.shape[1] * 2
        assert seen["image_grid_thw"].tolist() == [[1, rows, columns]]
        assert torch.allclose(patches.flatten(0, 2), seen["pixel_values"], atol=1e-6)


def test_a_picture_is_brought_to_256_patches_as_nearly_as_it_goes():
    fitted = Patches().fitted
    assert fitted(448, 448) == (448, 448)
    assert fitted(896, 896) == (448, 448)  # sqrt(896 * 896 / 200704) is exactly 2
    assert fitted(1024, 1024) == (448, 448)
    assert fitted(100, 100) == (448, 448)
    assert fitted(1, 1) == (448, 448)
    rng, smart_resize = np.random.default_rng(0), sys.modules[PROCESSOR.__module__].smart_resize
    for width, height in rng.integers(28, 2000, (300, 2)).tolist():
        rows, columns = smart_resize(height, width, factor=28, min_pixels=PIXELS, max_pixels=PIXELS)
        assert fitted(width, height) == (columns, rows), (width, height)


def test_a_picture_is_at_most_two_hundred_times_as_long_as_wide():
    for width, height in ((1, 5000), (9000, 3)):
        wide, high = Patches().fitted(width, height)
        assert max(wide, high) / min(wide, high) <= 250  # whole patches round
        assert wide * high < 3 * PIXELS


@pytest.mark.parametrize("prefixes", [("model.visual.", "model.language_model."), ("visual.", "language_model.")])
def test_newer_names_are_read_too(files, options, scorer, tmp_path, prefixes):
    renamed = {}
    for name, tensor in load_file(files[0] / "HPSv3.safetensors").items():
        for ours, theirs in zip(("visual.", "model."), prefixes, strict=True):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)  # noqa: PLW2901
                break
        renamed[name] = tensor
    save_file(renamed, tmp_path / "x.safetensors")
    again = build(options.model_copy(update={"model": str(tmp_path / "x.safetensors")}), FLOAT32)
    assert values(again(images()[:1], PROMPTS[:1])) == pytest.approx(
        values(scorer(images()[:1], PROMPTS[:1])), abs=1e-6
    )


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("rm_head.3.weight", r"the rm_head of .* lacks 3\.weight"),
        ("model.embed_tokens.weight", r"lacks language_model\.embed_tokens\.weight"),
        ("visual.merger.mlp.0.bias", r"lacks visual\.merger\.mlp\.0\.bias"),
        ("model.layers.1.self_attn.q_proj.bias", r"lacks language_model\.layers\.1\.self_attn\.q_proj\.bias"),
        (None, r"holds language_model\.layers\.9\.x, which this model has no place for"),
    ],
)
def test_what_is_missing_and_what_has_no_place_is_named(files, options, tmp_path, key, said):
    tensors = load_file(files[0] / "HPSv3.safetensors")
    if key is None:
        tensors["model.layers.9.x"] = torch.zeros(1)
    else:
        del tensors[key]
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=said):
        build(options.model_copy(update={"model": str(tmp_path / "x.safetensors")}), FLOAT32)


def test_a_base_that_it_was_not_trained_from_is_refused(files, options, tmp_path):
    tensors = load_file(files[0] / "HPSv3.safetensors")
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].clone()
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"knows 200 tokens, the tokenizer of .* 263"):
        build(options.model_copy(update={"model": str(tmp_path / "x.safetensors")}), FLOAT32)
    with pytest.raises(ModelError, match="cannot load"):
        build(options.model_copy(update={"base": str(tmp_path)}), FLOAT32)


@pytest.mark.parametrize(
    "question", ["no marks", f"{PROMPT_MARK} alone", f"{PROMPT_MARK} {REWARD_TOKEN} {REWARD_TOKEN}"]
)
def test_a_question_without_its_marks_is_refused(options, tmp_path, question):
    (tmp_path / "q.txt").write_text(question)
    with pytest.raises(ConfigError, match=r"must hold .* once"):
        build(options.model_copy(update={"instruction": str(tmp_path / "q.txt")}), FLOAT32)
    with pytest.raises(ConfigError, match="cannot read the instruction"):
        build(options.model_copy(update={"instruction": str(tmp_path / "none.txt")}), FLOAT32)


def test_the_shipped_question_asks_about_both_and_ends_with_the_token(options, scorer):
    question = _question(None)
    assert question.count(PROMPT_MARK) == question.count(REWARD_TOKEN) == 1
    assert question.rstrip().endswith(REWARD_TOKEN)
    shipped = build(options.model_copy(update={"instruction": None}), FLOAT32)
    assert shipped(images()[:1], PROMPTS[:1])[0].value != scorer(images()[:1], PROMPTS[:1])[0].value


def test_no_model_is_said():
    with pytest.raises(ConfigError, match="no model"):
        build(Options(), FLOAT32)


def test_the_head_stays_in_float32(options, scorer):
    coarse = build(options, Machine(device="cpu", dtype="bfloat16"))
    assert coarse._model.dtype == torch.bfloat16
    assert coarse._head[0].weight.dtype == torch.float32
    assert coarse(images()[:1], PROMPTS[:1])[0].value == pytest.approx(
        scorer(images()[:1], PROMPTS[:1])[0].value, abs=1
    )


def test_the_shipped_card_is_for_this_plugin():
    card = cards.read("hps-v3")
    assert (card.room, card.plugin) == ("scorers", "hpsv3")
    assert configure("scorers", "hpsv3", card.options).base == "Qwen/Qwen2-VL-7B-Instruct"
