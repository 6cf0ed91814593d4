"""The discriminator of contents: its groups, what it reads, and in which ways pictures are enlarged."""

import pytest
import torch
from torch.nn import functional as F

from realgen.train.enlarged_discriminator import EnlargedDiscriminator, enlarged


def eye(pixels):
    """Five maps of 3 channels at strides 2 to 32."""
    return [F.avg_pool2d(pixels, stride) for stride in (2, 4, 8, 16, 32)]


def discriminator_of(condition=5):
    torch.manual_seed(0)
    return EnlargedDiscriminator(eye, [3] * 5, condition=condition, width=8)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def test_four_groups_of_answers():
    """128 pixels: places at stride 16, one of wholes, and details at twice strides 8 and 4."""
    answers = discriminator_of()(torch.rand(2, 3, 128, 128), torch.zeros(2, 5))
    assert [one.shape for one in answers] == [(2, 8 * 8), (2, 1), (2, 8 * 8), (2, 16 * 16)]


def test_all_of_it_learns_and_pixels_get_gradients():
    discriminator, pixels = discriminator_of(), torch.rand(2, 3, 64, 64, requires_grad=True)
    torch.cat(discriminator(pixels, torch.randn(2, 5)), 1).square().sum().backward()
    assert all(one.grad is not None and one.grad.any() for one in discriminator.parameters())
    assert (pixels.grad != 0).float().mean() > 0.9


def test_the_wholes_alone_read_the_condition():
    pixels = torch.rand(1, 3, 64, 64)
    zeros, ones = (discriminator_of()(pixels, torch.full((1, 5), value)) for value in (0.0, 1.0))
    assert [torch.equal(*pair) for pair in zip(zeros, ones, strict=True)] == [True, False, True, True]


def test_the_same_chance_is_the_same_window():
    pixels = torch.rand(4, 3, 32, 32)
    first, again, other = (enlarged(pixels, 64, chance(seed), noise=0.1) for seed in (1, 1, 2))
    assert first.shape == (4, 3, 64, 64)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_windows_hold_most_of_the_picture_and_half_are_mirrored():
    """A ramp from left to right: what is seen spans at least 0.9 of it, rising or falling."""
    ramp = torch.linspace(0, 1, 64).expand(200, 3, 64, 64)
    seen = enlarged(ramp, 128, chance(), noise=0)[:, 0, 64]
    spans = seen.amax(1) - seen.amin(1)
    assert spans.min() > 0.87
    assert spans.max() <= 1.05
    rising = (seen[:, -1] > seen[:, 0]).float().mean()
    assert 0.35 < rising < 0.65


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_half_of_the_pictures_are_noised(noise):
    grey = torch.full((200, 3, 32, 32), 0.5)
    grain = enlarged(grey, 64, chance(), noise=noise).flatten(1).std(1)
    if noise == 0:
        assert grain.max() < 1e-5
    else:
        assert 0.35 < (grain > 1e-5).float().mean() < 0.65
        assert 0.1 * noise < grain.max() <= noise


def test_gradients_reach_every_picture():
    pixels = (0.2 + 0.6 * torch.rand(4, 3, 32, 32)).requires_grad_()
    enlarged(pixels, 64, chance(), noise=0.1).sum().backward()
    assert (pixels.grad != 0).flatten(1).float().mean(1).min() > 0.7
