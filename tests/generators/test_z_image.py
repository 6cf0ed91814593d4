"""Z-Image against diffusers' own pipeline: time, sign, guidance, levels, latents, pixels."""

import pytest
import torch
from diffusers import ZImagePipeline

from generators import factories
from generators.sampling import build, differences, final_latents
from realgen.core.errors import InputError
from realgen.generators._packed import pack, unpack


def check_parity(folder, *, steps, size, guidance):
    backbone = build("z_image", model=str(folder), negative_prompt="blur").backbone
    found = differences(
        backbone,
        ZImagePipeline.from_pretrained(folder, dtype=torch.float32),
        steps=steps,
        size=size,
        guidance=guidance,
        packed=pack,
        unpacked=lambda x: unpack(x, size[1] // 8, size[0] // 8),
        guidance_scale=guidance,
        negative="blur",
        max_sequence_length=96,
    )
    assert found["levels"] < 1e-6
    assert found["latents"] < 1e-4
    assert found["pixels"] < 1e-4


@pytest.mark.parametrize(
    ("steps", "size", "guidance"), [(2, (64, 48), 4.0), (2, (32, 96), 0.0), (5, (32, 96), 0.5), (5, (64, 48), 0.0)]
)
def test_parity_with_the_stock_pipeline(steps, size, guidance):
    check_parity(factories.options_of("z_image")["model"], steps=steps, size=size, guidance=guidance)


def test_parity_under_a_dynamic_shift(tmp_path):
    factories.save_random_z_image(tmp_path, use_dynamic_shifting=True)
    check_parity(tmp_path, steps=3, size=(64, 48), guidance=2.0)


def test_levels_are_shifted_once_and_nine_steps_are_nine():
    levels = build("z_image").backbone.sigmas(9, (64, 64))
    raw = [1 - index / 9 for index in range(9)]
    assert levels.tolist() == pytest.approx([*(3 * s / (1 + 2 * s) for s in raw), 0], abs=1e-6)


def test_all_that_is_said_matters():
    plain = {"seeds": [0], "steps": 2, "size": (32, 32), "guidance": 4.0}
    reference = final_latents(build("z_image").backbone, ["a"], **plain)
    for change in ({"seeds": [1]}, {"steps": 3}, {"guidance": 0.0}, {"guidance": 1.0}):
        assert (final_latents(build("z_image").backbone, ["a"], **{**plain, **change}) - reference).abs().max() > 1e-4
    assert (final_latents(build("z_image").backbone, ["zebra"], **plain) - reference).abs().max() > 1e-4
    other = build("z_image", negative_prompt="zebra").backbone
    assert (final_latents(other, ["a"], **plain) - reference).abs().max() > 1e-4


def test_the_chat_template_counts():
    generator = build("z_image", max_text_tokens=32)
    assert generator.num_text_tokens("") == 8  # <|im_start|> user \n <|im_end|> \n <|im_start|> assistant \n
    assert generator.num_text_tokens("abc") > 8
    with pytest.raises(InputError, match="the model reads 32"):
        list(generator(["word " * 40], seeds=[0]))


def test_texts_given_are_left_alone():
    texts = ["a", "b"]
    build("z_image").backbone.encode(texts)
    assert texts == ["a", "b"]
