"""FLUX.1 against diffusers' own pipeline, and what bad options and files get."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from conftest import FLOAT32, save_random_flux
from realgen.core.errors import ConfigError, InputError, ModelError
from realgen.core.spec import Machine
from realgen.core.types import Progress
from realgen.formulas.flow import trajectory
from realgen.generators import flux
from realgen.generators._packed import pack, unpack


def build(folder, **options):
    options = {"steps": 3, "size": (64, 48), "max_text_tokens": 32, "guidance": 3.5, **options}
    return flux.build(flux.Options(model=str(folder), **options), FLOAT32)


def images_of(generator, texts, **kwargs):
    return [item for item in generator(texts, **kwargs) if not isinstance(item, Progress)]


@torch.inference_mode()
def final_latents(backbone, texts, *, seeds, steps, size, guidance):
    condition = backbone.encode(texts)
    velocity = lambda x, sigma: backbone.velocity(x, sigma, condition, guidance=guidance, size=size)  # noqa: E731
    *_, last = trajectory(velocity, backbone.noise(seeds, size), backbone.sigmas(steps, size))
    return last.x


def check_parity(folder, *, tokens, steps, size, guidance):
    stock = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    stock.set_progress_bar_config(disable=True)
    for part in (stock.text_encoder, stock.text_encoder_2, stock.transformer, stock.vae):
        part.eval()
    backbone = build(folder, max_text_tokens=tokens, size=size).backbone
    texts = ["a red cat on a wall", "two dogs"]
    ours = final_latents(backbone, texts, seeds=[3, 4], steps=steps, size=size, guidance=guidance)
    call = {
        "prompt": texts,
        "width": size[0],
        "height": size[1],
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "max_sequence_length": tokens,
    }
    theirs = stock(**call, latents=backbone.noise([3, 4], size), output_type="latent").images
    assert (ours - theirs).abs().max() < 1e-4
    pixels = stock(**call, latents=backbone.noise([3, 4], size), output_type="np").images
    with torch.inference_mode():
        decoded = backbone.decode(ours, size).permute(0, 2, 3, 1).numpy()
    assert np.abs(decoded - pixels).max() < 1e-4


@pytest.mark.parametrize(
    ("steps", "size", "guidance"), [(1, (64, 64), 3.5), (4, (96, 48), 1.0), (9, (16, 64), 6.0), (3, (32, 32), 0.0)]
)
def test_parity_with_fluxpipeline_on_random_weights(random_flux, steps, size, guidance):
    check_parity(random_flux, tokens=32, steps=steps, size=size, guidance=guidance)


@pytest.mark.parametrize(
    ("steps", "size", "guidance"), [(2, (128, 128), 3.0), (8, (128, 96), 1.0), (20, (64, 64), 6.0)]
)
def test_parity_with_fluxpipeline_on_the_embedded_model(tiny_weights, steps, size, guidance):
    check_parity(tiny_weights, tokens=64, steps=steps, size=size, guidance=guidance)


def test_an_image_is_the_same_alone_and_in_a_batch(random_flux):
    backbone = build(random_flux).backbone
    together = final_latents(backbone, ["a", "b", "c"], seeds=[7, 8, 9], steps=3, size=(64, 48), guidance=3.5)
    for i, text in enumerate("abc"):
        alone = final_latents(backbone, [text], seeds=[7 + i], steps=3, size=(64, 48), guidance=3.5)
        assert (alone[0] - together[i]).abs().max() < 1e-4


def test_pictures_come_in_order_with_progress_between(random_flux):
    generator = flux.build(
        flux.Options(model=str(random_flux), steps=2, size=(64, 48), max_text_tokens=32),
        Machine(device="cpu", dtype="float32", batch=2),
    )
    items = list(generator(["a", "b", "c"], seeds=[0, 1, 2]))
    kinds = [item.done if isinstance(item, Progress) else "image" for item in items]
    assert kinds == [1, 2, "image", "image", 1, 2, "image"]
    assert items[2].size == (64, 48)
    again = images_of(generator, ["c"], seeds=[2])
    assert np.abs(np.asarray(items[-1], int) - np.asarray(again[0], int)).max() <= 1


def test_seed_text_guidance_and_steps_all_matter(random_flux):
    backbone = build(random_flux).backbone
    plain = {"seeds": [0], "steps": 3, "size": (32, 32), "guidance": 3.5}
    reference = final_latents(backbone, ["a"], **plain)
    for change in ({"seeds": [1]}, {"steps": 4}, {"guidance": 1.0}):
        assert (final_latents(backbone, ["a"], **{**plain, **change}) - reference).abs().max() > 1e-4
    assert (final_latents(backbone, ["zebra"], **plain) - reference).abs().max() > 1e-5


def test_a_repeated_text_is_encoded_once(random_flux, monkeypatch):
    backbone = build(random_flux).backbone
    calls = []
    original = backbone.tokenize
    monkeypatch.setattr(backbone, "tokenize", lambda texts: calls.append(texts) or original(texts))
    first = backbone.encode(["a", "b", "a"])
    second = backbone.encode(["b"])
    assert calls == [["a", "b"]]
    assert torch.equal(first.embeds[1], second.embeds[0])
    assert torch.equal(first.embeds[0], first.embeds[2])


def test_tokens_are_encoded_as_their_texts(random_flux):
    backbone, texts = build(random_flux).backbone, ["a", "a longer text than the other"]
    for ours, theirs in zip(backbone.encode(backbone.tokenize(texts)), backbone.encode(texts), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        assert not ours.requires_grad
    backbone.pipeline.text_encoder_2.requires_grad_(True)
    assert backbone.encode(backbone.tokenize(texts)).embeds.requires_grad


def test_the_layers_of_the_published_lora():
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    streams = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
    assert flux.FluxBackbone.lora_targets == (*(f"attn.{layer}" for layer in attention), *streams)


def test_remembered_texts_outlive_many_others(random_flux, monkeypatch):
    backbone = build(random_flux).backbone
    backbone.remember(["a", "b"])
    backbone.encode([str(number) for number in range(300)])
    monkeypatch.setattr(backbone, "tokenize", None)
    assert backbone.encode(["b", "a"]).embeds.shape == (2, 32, 8)


def test_latents_and_decode_are_the_autoencoders(random_flux):
    backbone = build(random_flux).backbone
    images = images_of(build(random_flux), ["a"], seeds=[0])
    with torch.inference_mode():
        x = backbone.latents(images)
    assert x.shape == (1, 12, 16)
    grid = unpack(x, 6, 8)
    assert torch.equal(pack(grid), x)
    assert grid.shape == (1, 4, 6, 8)


@pytest.mark.parametrize("size", [(130, 64), (0, 64), (64, -16), (8, 8)])
def test_a_size_that_cannot_be_drawn_names_the_nearest(random_flux, size):
    with pytest.raises(InputError) as caught:
        build(random_flux, size=size)
    assert "multiples of 16" in caught.value.message


def test_too_long_a_text_is_refused_never_cut(random_flux):
    generator = build(random_flux)
    with pytest.raises(InputError, match="the model reads 32"):
        list(generator(["word " * 40], seeds=[0]))


def test_counting_the_tokens_of_too_long_a_text_warns_of_no_use_of_it(random_flux, monkeypatch, caplog):
    backbone = build(random_flux).backbone
    backbone.pipeline.tokenizer_2.model_max_length = 32
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    assert backbone.num_text_tokens("word " * 40) > 32
    assert not caplog.records


def test_guidance_without_an_embedding_is_refused(tmp_path):
    save_random_flux(tmp_path, guidance_embeds=False)
    with pytest.raises(ConfigError, match="no guidance embedding"):
        build(tmp_path)
    assert len(images_of(build(tmp_path, guidance=0), ["a"], seeds=[0])) == 1


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_truncated_weight_file_is_named(random_flux, tmp_path):
    folder = copied(random_flux, tmp_path)
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=file.name):
        build(folder)


def test_a_missing_part_is_named(random_flux, tmp_path):
    folder = copied(random_flux, tmp_path)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelError, match="vae"):
        build(folder)


def test_weights_of_another_shape_are_refused(random_flux, tmp_path):
    folder = copied(random_flux, tmp_path)
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 4}))
    with pytest.raises(ModelError):
        build(folder)


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all"])
def test_a_folder_that_is_not_there(model):
    with pytest.raises(ModelError, match="no model at"):
        build(model)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"model_index\.json"):
        build(tmp_path)


def test_no_model_says_what_to_give():
    with pytest.raises(ConfigError) as caught:
        flux.build(flux.Options(), FLOAT32)
    assert "card" in caught.value.hint


def test_a_lora_changes_the_picture_and_a_foreign_one_is_refused(random_flux, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    pipeline = FluxPipeline.from_pretrained(random_flux)
    torch.manual_seed(0)
    pipeline.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=["to_q"]))
    pipeline.save_lora_weights(
        tmp_path / "own", transformer_lora_layers=get_peft_model_state_dict(pipeline.transformer)
    )
    plain = {"seeds": [0], "steps": 2, "size": (32, 32), "guidance": 3.5}
    without = final_latents(build(random_flux).backbone, ["a"], **plain)
    with_lora = final_latents(build(random_flux, lora=str(tmp_path / "own")).backbone, ["a"], **plain)
    assert (without - with_lora).abs().max() > 1e-4
    zero = final_latents(build(random_flux, lora=str(tmp_path / "own"), lora_scale=0.0).backbone, ["a"], **plain)
    assert (without - zero).abs().max() < 1e-6
    (tmp_path / "foreign").mkdir()
    save_file(
        {
            "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.zeros(2, 99),
            "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.zeros(99, 2),
        },
        tmp_path / "foreign" / "pytorch_lora_weights.safetensors",
    )
    with pytest.raises(ModelError, match="does not fit"):
        build(random_flux, lora=str(tmp_path / "foreign"))


def test_a_sharded_checkpoint_with_flux1_devs_keys_is_the_same_model(random_flux, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(random_flux, tmp_path)
    pipeline = FluxPipeline.from_pretrained(random_flux, dtype=torch.float32)
    shutil.rmtree(folder / "transformer")
    pipeline.transformer.save_pretrained(folder / "transformer", max_shard_size="20KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    file = folder / "text_encoder/model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    plain = {"seeds": [0], "steps": 2, "size": (32, 32), "guidance": 3.5}
    whole = final_latents(build(random_flux).backbone, ["a cat"], **plain)
    sharded = final_latents(build(folder).backbone, ["a cat"], **plain)
    assert (whole - sharded).abs().max() < 1e-4
    shard = sorted((folder / "transformer").glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(ModelError, match=shard.name):
        build(folder)


@pytest.mark.parametrize("name", ["guidance", "lora_scale"])
def test_numbers_that_are_not_finite_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        flux.Options.model_validate({name: float("inf")})
