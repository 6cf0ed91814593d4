import pytest
import torch

from realgen.train.visibility import visibility


class Linear:
    """A decoder whose pixels are 3, 1 and 0 times its three channels, and then some."""

    def decode(self, x, size):
        return (x * torch.tensor([3.0, 1.0, 0.0])).sum(2)


def test_it_is_the_squared_gain_of_a_linear_decoder():
    """Gains 3, 1 and 0 squared are 9, 1 and 0, their mean 10/3: 2.7, 0.3 and 0."""
    found = visibility(Linear(), torch.zeros(64, 64, 3), (8, 8))
    assert found.tolist() == pytest.approx([2.7, 0.3, 0.0], abs=0.1)
    assert found.mean().item() == pytest.approx(1)


def test_it_is_the_same_at_every_call():
    latents = torch.randn(2, 4, 3)
    assert torch.equal(visibility(Linear(), latents, (8, 8)), visibility(Linear(), latents, (8, 8)))
