"""The discriminator over frozen features: what learns, what it reads, the augmentation by hand, and that it learns."""

import pytest
import torch
from torch.nn import functional as F

from realgen.train.discriminator import discriminator_loss
from realgen.train.feature_discriminator import FeatureDiscriminator, augmented, level_waves, summary


def eye(pixels):
    """Four maps of 3 channels at strides 4 to 32."""
    return [F.avg_pool2d(pixels, stride) for stride in (4, 8, 16, 32)]


def discriminator_of(condition=5, width=8):
    torch.manual_seed(0)
    return FeatureDiscriminator(eye, [3, 3, 3, 3], condition=condition, width=width)


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


def test_answers_of_every_place_at_every_scale():
    """128 pixels: heads of two, one, no and no halvings over maps of 32, 16, 8 and 4."""
    answers = discriminator_of()(torch.rand(2, 3, 128, 128), torch.zeros(2, 5))
    assert answers.shape == (2, 8 * 8 + 8 * 8 + 8 * 8 + 4 * 4)


def test_only_the_heads_learn():
    discriminator = discriminator_of()
    learned = {name.partition(".")[0] for name, one in discriminator.named_parameters() if one.requires_grad}
    assert learned == {"heads"}
    discriminator(torch.rand(2, 3, 64, 64), torch.randn(2, 5)).sum().backward()
    assert all(one.grad is not None for one in discriminator.heads.parameters())


def test_pixels_get_gradients_through_the_frozen_eye():
    pixels = torch.rand(1, 3, 64, 64, requires_grad=True)
    discriminator_of()(pixels, torch.randn(1, 5)).sum().backward()
    assert (pixels.grad != 0).float().mean() > 0.9


def test_a_place_of_the_finest_scale_sees_the_coarsest():
    """The maps are mixed from coarse to fine: a corner far away from a place still changes its answer."""
    discriminator, pixels = discriminator_of().eval(), torch.rand(1, 3, 128, 128)
    other = pixels.clone()
    other[..., 96:, 96:] = 0
    first, second = (discriminator(one, torch.zeros(1, 5))[0, :64].view(8, 8) for one in (pixels, other))
    assert not torch.equal(first[4, 4], second[4, 4])


def test_the_condition_is_read():
    discriminator, pixels = discriminator_of().eval(), torch.rand(1, 3, 64, 64)
    assert not torch.equal(discriminator(pixels, torch.zeros(1, 5)), discriminator(pixels, torch.ones(1, 5)))


def test_it_learns_which_pictures_fit_their_condition():
    """Bright pictures are real where the condition is 1, dark ones where it is -1."""
    discriminator = discriminator_of(condition=1)
    optimizer = torch.optim.Adam([one for one in discriminator.parameters() if one.requires_grad], lr=3e-3)
    losses = []
    for index in range(150):
        generator = chance(index)
        wanted = torch.randint(2, (8, 1), generator=generator).float() * 2 - 1
        noise = torch.rand(8, 3, 32, 32, generator=generator) * 0.4
        fits, not_fits = (noise + (sign * wanted / 2 + 0.5)[..., None, None] * 0.6 for sign in (1, -1))
        loss = discriminator_loss(discriminator(fits, wanted), discriminator(not_fits, wanted))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.7
    assert sum(losses[-10:]) / 10 < 1.2


def test_a_text_is_read_as_two_normalised_halves():
    read = summary(torch.randn(3, 7, 16) * 5 + 2, torch.randn(3, 4) * 9)
    assert read.shape == (3, 20)
    for half in (read[:, :16], read[:, 16:]):
        torch.testing.assert_close(half.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(half.var(1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_levels_are_told_apart():
    waves = level_waves(torch.tensor([0.0, 0.5, 1.0]))
    assert waves.shape == (3, 8)
    assert torch.cdist(waves, waves).add(torch.eye(3)).min() > 0.5
    torch.testing.assert_close(waves[0], torch.tensor([0.0] * 4 + [1.0] * 4))


def test_the_same_chance_is_the_same_augmentation():
    pixels = torch.rand(4, 3, 32, 32)
    assert torch.equal(augmented(pixels, chance(1)), augmented(pixels, chance(1)))
    assert not torch.equal(augmented(pixels, chance(1)), augmented(pixels, chance(2)))


def test_each_picture_is_augmented_by_itself():
    pixels = torch.rand(1, 3, 32, 32).expand(4, 3, 32, 32)
    first, *others = augmented(pixels, chance())
    assert not any(torch.equal(first, other) for other in others)


def test_holes_have_at_most_a_quarter_of_the_picture():
    """Mid-grey stays above 0 by the brightness, at most 0.25 darker, so what is 0 is the hole."""
    holes = (augmented(torch.full((64, 3, 32, 32), 0.9), chance()) == 0).all(1).float().mean((1, 2))
    assert holes.max() <= 0.25
    assert holes.max() > 0.15
    assert holes.min() < 0.1


def test_gradients_reach_what_is_left_of_the_picture():
    pixels = torch.rand(8, 3, 32, 32, requires_grad=True)
    augmented(pixels, chance()).sum().backward()
    assert (pixels.grad != 0).float().mean() > 0.6


def test_shifts_are_at_most_an_eighth_of_the_side():
    """A bright column in the middle of 64 pixels is found within eight of where it was."""
    pixels = torch.zeros(64, 3, 64, 64)
    pixels[..., 32] = 8.0
    moved = augmented(pixels, chance())
    whole = moved[(moved.amax((1, 3)) > 2).all(1)]
    places = whole.mean((1, 2)).argmax(1)
    assert len(places) > 4
    assert (places - 32).abs().max() <= 8
    assert places.unique().numel() > 3


@pytest.mark.parametrize("side", [8, 128])
def test_any_side(side):
    assert augmented(torch.rand(2, 3, side, side), chance()).shape == (2, 3, side, side)
