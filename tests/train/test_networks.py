"""Exported folders are the hub's own kind: its classes open them, and so does the scorer for any classifier."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification

from conftest import FLOAT32
from realgen.core.errors import ModelError
from realgen.scorers.image_classifier import Options, build
from realgen.train.networks import SIDE, build_convnext, build_pvt, go_on_from

PVT, CONVNEXT = "PvtV2ForImageClassification", "ConvNextForImageClassification"
BUILDERS = {"pvt": build_pvt, "convnext": build_convnext}


@pytest.fixture(scope="module", params=BUILDERS)
def exported(request, tmp_path_factory):
    """A fresh network whose answers differ, and the folder that it saved."""
    torch.manual_seed(0)
    network = BUILDERS[request.param]()
    network.module.eval()
    with torch.no_grad():
        network.head.weight.normal_()
        found = network.log_odds(to_pixels(pictures(SIDE)))
        network.head.weight.mul_(1.5 / found.std())
        network.head.bias[1] = 1.5 / found.std() * found.mean()
    folder = tmp_path_factory.mktemp(request.param)
    network.save(folder)
    return network, folder


def pictures(side, count=4):
    """Waves of the side's own scale, so that resizing costs little, each of a colour of its own."""
    rows, columns = np.mgrid[:side, :side] / side
    rng = np.random.default_rng(0)
    waves = [np.sin(rows * (5 + 2 * i) + columns * (9 - 3 * i)) * 90 + 128 for i in range(count)]
    return [Image.fromarray((wave[..., None] * rng.uniform(0, 1.1, 3)).clip(0, 255).astype(np.uint8)) for wave in waves]


def to_pixels(images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


@torch.no_grad()
def chances(network, images):
    return network.log_odds(to_pixels(images)).sigmoid()


def test_the_head_is_the_last_layer_and_scales_the_log_odds(exported):
    network, _ = exported
    assert network.head.out_features == 2
    with torch.no_grad():
        before = network.log_odds(to_pixels(pictures(SIDE)))
        for parameter in network.head.parameters():
            parameter.mul_(0.5)
        after = network.log_odds(to_pixels(pictures(SIDE)))
        for parameter in network.head.parameters():
            parameter.mul_(2)
    assert after.tolist() == pytest.approx((before / 2).tolist(), abs=1e-4)
    assert before.std() > 0.05


def test_it_is_small(exported):
    weights = sum(parameter.numel() for parameter in exported[0].module.parameters())
    assert 1.5e6 < weights < 3e6


def test_the_folder_opens_with_transformers_and_gives_the_same_chances(exported):
    network, folder = exported
    names = {"config.json", "model.safetensors", "preprocessor_config.json"}
    assert {file.name for file in folder.iterdir()} == names
    model = AutoModelForImageClassification.from_pretrained(folder)
    assert type(model) is type(network.module)
    assert model.config.id2label == {0: "real", 1: "fake"}
    assert model.config.label2id == {"real": 0, "fake": 1}
    assert model.dtype == torch.bfloat16
    images = pictures(SIDE)
    with torch.no_grad():
        said = json.loads((folder / "preprocessor_config.json").read_text())
        mean, std = (torch.tensor(said[f"image_{part}"]).view(3, 1, 1) for part in ("mean", "std"))
        found = model.float().eval()(pixel_values=(to_pixels(images) - mean) / std).logits.softmax(-1)[:, 0]
    assert found.tolist() == pytest.approx(chances(network, images).tolist(), abs=0.01)  # weights of three digits


def test_saving_leaves_the_network_as_it_is(exported, tmp_path):
    network, folder = exported
    before = {name: value.clone() for name, value in network.module.state_dict().items()}
    network.save(tmp_path)
    after = network.module.state_dict()
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(torch.equal(before[name], value) for name, value in after.items())
    again, first = (path / "model.safetensors" for path in (tmp_path, folder))
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize(("factor", "gap"), [(1, 0.01), (2, 0.02)])
def test_the_scorer_for_any_classifier_agrees_with_the_trainer(exported, factor, gap):
    """bfloat16 weights cost a hundredth at the network's own size; Pillow's resize instead of torch's as much again."""
    network, folder = exported
    scorer = build(Options(model=str(folder), real_label="real"), FLOAT32)
    images = pictures(SIDE * factor)
    wanted = chances(network, images)
    scores = scorer(images, [""] * len(images))
    assert [score.value for score in scores] == pytest.approx(wanted.tolist(), abs=gap)
    assert wanted.max() - wanted.min() > 3 * gap
    turned = build(Options(model=str(folder), real_label="fake"), FLOAT32)(images, [""] * len(images))
    assert [1 - score.value for score in turned] == pytest.approx([score.value for score in scores], abs=1e-5)


def test_pixels_have_gradients_at_any_size(exported):
    network, _ = exported
    pixels = to_pixels(pictures(SIDE + 20)[:2]).requires_grad_()
    answers = network.log_odds(pixels)
    assert answers.shape == (2,)
    answers.sum().backward()
    assert all(row.abs().max() > 0 for row in pixels.grad)
    network.module.zero_grad()


def test_a_training_goes_on_from_what_was_exported(exported):
    network, folder = exported
    fresh = {PVT: build_pvt, CONVNEXT: build_convnext}[type(network.module).__name__]()
    go_on_from(fresh.module, folder)
    fresh.module.eval()
    assert chances(fresh, pictures(SIDE)).tolist() == pytest.approx(chances(network, pictures(SIDE)).tolist(), abs=0.01)
    assert all(value.dtype == torch.float32 for value in fresh.module.state_dict().values())


def test_another_network_s_folder_and_none_are_refused(exported, tmp_path):
    network, folder = exported
    other = {PVT: build_convnext, CONVNEXT: build_pvt}[type(network.module).__name__]()
    for place in (folder, tmp_path):
        with pytest.raises(ModelError, match="cannot go on from"):
            go_on_from(other.module, place)
