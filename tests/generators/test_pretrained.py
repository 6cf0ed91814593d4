"""Any diffusers pipeline: seeds an image, sizes, and options that it does not take."""

import math

import pytest
import torch

from conftest import FLOAT32
from realgen.core.errors import ConfigError, InputError, ModelError, RealGenError
from realgen.generators import pretrained


def build(folder, **options):
    options = {"steps": 2, "size": (32, 32), **options}
    return pretrained.build(pretrained.Options(model=str(folder), **options), FLOAT32)


def test_it_draws_with_one_seed_an_image(random_flux):
    generator = build(random_flux)
    first = list(generator(["a cat", "a dog"], seeds=[5, 6]))
    again = list(generator(["a dog"], seeds=[6]))
    assert [image.size for image in first] == [(32, 32)] * 2
    assert first[1].tobytes() == again[0].tobytes()


def test_it_reads_as_much_as_its_longest_reader(random_flux):
    generator = build(random_flux)
    assert generator.max_text_tokens == 512  # of FluxPipeline's call
    assert generator.num_text_tokens("abc") == len(generator.pipeline.tokenizer_2("abc").input_ids)
    generator.pipeline.register_modules(tokenizer_2=None)
    assert generator.max_text_tokens == 77  # CLIP's own
    assert generator.num_text_tokens("abc") == 5


def test_a_pipeline_that_does_not_say_how_much_it_reads_has_no_limit(random_flux, monkeypatch):
    generator = build(random_flux)
    monkeypatch.setattr(generator, "_takes", {})
    assert generator.max_text_tokens is None


def test_a_size_of_its_own(random_flux):
    (image,) = build(random_flux)(["a"], seeds=[0], size=(48, 32))
    assert image.size == (48, 32)
    with pytest.raises(InputError, match="cannot draw"):
        list(build(random_flux)(["a"], seeds=[0], size=(50, 32)))


def test_no_model_and_no_folder():
    with pytest.raises(ConfigError, match="no model"):
        pretrained.build(pretrained.Options(), FLOAT32)
    with pytest.raises(ModelError, match="no model at"):
        build("/nowhere/at/all")


@pytest.mark.parametrize("size", [(0, 0), (-16, 16)])
def test_a_size_of_no_pixels_is_refused(size):
    with pytest.raises(ValueError, match="greater than 0"):
        pretrained.Options(model="x", size=size)


def test_a_size_that_the_pipeline_rounds_is_refused(random_flux):
    with pytest.raises(InputError, match="draws 32x32 where 40x40 is asked") as caught:
        list(build(random_flux)(["a"], seeds=[0], size=(40, 40)))
    assert caught.value.hint == "--size 32x32"


def test_a_size_that_the_pipeline_fails_at_is_one_line(random_flux):
    with pytest.raises(ModelError, match="cannot draw 8x8 pixels"):
        list(build(random_flux)(["a"], seeds=[0], size=(8, 8)))


def test_memory_that_runs_out_is_said_to_be_so(random_flux):
    generator = build(random_flux)

    def call(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    call.vae_scale_factor = 8
    generator.pipeline = call
    with pytest.raises(RealGenError, match="out of memory: 2"):
        list(generator(["a"], seeds=[0]))


def test_numbers_that_are_no_colours_are_refused(random_flux):
    generator = build(random_flux)
    with torch.no_grad():
        generator.pipeline.vae.decoder.conv_out.bias.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        list(generator(["a"], seeds=[0]))
