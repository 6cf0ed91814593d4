"""Low-rank experts against one merged weight, and the router's gates against a softmax by hand."""

import math

import pytest
import torch
from torch import nn

from realgen.scorers._svd_experts import LoraExpertLinear, Router, SplitLinear, SvdExpertLinear, gates_of


def filled(module, seed=0):
    """The module with random numbers in every parameter and buffer."""
    generator = torch.Generator().manual_seed(seed)
    module.load_state_dict({name: torch.randn(t.shape, generator=generator) for name, t in module.state_dict().items()})
    return module.double()


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("kind", [SvdExpertLinear, LoraExpertLinear])
def test_experts_are_one_merged_weight_an_image(kind, has_bias):
    layer = filled(kind(nn.Linear(5, 7, bias=has_bias), num_experts=3, rank=2))
    t = layer.state_dict()
    x = torch.randn(2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gates = torch.tensor([[0.3, 0.7, 1.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    answer = layer(x, gates)
    for image in range(2):
        weight = (t["weight_main"] if kind is SvdExpertLinear else t["weight_fixed"]).clone()
        for expert in range(3):
            if kind is SvdExpertLinear:
                part = t[f"U_experts.{expert}"] @ torch.diag(t[f"S_experts.{expert}"]) @ t[f"V_experts.{expert}"]
            else:
                part = t[f"lora_B_experts.{expert}"] @ t[f"lora_A_experts.{expert}"]
            weight += gates[image, expert] * part
        torch.testing.assert_close(answer[image], x[image] @ weight.T + t.get("bias", 0))


def test_an_expert_behind_a_closed_gate_does_nothing():
    layer = filled(SvdExpertLinear(nn.Linear(5, 7), num_experts=2, rank=1))
    x, gates = torch.ones(1, 3, 5, dtype=torch.float64), torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    before = layer(x, gates)
    with torch.no_grad():
        layer.U_experts[0].mul_(100)
    assert torch.equal(before, layer(x, gates))


def test_the_published_names_are_the_layers_own():
    names = set(SvdExpertLinear(nn.Linear(5, 7, bias=False), num_experts=2, rank=1).state_dict())
    assert names == {"weight_main", *(f"{part}_experts.{expert}" for part in "USV" for expert in range(2))}
    assert set(LoraExpertLinear(nn.Linear(5, 7), num_experts=1, rank=1).state_dict()) == {
        "weight_fixed",
        "bias",
        "lora_A_experts.0",
        "lora_B_experts.0",
    }
    assert set(SplitLinear(nn.Linear(5, 7), rank=1).state_dict()) == {
        "weight_main",
        "bias",
        "U_residual",
        "S_residual",
        "V_residual",
    }


@pytest.mark.parametrize("rank", [1, 3])
def test_a_whole_weight_split_by_svd_is_itself_again(rank):
    torch.manual_seed(0)
    linear = nn.Linear(6, 6).double()
    u, s, v = torch.linalg.svd(linear.weight.detach())
    split = SplitLinear(linear, rank=rank)
    split.load_state_dict(
        {
            "weight_main": u[:, :-rank] @ torch.diag(s[:-rank]) @ v[:-rank],
            "U_residual": u[:, -rank:],
            "S_residual": s[-rank:],
            "V_residual": v[-rank:],
            "bias": linear.bias,
        }
    )
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(split.double()(x), linear(x))


def test_gates_are_a_softmax_over_the_largest_and_one_for_the_last():
    gates = gates_of(torch.tensor([[1.0, 3.0, -2.0, 2.0]]), top_k=2, num_experts=5)
    first = math.exp(3) / (math.exp(3) + math.exp(2))
    torch.testing.assert_close(gates, torch.tensor([[0.0, first, 0.0, 1 - first, 1.0]]))


def test_one_expert_at_a_time_has_gate_one_and_none_is_always_on_where_all_are_routed():
    assert gates_of(torch.tensor([[1.0, 3.0]]), top_k=1, num_experts=3).tolist() == [[0, 1, 1]]
    assert gates_of(torch.tensor([[1.0, 3.0]]), top_k=1, num_experts=2).tolist() == [[0, 1]]


def test_gates_pass_gradients_to_the_chosen_alone():
    logits = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    gates_of(logits, top_k=2, num_experts=4)[0, 1].backward()
    assert logits.grad[0, 0] == 0
    share = math.exp(3) / (math.exp(3) + math.exp(2))
    assert logits.grad[0, 1].item() == pytest.approx(share * (1 - share))


def test_the_router_is_two_layers_with_a_relu():
    router = filled(Router(5, hidden=4, num_routed=3))
    t = router.state_dict()
    x = torch.linspace(-1, 1, 10, dtype=torch.float64).view(2, 5)
    hidden = (x @ t["network.0.weight"].T + t["network.0.bias"]).clamp(min=0)
    torch.testing.assert_close(router(x), hidden @ t["network.2.weight"].T + t["network.2.bias"])
