"""A tiny classifier of the real class: its probability of the label that was named, and what is refused at loading."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from conftest import FLOAT32
from realgen.core.errors import ConfigError, ModelError
from realgen.scorers.image_classifier import Options, build, label_index
from tiny_detectors import assert_contract, gradient_error, pictures, squashed, values

LABELS = {0: "artificial", 1: "Real", 2: "drawn"}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROCESSOR = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": HALF[0],
    "image_std": HALF[1],
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "rescale_factor": 1 / 255,
    "size": {"height": 32, "width": 32},
}


def save(folder, labels=LABELS):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        initializer_range=0.3,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    ViTForImageClassification(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("classifier"))


def opened(folder, **options):
    return build(Options(model=str(folder), **{"real_label": "real", **options}), FLOAT32)


def logits(folder, images):
    """What transformers' own class answers to pixels made by hand."""
    model = ViTForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(squashed(images, 32, statistics=HALF).float()).logits


@pytest.mark.parametrize("label", ["real", "Real", 1, 0, "drawn"])
def test_the_score_is_the_probability_of_the_named_label(folder, label):
    images = pictures()
    index = {"real": 1, "Real": 1, "drawn": 2}.get(label, label)
    wanted = logits(folder, images).softmax(-1)[:, index]
    assert wanted.std() > 1e-3
    assert values(opened(folder, real_label=label)(images, [""] * 4)) == pytest.approx(wanted.tolist(), abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_divides_the_logits(folder, temperature):
    images = pictures(2)
    scaled = logits(folder, images) / temperature
    for activation, wanted in (("softmax", scaled.softmax(-1)), ("sigmoid", scaled.sigmoid())):
        scorer = opened(folder, temperature=temperature, activation=activation)
        assert values(scorer(images, ["", ""])) == pytest.approx(wanted[:, 1].tolist(), abs=1e-5)


def test_a_head_that_leans_to_the_label_scores_near_one(folder, tmp_path):
    tensors = load_file(save(tmp_path) / "model.safetensors")
    tensors["classifier.bias"] = torch.tensor([0.0, 50.0, 0.0])
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert values(opened(tmp_path)(pictures(1), [""])) == pytest.approx([1], abs=1e-4)
    assert values(opened(tmp_path, real_label="drawn")(pictures(1), [""])) == pytest.approx([0], abs=1e-4)


def test_gradients_to_the_pixels_are_those_of_finite_differences(folder):
    assert gradient_error(opened(folder, temperature=2.0)) < 1e-6


def test_the_contract_of_every_scorer(folder):
    assert_contract(opened(folder), pictures())


def test_it_is_frozen_until_a_refresh_and_all_of_it_can_be_trained(folder):
    scorer = opened(folder)
    assert not any(parameter.requires_grad for parameter in scorer.module.parameters())
    assert set(scorer.trainable_parameters()) == {name for name, _ in scorer.module.named_parameters()}


@pytest.mark.parametrize("label", [None, "genuine", 3, -1])
def test_a_label_that_is_not_there_gets_the_list(folder, label):
    with pytest.raises(ConfigError, match="label") as caught:
        opened(folder, real_label=label)
    assert "0: artificial, 1: Real, 2: drawn" in caught.value.hint


def test_names_and_indices_find_a_label():
    assert label_index({0: "Fake", 1: "Real"}, "REAL") == 1
    assert label_index({0: "Fake", 1: "Real"}, 0) == 0
    assert label_index({0: "1", 1: "0"}, "1") == 0  # a name is a name, whatever it looks like


def test_a_softmax_over_one_label_is_refused(tmp_path):
    save(tmp_path, {0: "real"})
    with pytest.raises(ConfigError, match="always 1") as caught:
        opened(tmp_path)
    assert "sigmoid" in caught.value.hint
    images = pictures(1)
    wanted = logits(tmp_path, images).sigmoid()[:, 0]
    assert values(opened(tmp_path, activation="sigmoid")(images, [""])) == pytest.approx(wanted.tolist(), abs=1e-5)


def test_a_checkpoint_without_its_head_is_refused_instead_of_drawing_one(tmp_path):
    file = save(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    del tensors["classifier.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no image classifier: missing: classifier\.weight"):
        opened(tmp_path)


def test_a_damaged_or_missing_model_is_named_in_one_line(tmp_path):
    file = save(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    for path, said in ((tmp_path, "damaged"), (tmp_path / "nothing", "no model at")):
        with pytest.raises(ModelError, match=said) as caught:
            opened(path)
        assert "\n" not in caught.value.message


def test_a_model_of_another_kind_is_refused(tmp_path):
    config = json.loads((save(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "t5"}))
    with pytest.raises(ModelError, match="cannot load"):
        opened(tmp_path)


def test_a_processor_that_does_more_than_resize_is_refused(tmp_path):
    save(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, "crop_pct": 0.9}))
    with pytest.raises(ModelError, match=r"crop_pct=0\.9"):
        opened(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no image processor's settings"):
        opened(tmp_path)


def test_without_a_model_it_says_what_to_give():
    with pytest.raises(ConfigError, match="image_classifier: no model"):
        build(Options(), FLOAT32)
