"""Heads on a flow's features: how many answers, what they see, what they read."""

import pytest
import torch

from realgen.train.latent_discriminator import LatentDiscriminator


def discriminator_of(side=8):
    torch.manual_seed(0)
    return LatentDiscriminator(2, 6, side, condition=5, width=8).eval()


@pytest.mark.parametrize(("side", "wholes"), [(2, 4), (4, 4), (8, 4), (16, 4), (6, 9)])
def test_answers_of_places_and_of_wholes(side, wholes):
    maps = [torch.randn(3, 6, side, side) for _ in range(2)]
    places, whole = discriminator_of(side)(maps, torch.zeros(3, 5))
    assert places.shape == (3, 2 * side * side)
    assert whole.shape == (3, 2 * wholes)


def test_a_place_sees_its_neighbours_and_a_whole_nearly_all():
    discriminator, maps = discriminator_of(), [torch.randn(1, 6, 8, 8) for _ in range(2)]
    other = [one.clone() for one in maps]
    other[0][:, :, 7, 7] += 5
    first, second = (discriminator(one, torch.zeros(1, 5)) for one in (maps, other))
    changed = [(a != b)[0] for a, b in zip(first, second, strict=True)]
    assert changed[0][:64].view(8, 8)[6:, 6:].all()
    assert not changed[0][:64].view(8, 8)[:6].any()
    assert changed[1][:4].all()
    assert not changed[1][4:].any()


def test_the_condition_is_read():
    discriminator, maps = discriminator_of(), [torch.randn(1, 6, 8, 8) for _ in range(2)]
    first, second = (discriminator(maps, torch.full((1, 5), value)) for value in (0.0, 1.0))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
