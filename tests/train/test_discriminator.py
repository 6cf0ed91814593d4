"""The patch discriminator: what a patch sees, the losses and the weight by hand, and that it learns."""

import pytest
import torch

from realgen.train.discriminator import PatchDiscriminator, adaptive_weight, decoder_loss, discriminator_loss


def discriminator_of(width=8):
    torch.manual_seed(0)
    return PatchDiscriminator(width=width)


@pytest.mark.parametrize("size", [(16, 16), (64, 32)])
def test_an_answer_for_every_eighth_pixel(size):
    assert discriminator_of()(torch.zeros(2, 3, *size)).shape == (2, 1, size[0] // 8, size[1] // 8)


def test_a_patch_is_38_pixels():
    """Three 4x4 convolutions of stride 2 see 4, 10 and 22 pixels; a 3x3 one at a stride of 8 sees 16 more."""
    pixels = torch.rand(1, 3, 96, 96, requires_grad=True)
    discriminator_of()(pixels)[0, 0, 6, 6].backward()
    seen = pixels.grad.abs().sum((0, 1)).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [38, 38]


def test_every_kernel_is_held_to_spectral_norm_1():
    discriminator = discriminator_of()
    with torch.no_grad():
        for _ in range(50):
            discriminator(torch.zeros(1, 3, 16, 16))
        kernels = [layer.weight for layer in discriminator.layers if hasattr(layer, "weight")]
    largest = [torch.linalg.matrix_norm(kernel.flatten(1), 2).item() for kernel in kernels]
    assert len(largest) == 4
    assert largest == pytest.approx([1] * 4, abs=0.02)


def test_hinge_losses_by_hand():
    """Real 2 is beyond the margin and 0 is not: (0 + 1) / 2; fake -2 and 1: (0 + 2) / 2; the decoder's: -(-1/2)."""
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 1.0])
    assert discriminator_loss(real, fake).item() == 0.5 + 1
    assert decoder_loss(fake).item() == 0.5
    assert discriminator_loss(torch.zeros(4), torch.zeros(4)).item() == 2


def test_the_adaptive_weight_by_hand():
    """Lengths 5 and 2."""
    assert adaptive_weight(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, -2.0]])).item() == pytest.approx(2.5)


def test_the_adaptive_weight_is_bounded_where_the_discriminator_says_nothing():
    assert adaptive_weight(torch.ones(4), torch.zeros(4)).item() == 1e4
    assert adaptive_weight(torch.zeros(4), torch.zeros(4)).item() == 0


def test_it_learns_to_tell_noise_from_its_blur():
    discriminator = discriminator_of()
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(40):
        sharp = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
        soft = torch.nn.functional.avg_pool2d(sharp, 3, stride=1, padding=1)
        loss = discriminator_loss(discriminator(sharp), discriminator(soft))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.8
    assert losses[-1] < 1
