"""`--recipe flux` on FLUX.1-dev's and Qwen3-4B-Instruct-2507's own files, reduced in width: what is loaded is what is
in the files, and the command line draws with it."""

import json

import pytest
import sentencepiece
import torch
from diffusers import FluxPipeline
from PIL import Image
from safetensors.torch import load_file

from conftest import FLOAT32
from flux1_dev import save_flux1_dev
from qwen3 import ANSWER, save_qwen3
from realgen.generators._loading import load_pipeline
from realgen.prompt_optimizers import causal_lm


@pytest.fixture(scope="module")
def flux1_dev(tmp_path_factory):
    return save_flux1_dev(tmp_path_factory.mktemp("flux1-dev"))


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    return save_qwen3(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="module")
def pipeline(flux1_dev):
    return load_pipeline(FluxPipeline, str(flux1_dev), FLOAT32)


def drawn(answer):
    """The record of the one picture that `generate --json` drew, and its pixels."""
    code, out, err = answer
    assert code == 0, err
    (entry,) = json.loads(out)["images"]
    with Image.open(entry["file"]) as image:
        return entry, image.convert("RGB")


# ---- the command line -----------------------------------------------------------------------------------


def test_generate_draws_with_flux1_devs_files(run, flux1_dev):
    words = ["--recipe", "flux", "--raw", f"generator.options.model={flux1_dev}", "--size", "64x32", "--steps", "2"]
    entry, image = drawn(run("generate", "a cat", *words, "--json", "--out", "one"))
    assert (entry["prompt"], entry["text"]) == ("a cat", "a cat")
    assert image.size == (64, 32)
    _, other = drawn(run("generate", "the old man in the garden", *words, "--json", "--out", "two"))
    assert other.tobytes() != image.tobytes()


def test_qwen3s_files_rewrite_the_prompt_that_is_drawn(run, flux1_dev, qwen3):
    models = [f"generator.options.model={flux1_dev}", f"prompt_optimizer.options.model={qwen3}"]
    entry, image = drawn(
        run("generate", "a cat", "--recipe", "flux", *models, "--size", "32x32", "--steps", "1", "--json")
    )
    assert (entry["prompt"], entry["text"]) == ("a cat", ANSWER)
    assert image.size == (32, 32)


def test_qwen3s_files_rewrite_a_prompt(run, qwen3):
    code, out, err = run("rewrite", "a cat", "--recipe", "flux", f"prompt_optimizer.options.model={qwen3}", "--json")
    assert code == 0
    assert "Loading" not in err
    assert json.loads(out) == {"prompt": "a cat", "seed": 0, "text": ANSWER, "reason": ""}


@pytest.mark.parametrize(
    "file",
    [
        "text_encoder_2/model-00002-of-00002.safetensors",
        "transformer/diffusion_pytorch_model-00003-of-00003.safetensors",
    ],
)
def test_a_missing_shard_is_named_in_one_line(run, tmp_path, file):
    folder = save_flux1_dev(tmp_path / "cut")
    (folder / file).unlink()
    code, _, err = run("generate", "a cat", "--recipe", "flux", "--raw", f"generator.options.model={folder}")
    assert code == 2
    assert f"{folder / file} is missing" in err
    assert "Traceback" not in err


# ---- the files ------------------------------------------------------------------------------------------


def weights_of(folder):
    return {name: weight for file in folder.glob("*.safetensors") for name, weight in load_file(file).items()}


def assert_same(found, weights, *, renamed=lambda name: name):
    """Every weight of the model is in the files, and none was left over."""
    assert {renamed(name) for name in found} == {renamed(name) for name in weights}
    expected = {renamed(name): weight for name, weight in weights.items()}
    for name, weight in found.items():
        assert torch.equal(weight, expected[renamed(name)].float()), name


@pytest.mark.parametrize("part", ["transformer", "vae"])
def test_the_weights_are_those_of_the_files(pipeline, flux1_dev, part):
    assert_same(getattr(pipeline, part).state_dict(), weights_of(flux1_dev / part))


def test_t5s_weights_are_those_of_the_shards(pipeline, flux1_dev):
    weights = weights_of(flux1_dev / "text_encoder_2")
    found = pipeline.text_encoder_2.state_dict()
    assert_same(found, {**weights, "encoder.embed_tokens.weight": weights["shared.weight"]})


def test_clips_weights_are_those_of_the_file(pipeline, flux1_dev):
    """FLUX.1-dev's names begin with text_model; the newest transformers drops it in the model, not in what it reads."""
    weights = weights_of(flux1_dev / "text_encoder")
    assert all(name.startswith("text_model.") for name in weights)
    assert_same(pipeline.text_encoder.state_dict(), weights, renamed=lambda name: name.removeprefix("text_model."))


def test_clip_is_pooled_where_the_text_ends(pipeline):
    """FLUX.1-dev's eos_token_id, 2, is not the tokenizer's: the highest token marks the end."""
    ids = pipeline.tokenizer(["a cat", "the old man"], padding="max_length", return_tensors="pt").input_ids
    ends = (ids == pipeline.tokenizer.eos_token_id).int().argmax(dim=1)
    with torch.inference_mode():
        said = pipeline.text_encoder(ids)
    assert ids.shape == (2, 77)
    assert torch.equal(said.pooler_output, said.last_hidden_state[torch.arange(2), ends])
    assert (said.pooler_output[0] - said.pooler_output[1]).abs().max() > 0.1


def test_clip_reads_words_and_folds_case(pipeline):
    vocabulary = pipeline.tokenizer.get_vocab()
    expected = ["<|startoftext|>", "the</w>", "old</w>", "man</w>", ",</w>", "<|endoftext|>"]
    assert pipeline.tokenizer("The  OLD man,").input_ids == [vocabulary[token] for token in expected]
    assert expected[-1] == max(vocabulary, key=vocabulary.get)


@pytest.mark.parametrize(
    "text",
    [
        "a cat",
        "",
        "  the   old\tman ",
        "\uff43\uff41\uff54",
        "cafe\u0301…",
        "ﬁne ½ ²",
        "東京 🐈",
        "one cat, in the snow.\nA dog",
    ],
)
def test_t5_reads_what_sentencepiece_reads(pipeline, flux1_dev, text):
    """Full-width letters, ligatures and an ellipsis are normalised: transformers 5.0 to 5.2 did not."""
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(flux1_dev / "tokenizer_2/spiece.model"))
    assert pipeline.tokenizer_2(text).input_ids == [*oracle.encode(text), 1]


def test_t5_tells_an_ellipsis_from_an_unknown_letter(pipeline):
    assert pipeline.tokenizer_2("…").input_ids == pipeline.tokenizer_2("...").input_ids
    assert pipeline.tokenizer_2.unk_token_id not in pipeline.tokenizer_2("…").input_ids


def test_qwen3_is_loaded_whole_and_its_chat_has_its_tokens(qwen3):
    optimizer = causal_lm.build(causal_lm.Options(model=str(qwen3)), FLOAT32)
    weights = weights_of(qwen3)
    tied = {"lm_head.weight": weights["model.embed_tokens.weight"]}
    assert_same(optimizer._model.state_dict(), {**weights, **tied})
    tokenizer = optimizer._tokenizer
    chat = optimizer._ask("a cat")
    ids = tokenizer(chat, add_special_tokens=False).input_ids
    assert chat.endswith("a cat<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(ids) == chat
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2
    assert tokenizer.tokenize(ANSWER) == ANSWER.replace(" ", " Ġ").split(" ")
