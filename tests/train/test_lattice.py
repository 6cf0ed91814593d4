"""Woven pictures have a lattice, whatever their contrast and wherever it starts; noise and other weaves have none."""

import pytest
import torch

from realgen.train.lattice import lattice

PERIOD, SQUARES = 16, 8


def noise(count, *shape):
    return torch.rand(count, *(shape or (3, 128, 128)), generator=torch.Generator().manual_seed(count))


def woven(count, period=PERIOD):
    """Noise over a tiling; each picture has a tile of its own."""
    times = -(-128 // period)
    tiles = noise(count, 1, period, period).repeat(1, 3, times, times)[:, :, :128, :128]
    return 0.5 * noise(count) + 0.5 * tiles


def test_noise_has_none():
    assert lattice(noise(64), SQUARES).item() == pytest.approx(0, abs=0.1)


def test_a_tiling_has_one_whatever_its_contrast_and_its_start():
    found = lattice(woven(16), SQUARES).item()
    assert found > 1.5
    assert lattice(0.4 + 0.2 * woven(16), SQUARES).item() == pytest.approx(found, abs=0.01)
    assert lattice(woven(16).roll((5, 9), (2, 3)), SQUARES).item() > 0.8 * found


def test_another_period_and_an_edge_have_none():
    assert lattice(woven(16, period=13), SQUARES).item() < 0.3
    edge = noise(16) * 0.2
    edge[..., 40:] += 0.8
    assert lattice(edge, SQUARES).item() < 0.3


def test_its_gradient_unweaves_and_is_finite_for_an_empty_picture():
    pictures = woven(8).requires_grad_()
    before = lattice(pictures, SQUARES)
    before.backward()
    assert lattice(pictures - 2 * pictures.grad / pictures.grad.norm(), SQUARES) < before - 0.1
    empty = torch.zeros(2, 3, 128, 128, requires_grad=True)
    lattice(empty, SQUARES).backward()
    assert empty.grad.isfinite().all()
