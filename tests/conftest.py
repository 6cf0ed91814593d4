"""A FLUX.1 folder of the real classes and a few thousand weights, for tests that need a model of no quality."""

import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from lasting import lasting
from realgen.core.spec import Machine

FLOAT32 = Machine(device="cpu", dtype="float32")
WEIGHTS = Path(__file__).parents[1] / "src/realgen/weights/tiny/generator"


def pytest_sessionfinish():
    # a late server ends with the process; that servers stop has tests of its own
    with suppress(AssertionError):
        lasting.close()


@pytest.fixture(scope="session")
def float32():
    return FLOAT32


@pytest.fixture(scope="session")
def tiny_weights():
    """The embedded generator."""
    assert (WEIGHTS / "model_index.json").is_file(), "the package ships the embedded model"
    return WEIGHTS


@pytest.fixture(scope="session")
def random_flux(tmp_path_factory):
    """A random FLUX.1 folder with a guidance embedding: f8, 4 latent channels, a vocabulary of letters."""
    folder = tmp_path_factory.mktemp("flux")
    save_random_flux(folder)
    return folder


def save_random_flux(folder, *, guidance_embeds=True, seed=0):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip, t5 = letter_tokenizers(folder)
    torch.manual_seed(seed)
    size = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "projection_dim": 8}
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4, 4, 4, 4),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.7,
            shift_factor=0.1,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(vocab_size=len(clip), hidden_size=8, bos_token_id=0, eos_token_id=1, pad_token_id=1, **size)
        ),
        tokenizer=clip,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.1)
        ),
        tokenizer_2=t5,
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=8,
            pooled_projection_dim=8,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(2, 2, 4),
        ),
    )
    pipeline.save_pretrained(folder)


def letter_tokenizers(folder):
    """A CLIP tokenizer of bytes and a T5 tokenizer of letters."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer, T5TokenizerFast

    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
    vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    clip = CLIPTokenizer.from_pretrained(_folder_of(folder, vocabulary, merges), model_max_length=77)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((chr(code), -3.0) for code in range(32, 127))]
    t5 = T5TokenizerFast(vocab=[*pieces, ("▁", -3.0)], extra_ids=0, model_max_length=512)
    return clip, t5


def _folder_of(folder, *files):
    target = Path(folder) / "letters"
    target.mkdir(exist_ok=True)
    for file in files:
        file.rename(target / file.name)
    config = {"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return target
