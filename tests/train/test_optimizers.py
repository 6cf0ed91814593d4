"""Muon for matrices and AdamW for the rest: who gets which, shared memory, and an exact resume."""

import pytest
import torch
from torch import nn

from realgen.train.optimizers import Muon, MuonAdamW, orthogonal


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 4, 5), nn.LayerNorm(5))


def step(model, optimizer, seed=0):
    x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step(1e-2)


def test_everything_moves_and_gradients_are_dropped():
    model = network()
    optimizer = MuonAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    before = [parameter.clone() for parameter in model.parameters()]
    x = torch.randn(8, 3, 4, 4)
    (model(x) * torch.arange(5)).square().mean().backward()
    optimizer.step(1e-2)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_kernel_is_updated_as_an_orthogonal_matrix():
    """Muon's update of a (4, 27) matrix at lr 1 has all singular values near 0.2 sqrt(27)."""
    model = network()
    optimizer = MuonAdamW(model.named_parameters(), lr=1.0, weight_decay=0.0)
    before = model[0].weight.detach().clone()
    x = torch.randn(8, 3, 4, 4)
    model(x).pow(3).mean().backward()
    optimizer.step(1.0)
    values = torch.linalg.svdvals((before - model[0].weight.detach()).flatten(1))
    assert values.min() > 0.5 * 0.2 * 27**0.5
    assert values.max() < 1.5 * 0.2 * 27**0.5


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonal_has_singular_values_near_one_and_the_matrix_own_directions(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    inner = u.T @ orthogonal(matrix) @ vh.T
    assert (inner - torch.diag(inner.diag())).abs().max() < 1e-4


def test_steps_are_those_of_torch_but_for_its_bfloat16():
    torch.manual_seed(0)
    start = torch.randn(24, 36)
    gradients = [torch.randn(24, 36) for _ in range(4)]
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = [
        (ours, Muon([ours], lr=0.1, weight_decay=0.05)),
        (theirs, torch.optim.Muon([theirs], lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")),
    ]
    for gradient in gradients:
        for parameter, optimizer in optimizers:
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_names_can_be_kept_from_muon():
    model = network()
    muon = MuonAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    adam = MuonAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.0, adam_names=("0.*",))
    assert len(muon.state_dict()["muon"]["param_groups"][0]["params"]) == 2
    assert len(adam.state_dict()["muon"]["param_groups"][0]["params"]) == 1


def test_frozen_parameters_are_left_alone():
    model = network()
    model[2].requires_grad_(False)
    optimizer = MuonAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.1)
    before = model[2].weight.clone()
    step(model, optimizer)
    assert torch.equal(before, model[2].weight)


def test_clipping_is_over_all():
    model = network()
    optimizer = MuonAdamW(model.named_parameters(), lr=1e-2, weight_decay=0.0)
    (model(torch.randn(8, 3, 4, 4)) * 100).pow(2).sum().backward()
    before = optimizer.clip(1.0)
    after = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert before > 1
    assert after.item() == pytest.approx(1, rel=1e-3)


def test_a_resume_is_exact():
    whole, cut = network(), network()
    one = MuonAdamW(whole.named_parameters(), lr=1e-2, weight_decay=0.01)
    two = MuonAdamW(cut.named_parameters(), lr=1e-2, weight_decay=0.01)
    for seed in range(4):
        step(whole, one, seed)
    for seed in range(2):
        step(cut, two, seed)
    resumed = network()
    resumed.load_state_dict(cut.state_dict())
    three = MuonAdamW(resumed.named_parameters(), lr=1e-2, weight_decay=0.01)
    three.load_state_dict(two.state_dict())
    for seed in range(2, 4):
        step(resumed, three, seed)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
