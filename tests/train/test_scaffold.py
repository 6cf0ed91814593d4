"""A fresh FLUX.1 folder: what it opens with, that prompts pool differently, and FLUX.1-dev's own keys."""

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open

from realgen.train.autoencoder import build_autoencoder
from realgen.train.photographs import Photograph
from realgen.train.scaffold import build_pipeline, measure_latents, save_pipeline
from realgen.train.tokenizers import train_tokenizers

TEXTS = [f"a photo of a {colour} {thing}" for colour in ("red", "green", "blue") for thing in ("cat", "rose", "house")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("scaffold")
    train_tokenizers(TEXTS * 30, root, clip_vocabulary=540, t5_vocabulary=60)
    torch.manual_seed(0)
    autoencoder = build_autoencoder(widths=(8, 8, 8, 8), latent_channels=16, groups=2, size=32)
    autoencoder.register_to_config(scaling_factor=0.5, shift_factor=0.1)
    save_pipeline(build_pipeline(autoencoder, root, seed=0), root / "model", dtype=torch.bfloat16)
    return root / "model"


@pytest.fixture(scope="module")
def pipeline(folder):
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_stock_pipeline_opens_and_draws(pipeline):
    images = pipeline("a red cat", height=32, width=32, num_inference_steps=1, max_sequence_length=64).images
    assert images[0].size == (32, 32)


def test_two_prompts_pool_differently(pipeline):
    """A wrong eos id would pool the first position, which is the same for every prompt."""
    _, pooled, _ = pipeline.encode_prompt(["a red cat", "a blue house"], None, max_sequence_length=64)
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def test_keys_and_numbers_are_flux1_devs(folder):
    with safe_open(folder / "text_encoder/model.safetensors", framework="pt") as file:
        names = list(file.keys())
        assert all(name.startswith("text_model.") for name in names)
        assert all(file.get_tensor(name).dtype == torch.bfloat16 for name in names)
    assert not any("_name_or_path" in file.read_text() for file in folder.rglob("*.json"))
    assert (folder / "tokenizer/merges.txt").is_file()
    assert (folder / "tokenizer_2/spiece.model").is_file()


def test_saving_in_bfloat16_changes_no_bit_of_the_pipeline(pipeline, tmp_path):
    torch.manual_seed(0)
    weight = pipeline.vae.decoder.conv_in.weight
    with torch.no_grad():
        weight += 1e-4 * torch.rand_like(weight)
    pipeline.vae.register_buffer("third", torch.tensor(1 / 3))
    parts = [pipeline.vae, pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2]
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in parts]
    save_pipeline(pipeline, tmp_path, dtype=torch.bfloat16)
    for part, held in zip(parts, before, strict=True):
        now = part.state_dict()
        assert all(torch.equal(now[name], value) and now[name].dtype == value.dtype for name, value in held.items())
    assert pipeline.vae.decoder.conv_in.weight is weight
    del pipeline.vae.third


def test_the_flow_starts_silent(pipeline):
    assert pipeline.transformer.proj_out.weight.abs().max() == 0
    assert pipeline.transformer.config.guidance_embeds
    block = pipeline.transformer.single_transformer_blocks[0]
    assert block.norm.linear.weight.abs().max() == 0


def test_the_latents_scale_and_shift_make_them_standard():
    torch.manual_seed(0)
    autoencoder = build_autoencoder(widths=(8, 8), latent_channels=4, groups=2, size=16)
    generator = torch.Generator().manual_seed(0)
    pictures = [
        Photograph(str(i), torch.randint(0, 255, (16, 16, 3), generator=generator).byte().numpy(), None, "", (), "")
        for i in range(8)
    ]
    scale, shift = measure_latents(autoencoder, pictures)
    pixels = torch.stack([torch.from_numpy(picture.pixels) for picture in pictures]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = (autoencoder.encode(pixels).latent_dist.mean - shift) * scale
    assert latents.mean().item() == pytest.approx(0, abs=1e-4)
    assert latents.std().item() == pytest.approx(1, abs=1e-4)
