"""Qwen-Image against diffusers' own pipeline: text, guidance and its length, levels, latents, pixels."""

from functools import cache

import pytest
import torch
from diffusers import QwenImagePipeline

from generators import factories
from generators.sampling import build, differences, final_latents
from realgen.core.errors import ConfigError, InputError
from realgen.generators.qwen_image import reading_of


@pytest.fixture(scope="module")
def stock():
    return QwenImagePipeline.from_pretrained(factories.options_of("qwen_image")["model"], dtype=torch.float32)


@pytest.mark.parametrize(
    ("steps", "size", "guidance"), [(2, (64, 48), 4.0), (2, (32, 96), 1.0), (5, (32, 96), 2.5), (5, (64, 48), 0.0)]
)
def test_parity_with_the_stock_pipeline(stock, steps, size, guidance):
    backbone = build("qwen_image", negative_prompt="blur").backbone
    found = differences(
        backbone,
        stock,
        steps=steps,
        size=size,
        guidance=guidance,
        packed=lambda x: x,
        unpacked=lambda x: x,
        true_cfg_scale=guidance,
        negative="blur",
        max_sequence_length=96,
    )
    assert found["levels"] == 0
    assert found["latents"] < 1e-4
    assert found["pixels"] < 1e-4


def test_levels_end_where_the_checkpoint_says():
    backbone = build("qwen_image").backbone
    for steps in (2, 9, 50):
        assert float(backbone.sigmas(steps, (64, 48))[-2]) == pytest.approx(0.02, abs=1e-6)
    with pytest.raises(ConfigError, match="steps"):
        build("qwen_image", steps=1)


def test_guidance_keeps_each_tokens_length():
    backbone = build("qwen_image", negative_prompt="blur").backbone
    condition, x, sigma = backbone.encode(["a", "bcd"]), backbone.noise([0, 1], (64, 48)), torch.tensor([0.9, 0.3])
    given = {"size": (64, 48)}
    with torch.no_grad():
        plain = backbone.velocity(x, sigma, condition, guidance=1.0, **given)
        guided = backbone.velocity(x, sigma, condition, guidance=5.0, **given)
    assert (guided - plain).abs().max() > 1e-3
    torch.testing.assert_close(guided.norm(dim=-1), plain.norm(dim=-1))


def test_all_that_is_said_matters():
    plain = {"seeds": [0], "steps": 2, "size": (32, 32), "guidance": 4.0}
    reference = final_latents(build("qwen_image").backbone, ["a"], **plain)
    for change in ({"seeds": [1]}, {"steps": 3}, {"guidance": 0.0}, {"guidance": 2.0}):
        found = final_latents(build("qwen_image").backbone, ["a"], **{**plain, **change})
        assert (found - reference).abs().max() > 1e-4
    assert (final_latents(build("qwen_image").backbone, ["zebra"], **plain) - reference).abs().max() > 1e-4
    other = build("qwen_image", negative_prompt="zebra").backbone
    assert (final_latents(other, ["a"], **plain) - reference).abs().max() > 1e-4


def test_the_systems_turn_is_neither_counted_nor_read():
    generator = build("qwen_image", max_text_tokens=32)
    assert generator.num_text_tokens("") == 5  # <|im_end|> \n <|im_start|> assistant \n
    assert generator.backbone.encode([""]).texts.embeds.shape == (1, 5, 16)
    with pytest.raises(InputError, match="the model reads 32"):
        list(generator(["word " * 40], seeds=[0]))


def test_shorter_texts_are_masked_by_hand():
    one, two = torch.ones(1, 2), torch.full((3, 2), 2.0)
    embeds, mask = reading_of([one, two])
    assert embeds[:, :, 0].tolist() == [[1, 0, 0], [2, 2, 2]]
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    assert reading_of([two, two]).mask is None


def test_positions_kept_while_sampling_can_be_trained_with():
    """On an accelerator the transformer keeps copies of its positions, made at the first call: here as well."""
    backbone, size = build("qwen_image").backbone, (32, 64)
    positions = backbone.pipeline.transformer.pos_embed
    positions._get_device_freqs = cache(lambda device: (positions.pos_freqs.clone(), positions.neg_freqs.clone()))
    final_latents(backbone, ["a"], seeds=[0], steps=2, size=size, guidance=4.0)
    backbone.module.requires_grad_(True)
    condition, x = backbone.encode(["a"]), backbone.noise([0], size)
    backbone.velocity(x, torch.tensor([0.5]), condition, guidance=4.0, size=size).square().mean().backward()
    assert backbone.module.img_in.weight.grad.abs().max() > 0


def test_the_real_statistics_are_used():
    backbone = build("qwen_image").backbone
    size = (32, 32)
    config = backbone.pipeline.vae.config
    with torch.inference_mode():
        zeros = backbone.decode(torch.zeros(1, 4, 16), size)
        mean = torch.tensor(config.latents_mean).view(1, 4, 1, 1, 1).expand(1, 4, 1, 4, 4)
        expected = (backbone.pipeline.vae.decode(mean).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    assert (zeros - expected).abs().max() < 1e-6
