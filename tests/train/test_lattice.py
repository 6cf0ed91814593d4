"""Pictures woven alike have a lattice; noise, and pictures that are woven each in its own way, have none."""

import pytest
import torch

from realgen.train.lattice import lattice

PERIOD = 8


def noise(count):
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def woven(count):
    """Noise that is stronger on every eighth row and column."""
    pictures = 0.5 + 0.1 * (noise(count) - 0.5)
    for place in (3, 4):
        pictures[:, :, place::PERIOD] += 0.4 * (noise(count)[:, :, place::PERIOD] - 0.5)
        pictures[..., place::PERIOD] += 0.4 * (noise(count)[..., place::PERIOD] - 0.5)
    return pictures


def test_noise_has_none():
    assert lattice(noise(32), PERIOD).item() == pytest.approx(0, abs=5e-4)


def test_what_is_woven_alike_has_one_whatever_its_contrast():
    found = lattice(woven(8), PERIOD).item()
    assert found > 0.1
    assert lattice(0.5 + 0.3 * (woven(8) - 0.5), PERIOD).item() == pytest.approx(found, rel=0.02)


def test_each_woven_in_its_own_way_has_none():
    shifted = torch.stack([picture.roll((shift, shift), (1, 2)) for shift, picture in enumerate(woven(64))])
    assert abs(lattice(shifted, PERIOD).item()) < 0.02 * lattice(woven(64), PERIOD).item()


def test_what_does_not_fill_a_square_is_cut():
    cut = torch.nn.functional.pad(woven(8), (0, 5, 0, 3), mode="replicate")
    assert lattice(cut, PERIOD).item() == pytest.approx(lattice(woven(8), PERIOD).item(), rel=0.05)


def test_its_gradient_unweaves_and_is_finite_for_an_empty_picture():
    pictures = woven(8).requires_grad_()
    before = lattice(pictures, PERIOD)
    before.backward()
    after = lattice(pictures - 0.5 * pictures.grad / pictures.grad.norm(), PERIOD)
    assert after < before
    empty = torch.zeros(2, 3, 16, 16, requires_grad=True)
    lattice(empty, PERIOD).backward()
    assert empty.grad.isfinite().all()
