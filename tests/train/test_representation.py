"""Representation alignment: its loss by hand, whom it teaches, and features that share no common part."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from realgen.train.representation import RepresentationAlignment, standardised


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, text, image):
        return self.inner(text), self.inner(image)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Layer()


def test_the_loss_is_one_minus_the_mean_cosine_of_image_tokens(layer):
    alignment = RepresentationAlignment(layer, width=6, features=5, weight=0.5)
    text, image, features = torch.randn(2, 3, 6), torch.randn(2, 4, 6), torch.randn(2, 4, 5)
    layer(text, image)
    found = alignment.loss(features)
    projected = alignment.projection(layer.inner(image))
    cosines = (F.normalize(projected, dim=-1) * F.normalize(features, dim=-1)).sum(-1)
    torch.testing.assert_close(found, 1 - cosines.mean(1))


def test_the_layer_learns_and_the_projection_too(layer):
    alignment = RepresentationAlignment(layer, width=6, features=5, weight=0.5)
    optimizer = torch.optim.Adam([*layer.parameters(), *alignment.parameters()], lr=1e-2)
    text, image, features = torch.randn(2, 3, 6), torch.randn(2, 4, 6), torch.randn(2, 4, 5)
    losses = []
    for _ in range(60):
        layer(text, image)
        loss = alignment.loss(features).mean()
        loss.backward()
        assert all(parameter.grad is not None for parameter in [*layer.parameters(), *alignment.parameters()])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_only_the_projection_is_its_own(layer):
    alignment = RepresentationAlignment(layer, width=6, features=5, weight=0.5)
    assert all(name.startswith("projection.") for name, _ in alignment.named_parameters())


def test_a_forward_is_compared_once(layer):
    alignment = RepresentationAlignment(layer, width=6, features=5, weight=0.5)
    layer(torch.randn(1, 3, 6), torch.randn(1, 4, 6))
    alignment.loss(torch.randn(1, 4, 5))
    with pytest.raises(RuntimeError, match="has not run"):
        alignment.loss(torch.randn(1, 4, 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_standardised_features_have_mean_0_and_deviation_1(dtype):
    features = (torch.randn(2, 50, 8, 4) * torch.tensor([1.0, 5, 0.2, 3]) + torch.tensor([9.0, 0, -3, 1])).to(dtype)
    found = standardised(features).float().flatten(0, 2)
    assert found.mean(0).abs().max() < 0.05
    assert (found.std(0) - 1).abs().max() < 0.05


def test_a_channel_that_never_changes_is_nothing():
    features = torch.randn(3, 4, 2)
    features[..., 1] = 7
    assert torch.isfinite(standardised(features)).all()
    assert features[..., 1].abs().max() == 0
