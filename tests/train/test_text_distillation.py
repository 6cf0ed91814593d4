"""Text encoders that learn a sentence encoder's sense of words."""

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from torch.nn import functional as F

from conftest import letter_tokenizers
from realgen.train.text_distillation import TextDistiller, tokenize, with_words

TEXTS = ["red cat", "blue house", "green tree", "old man", "tall lamp", "wet stone"]


class Teacher:
    """A fixed random unit vector for every text."""

    width = 6

    def __call__(self, texts):
        rows = [np.random.default_rng(sum(text.encode())).standard_normal(self.width) for text in texts]
        return F.normalize(torch.tensor(np.array(rows), dtype=torch.float32), dim=-1)


def distiller_of(folder, steps=60):
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)
    knobs = {"steps": steps, "batch": 6, "learning_rate": 1e-2, "seed": 0}
    return TextDistiller(pipeline, Teacher(), TEXTS, TEXTS, **knobs)


def test_both_encoders_move_towards_the_teacher(random_flux, tmp_path):
    distiller = distiller_of(random_flux)
    before = distiller.evaluate()
    for index in range(60):
        distiller.step(index)
    after = distiller.evaluate()
    assert after["clip_cosine"] > before["clip_cosine"] + 0.1
    assert after["t5_cosine"] > before["t5_cosine"] + 0.1
    distiller.export(tmp_path / "model")
    exported = FluxPipeline.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert torch.equal(exported.text_encoder_2.shared.weight, distiller.pipeline.text_encoder_2.shared.weight)


def test_a_resume_is_exact(random_flux):
    whole, resumed = distiller_of(random_flux), distiller_of(random_flux)
    for index in range(4):
        last = whole.step(index)
        if index == 1:
            resumed.load_state_dict(
                {
                    "module": {name: value.clone() for name, value in whole.state_dict()["module"].items()},
                    "optimizer": whole.state_dict()["optimizer"],
                }
            )
    for index in range(2, 4):
        again = resumed.step(index)
    assert again.keys() == last.keys()


def test_texts_are_padded_as_fluxpipeline_pads_them(random_flux):
    pipeline = FluxPipeline.from_pretrained(random_flux)
    clip, t5, mask = tokenize(pipeline, ["a cat", "a much longer text"], length=32)
    assert clip.shape == (2, 77)
    assert t5.shape == mask.shape == (2, 32)
    assert mask[0].sum() == 7  # the blank in front, five letters and the end
    assert mask[1].sum() > mask[0].sum()


def test_words_join_texts_and_long_texts_are_split():
    long = " ".join(f"This is sentence number {i}." for i in range(20))
    mixed = with_words(["a cat", long], ["lantern", "harbour"], seed=0)
    assert "a cat" in mixed
    assert "This is sentence number 3." in mixed
    assert sum("lantern" in text for text in mixed) >= 4
    assert with_words(["a"], ["b"], seed=1) == with_words(["a"], ["b"], seed=1)


def test_the_letter_tokenizers_of_these_tests_tell_texts_apart(tmp_path):
    clip, t5 = letter_tokenizers(tmp_path)
    assert clip("ab").input_ids != clip("ba").input_ids
    assert t5("ab").input_ids[-1] == pytest.approx(1)
