"""How unlike photographs pictures are: nothing where they are the same, by hand, and who learns from it."""

import pytest
import torch
from torch.nn import functional as F

from realgen.train.half_drawn import chance
from realgen.train.likeness import Likeness


def eye(pixels):
    return [F.avg_pool2d(pixels, stride) for stride in (1, 2, 4, 8, 16)]


def decode(latents):
    """Eight tokens a side, each a square of four pixels."""
    return F.interpolate(latents.transpose(1, 2).unflatten(2, (8, 8)), scale_factor=4)


def likeness_of(side=64):
    return Likeness(eye, decode, side=side, weight=1.0)


def latents_of(seed):
    return torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(seed))


def test_the_same_pictures_are_nothing_apart():
    assert likeness_of().away(latents_of(0), latents_of(0), chance(0, 0, 0)).item() == pytest.approx(0, abs=1e-9)


def test_pictures_further_away_are_less_alike():
    one, other = latents_of(0), latents_of(1)
    far = [likeness_of().away(one + share * (other - one), one, chance(0, 0, 0)).item() for share in (0.1, 0.3, 1)]
    assert 0 < far[0] < far[1] < far[2]


def test_colours_of_one_hue_differ_in_strength_alone():
    """Maps of length one are the same where a grey is darker: what is left is a tenth of the difference."""
    grey = torch.full((1, 64, 3), 0.8)
    assert likeness_of().away(grey / 2, grey, chance(0, 0, 0)).item() == pytest.approx(0.04, rel=1e-4)


def test_other_hues_are_two_apart_on_every_map():
    red, green = (F.one_hot(torch.full((1, 64), place), 3).float() for place in (0, 1))
    assert likeness_of().away(red, green, chance(0, 0, 0)).item() == pytest.approx(2 + 0.1 * 2 / 3, rel=1e-4)


def test_what_was_drawn_learns_from_it_and_the_photograph_does_not():
    drawn, real = latents_of(0).requires_grad_(), latents_of(1).requires_grad_()
    likeness_of().away(drawn, real, chance(0, 0, 0)).backward()
    assert drawn.grad.any()
    assert real.grad is None
