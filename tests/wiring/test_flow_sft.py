"""Flow trainings from their recipes: another autoencoder, a teacher of its own, batches made ahead."""

import dataclasses

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from conftest import save_random_flux
from realgen.core import config
from realgen.core.errors import ConfigError, ModelError
from realgen.train import portraits
from realgen.train.own_guidance import OwnGuidance
from realgen.train.photographs import read_photographs
from realgen.wiring import training

NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
CLIP = CLIPConfig(
    text_config=CLIPTextConfig(**NARROW, vocab_size=64).to_dict(),
    vision_config=CLIPVisionConfig(**NARROW, image_size=32, patch_size=8).to_dict(),
)


def trainer_of(name, data, folder, *overrides):
    small = ["steps=2", "batch=2", "size=[32, 32]", "max_text_tokens=32", "machine.device=cpu", "machine.dtype=float32"]
    recipe = config.load(name, overrides=[f"data='{data}'", "preview_prompts=[]", *small, *overrides])
    return training.build_trainer(recipe, folder)


def test_another_autoencoder_is_measured_anew_and_exported(random_flux, data, tmp_path):
    torch.manual_seed(3)
    other = AutoencoderKL.from_config(AutoencoderKL.load_config(random_flux / "vae"))
    other.save_pretrained(tmp_path / "other")
    trainer = trainer_of(
        "flow-tiny",
        data,
        tmp_path,
        f"model='{random_flux}'",
        f"autoencoder='{tmp_path / 'other'}'",
        "short_text_tokens=0",
    )
    vae = trainer.backbone.pipeline.vae
    assert torch.equal(vae.encoder.conv_in.weight, other.encoder.conv_in.weight)
    latents = trainer.data._latents[0].float()
    assert (latents.mean().item(), latents.std().item()) == pytest.approx((0, 1), abs=0.02)
    assert torch.isfinite(trainer.step(0)["loss"])
    trainer.export(tmp_path / "model")
    exported = AutoencoderKL.from_pretrained(tmp_path / "model" / "vae")
    assert exported.config.scaling_factor == vae.config.scaling_factor != 0.7


def test_a_deeper_transformer_is_trained_and_exported(random_flux, data, tmp_path):
    trainer = trainer_of(
        "flow-tiny", data, tmp_path, f"model='{random_flux}'", "single_blocks=4", "short_text_tokens=0"
    )
    assert torch.isfinite(trainer.step(0)["loss"])
    trainer.export(tmp_path / "model")
    assert FluxTransformer2DModel.from_pretrained(tmp_path / "model" / "transformer").config.num_single_layers == 4


def test_an_autoencoder_that_the_transformer_cannot_read_is_refused(random_flux, data, tmp_path):
    own = AutoencoderKL.load_config(random_flux / "vae")
    wider = AutoencoderKL.from_config({**own, "latent_channels": own["latent_channels"] * 2})
    wider.save_pretrained(tmp_path / "wider")
    with pytest.raises(ConfigError, match=f"{own['latent_channels'] * 2} channels"):
        trainer_of("flow-tiny", data, tmp_path, f"model='{random_flux}'", f"autoencoder='{tmp_path / 'wider'}'")


@pytest.mark.parametrize("name", ["nowhere", "other", "empty"])
def test_an_image_encoder_that_is_none_is_said(name, random_flux, data, tmp_path):
    (tmp_path / "empty").mkdir()
    CLIPModel(CLIP).text_model.save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match="cannot open a CLIP"):
        trainer_of("flow-tiny", data, tmp_path, f"model='{random_flux}'", f"representation='{tmp_path / name}'")


def test_a_layer_that_the_transformer_has_not_is_said(random_flux, data, tmp_path):
    CLIPModel(CLIP).save_pretrained(tmp_path / "clip")
    overrides = [f"model='{random_flux}'", f"representation='{tmp_path / 'clip'}'", "representation_layer=9"]
    with pytest.raises(ConfigError, match="single blocks"):
        trainer_of("flow-tiny", data, tmp_path, *overrides)


def test_latents_of_another_encoder_are_computed_again(random_flux, data, tmp_path):
    first = trainer_of("flow-tiny", data, tmp_path, f"model='{random_flux}'")
    (tmp_path / "other").mkdir()
    save_random_flux(tmp_path / "other", seed=5)
    second = trainer_of("flow-tiny", data, tmp_path, f"model='{tmp_path / 'other'}'")
    again = trainer_of("flow-tiny", data, tmp_path, f"model='{tmp_path / 'other'}'")
    assert not torch.equal(first.data._latents, second.data._latents)
    assert torch.equal(second.data._latents, again.data._latents)


def test_a_distillation_can_go_on_with_its_teacher(random_flux, data, tmp_path):
    (tmp_path / "later").mkdir()
    save_random_flux(tmp_path / "later", seed=5)
    trainer = trainer_of(
        "guidance-tiny",
        data,
        tmp_path,
        f"model='{tmp_path / 'later'}'",
        f"teacher='{random_flux}'",
        "machine.loaders=1",
    )
    flux = AutoencoderKL.from_pretrained(random_flux / "vae")
    assert torch.equal(trainer.teacher.pipeline.vae.encoder.conv_in.weight, flux.encoder.conv_in.weight)
    assert not torch.equal(trainer.teacher.module.proj_out.weight, trainer.backbone.module.proj_out.weight)
    assert trainer.tokenize is not None
    assert torch.isfinite(trainer.step(0)["loss"])


def test_portraits_learn_by_captions_that_say_who_the_eye_sees(random_flux, data, eye, tmp_path, monkeypatch):
    maps = []

    def said_who(photographs, see):
        maps.append(see(torch.zeros(1, 3, 64, 64)))
        first, second, *others = photographs
        return [dataclasses.replace(first, captions=("a man",)), women(second), *others]

    def women(photograph):
        return dataclasses.replace(photograph, category="people", captions=("a portrait of a woman",))

    monkeypatch.setattr(portraits, "said_who", said_who)
    trainer = trainer_of("portraits-tiny", data, tmp_path, f"model='{random_flux}'", f"eye='{eye}'")
    now, before = trainer.data.photographs, trainer.data.as_before
    assert [photograph.captions for photograph in now[:2]] == [("a man",), ("a portrait of a woman",)]
    assert [photograph.captions for photograph in before[:2]] == [("a rose",), ("a portrait of a woman",)]
    assert [photograph.captions for photograph in trainer.held_out.photographs] == [
        ("a man",),
        ("a portrait of a woman",),
    ]
    assert [len(seen) for seen in maps] == [5, 5]
    assert trainer.own_guidance == OwnGuidance((1.0, 5.0), least_sigma=0.5, sources=("congress",), guided_below=0.9)
    assert trainer.teacher.module is not trainer.backbone.module
    assert torch.isfinite(trainer.step(0)["loss"])


def test_without_an_eye_captions_stay(random_flux, data, tmp_path):
    trainer = trainer_of("portraits-tiny", data, tmp_path, f"model='{random_flux}'", "eye=null")
    assert [p.captions for p in trainer.data.photographs] == [p.captions for p in read_photographs(data, split="train")]


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("flow-tiny", ["teacher=x"], "distil_guidance"),
        ("guidance-tiny", ["autoencoder=x"], "own latents"),
        ("portraits-tiny", ["distil_guidance=[1, 6]"], "leave out"),
        ("portraits-tiny", ["autoencoder=x"], "leave out"),
        ("portraits-tiny", ["weaker=x"], "distil_guidance"),
        ("flow-tiny", ["taught_sources=[people]"], "own_guidance"),
        ("flow-tiny", ["least_sigma=0.5"], "own_guidance"),
        ("flow-tiny", ["guided_below=0.9"], "distil_guidance"),
        ("guidance-tiny", ["single_blocks=8"], "deepen first"),
        ("portraits-tiny", ["single_blocks=8"], "deepen first"),
        ("flow-tiny", ["single_blocks=8", "lora_rank=4"], "deepen first"),
    ],
)
def test_what_does_not_go_together_is_refused(name, overrides, said):
    with pytest.raises(ConfigError, match=said):
        config.load(name, overrides=overrides)
