"""Heads on a flow's features: how many answers, what they see, what they read."""

import pytest
import torch

from realgen.train.latent_discriminator import LatentDiscriminator


def discriminator_of():
    torch.manual_seed(0)
    return LatentDiscriminator(2, 6, condition=5, width=8).eval()


@pytest.mark.parametrize(("side", "wholes"), [(2, 1), (4, 4), (8, 16), (6, 9)])
def test_answers_of_places_and_of_wholes(side, wholes):
    maps = [torch.randn(3, 6, side, side) for _ in range(2)]
    places, whole = discriminator_of()(maps, torch.zeros(3, 5))
    assert places.shape == (3, 2 * side * side)
    assert whole.shape == (3, 2 * wholes)


def test_a_place_sees_two_around_it_and_a_whole_most_of_a_side():
    discriminator, maps = discriminator_of(), [torch.randn(1, 6, 8, 8) for _ in range(2)]
    other = [one.clone() for one in maps]
    other[0][:, :, 7, 7] += 5
    first, second = (discriminator(one, torch.zeros(1, 5)) for one in (maps, other))
    places, wholes = ((a != b)[0] for a, b in zip(first, second, strict=True))
    assert places[:64].view(8, 8)[5:, 5:].all()
    assert places[:64].sum() == 9
    assert not places[64:].any()
    assert wholes[:16].view(4, 4)[1:, 1:].all()
    assert wholes[:16].sum() == 9
    assert not wholes[16:].any()


def test_the_condition_is_read():
    discriminator, maps = discriminator_of(), [torch.randn(1, 6, 8, 8) for _ in range(2)]
    first, second = (discriminator(maps, torch.full((1, 5), value)) for value in (0.0, 1.0))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
