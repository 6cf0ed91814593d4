"""Effort against its published formulas worked out slowly, its sign, its own preprocessing, and that it is held out."""

import pytest
import torch
from safetensors.torch import save_file

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.hub import card as cards
from realgen.scorers._pixels import Preprocess
from realgen.scorers.effort import Options, build
from tiny_detectors import (
    CLIP_SIDE,
    assert_contract,
    effort_p_real,
    gradient_error,
    pictures,
    random_effort,
    random_omniaid,
    squashed,
    values,
)


def opened(tmp_path, tensors):
    torch.save(tensors, tmp_path / "effort.pth")
    return build(Options(model=str(tmp_path / "effort.pth")), FLOAT32)


@pytest.mark.parametrize("wrap", ["bare", "module", "state_dict", "both", "safetensors"])
def test_scores_are_those_of_the_published_formulas_however_the_file_is_wrapped(tmp_path, wrap):
    tensors = random_effort()
    prefixed = {f"module.{name}": tensor for name, tensor in tensors.items()}
    if wrap == "safetensors":
        save_file(tensors, tmp_path / "effort.safetensors")
        scorer = build(Options(model=str(tmp_path)), FLOAT32)
    else:
        wrapped = {"bare": tensors, "module": prefixed, "state_dict": {"state_dict": tensors}}
        scorer = opened(tmp_path, wrapped.get(wrap, {"state_dict": prefixed, "epoch": 1}))
    images = pictures()
    wanted = effort_p_real(tensors, squashed(images, CLIP_SIDE))
    assert wanted.std() > 1e-3
    assert values(scorer(images, [""] * 4)) == pytest.approx(wanted.tolist(), abs=2e-5)


@pytest.mark.parametrize(("index", "wanted"), [(0, 1.0), (1, 0.0)])
def test_the_heads_first_class_is_real(tmp_path, index, wanted):
    tensors = random_effort()
    tensors["head.bias"][index] = 100.0
    assert values(opened(tmp_path, tensors)(pictures(2), ["", ""])) == pytest.approx([wanted] * 2, abs=1e-6)


def test_the_residual_is_part_of_the_weight(tmp_path):
    tensors = random_effort()
    without = {name: torch.zeros_like(t) if name.endswith("S_residual") else t for name, t in tensors.items()}
    one, other = (values(opened(tmp_path, held)(pictures(1), [""]))[0] for held in (tensors, without))
    assert abs(one - other) > 1e-3


def test_gradients_to_the_pixels_are_those_of_finite_differences(tmp_path):
    assert gradient_error(opened(tmp_path, random_effort())) < 1e-6


def test_the_contract_of_every_scorer(tmp_path):
    assert_contract(opened(tmp_path, random_effort()), pictures())


def test_it_is_held_out_and_names_its_licence(tmp_path):
    scorer = opened(tmp_path, random_effort())
    assert scorer.info.is_held_out
    assert scorer.info.licence == "CC-BY-NC-4.0"
    assert "2411.15633" in scorer.info.source


def test_its_pictures_are_squashed_and_normalised_as_clips(tmp_path):
    assert opened(tmp_path, random_effort()).preprocess == Preprocess(size=CLIP_SIDE)
    images = pictures(1, size=(410, 300))
    torch.testing.assert_close(Preprocess(size=224)(images[0]).double(), squashed(images, 224)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.weight": None}, "lacks head.weight"),
        ({"backbone.encoder.layers.0.self_attn.q_proj.S_residual": None}, "self_attn.q_proj.S_residual"),
        ({"backbone.encoder.layers.1.self_attn.k_proj.weight_main": None}, "self_attn.k_proj.weight_main"),
        ({"head.extra": torch.zeros(1)}, "head.extra"),
        ({"head.bias": torch.zeros(3)}, r"head.bias.*\(3,\)"),
    ],
)
def test_a_file_that_does_not_fit_is_named_in_one_line(tmp_path, change, said):
    tensors = {name: tensor for name, tensor in {**random_effort(), **change}.items() if tensor is not None}
    with pytest.raises(ModelError, match=said) as caught:
        opened(tmp_path, tensors)
    assert "\n" not in caught.value.message


def test_a_file_of_another_detector_is_refused(tmp_path):
    with pytest.raises(ModelError, match="not for this plug-in: it lacks backbone"):
        opened(tmp_path, random_omniaid())


def test_without_a_model_it_says_what_to_give():
    with pytest.raises(ConfigError, match="effort: no model"):
        build(Options(), FLOAT32)


def test_its_card_is_held_out_and_says_where_a_person_gets_it():
    card = cards.read("effort")
    assert (card.plugin, card.is_held_out, card.licence) == ("effort", True, "CC-BY-NC-4.0")
    assert card.source.kind == "manual"
    assert card.source.page.startswith("https://github.com/YZY-stack/")
