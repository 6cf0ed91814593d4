"""Any diffusers pipeline: seeds an image, sizes, and options that it does not take."""

import pytest

from conftest import FLOAT32
from realgen.core.errors import ConfigError, InputError, ModelError
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
