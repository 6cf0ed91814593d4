"""Stable Diffusion 3 against diffusers' own pipeline: levels, guidance, latents, pixels."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from generators import factories
from generators.sampling import build, differences, final_latents
from realgen.core.errors import InputError
from realgen.generators._packed import pack, unpack
from realgen.generators.sd3 import SD3Backbone


@pytest.fixture(scope="module")
def stock():
    return StableDiffusion3Pipeline.from_pretrained(factories.options_of("sd3")["model"], dtype=torch.float32)


@pytest.mark.parametrize(
    ("steps", "size", "guidance"), [(2, (64, 48), 4.5), (2, (32, 96), 1.0), (5, (32, 96), 7.0), (5, (64, 48), 0.0)]
)
def test_parity_with_the_stock_pipeline(stock, steps, size, guidance):
    backbone = build("sd3", negative_prompt="blur").backbone
    found = differences(
        backbone,
        stock,
        steps=steps,
        size=size,
        guidance=guidance,
        packed=pack,
        unpacked=lambda x: unpack(x, size[1] // 8, size[0] // 8),
        guidance_scale=guidance,
        negative="blur",
        max_sequence_length=32,
    )
    assert found["levels"] == 0
    assert found["latents"] < 1e-4
    assert found["pixels"] < 1e-4


def test_parity_with_the_stock_pipeline_without_t5():
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    folder = factories.options_of("sd3")["model"]
    light = StableDiffusion3Pipeline.from_pretrained(folder, dtype=torch.float32, **absent)
    backbone = SD3Backbone(light, max_text_tokens=256, negative_prompt="blur")
    assert backbone.max_text_tokens == 77
    assert backbone.num_text_tokens("abc") == len(light.tokenizer("abc").input_ids)
    found = differences(
        backbone,
        light,
        steps=2,
        size=(64, 48),
        guidance=4.5,
        packed=pack,
        unpacked=lambda x: unpack(x, 6, 8),
        guidance_scale=4.5,
        negative="blur",
        max_sequence_length=77,
    )
    assert found["latents"] < 1e-4
    assert found["pixels"] < 1e-4


def test_the_published_schedule_shifts_its_ends_twice():
    levels = build("sd3").backbone.sigmas(4, (64, 64))
    assert levels.tolist() == pytest.approx([1, 0.8577, 0.6022, 0.0089, 0], abs=1e-4)


def test_a_dynamic_shift_is_the_pipelines():
    backbone = build("sd3").backbone
    scheduler = backbone.pipeline.scheduler
    scheduler.register_to_config(use_dynamic_shifting=True)
    small, large = (backbone.sigmas(4, size) for size in ((64, 64), (1024, 1024)))
    assert (large[1:4] > small[1:4]).all()


def test_all_that_is_said_matters():
    plain = {"seeds": [0], "steps": 2, "size": (32, 32), "guidance": 4.5}
    reference = final_latents(build("sd3").backbone, ["a"], **plain)
    for change in ({"seeds": [1]}, {"steps": 3}, {"guidance": 2.0}):
        assert (final_latents(build("sd3").backbone, ["a"], **{**plain, **change}) - reference).abs().max() > 1e-4
    assert (final_latents(build("sd3").backbone, ["zebra"], **plain) - reference).abs().max() > 1e-5
    other = build("sd3", negative_prompt="zebra").backbone
    assert (final_latents(other, ["a"], **plain) - reference).abs().max() > 1e-5


def test_a_size_beyond_the_learned_positions_is_refused():
    with pytest.raises(InputError, match="positions up to 128"):
        build("sd3", size=(144, 64))


def test_too_long_a_text_is_refused_never_cut():
    with pytest.raises(InputError, match="the model reads 32"):
        list(build("sd3")(["word " * 40], seeds=[0]))
