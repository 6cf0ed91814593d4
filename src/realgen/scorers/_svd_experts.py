"""Linear layers with a fixed main part and low-rank parts beside it, as OmniAID and Effort publish them.

    y = W x + b + sum over experts e of g_e U_e (s_e * V_e x)

W (out, in) is what is left of a trained weight without its smallest singular triplets; U_e (out, r), s_e (r) and
V_e (r, in) start as those triplets. The LoRA variant keeps the whole weight as W, and has B_e for U_e, A_e for V_e and
no s_e. Parameters bear the published names. Knows nothing of towers, of what is detected, or of files.

Sources: OmniAID (arXiv 2511.08423, section 3), Effort (arXiv 2411.15633, equation 3).
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kind = Literal["svd", "lora"]


class SvdExpertLinear(nn.Module):
    """A linear layer with SVD experts; `forward` takes x (B, T, in) and gates (B, E), and gives (B, T, out)."""

    def __init__(self, linear: nn.Linear, *, num_experts: int, rank: int) -> None:
        super().__init__()
        num_in, num_out = linear.in_features, linear.out_features
        self.register_buffer("weight_main", torch.empty(num_out, num_in))
        self.U_experts = _parameters(num_experts, num_out, rank)
        self.S_experts = _parameters(num_experts, rank)
        self.V_experts = _parameters(num_experts, rank, num_in)
        self.bias = linear.bias

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """The main part, and the experts as far as their gates are open."""
        gains = gates[:, :, None] * torch.stack([*self.S_experts])  # (B, E, r)
        main = F.linear(x, self.weight_main, self.bias)
        return main + _low_rank(x, gains, torch.cat([*self.V_experts]), torch.cat([*self.U_experts], dim=1))


class LoraExpertLinear(nn.Module):
    """A linear layer with LoRA experts, without a scale; in and out as `SvdExpertLinear`."""

    def __init__(self, linear: nn.Linear, *, num_experts: int, rank: int) -> None:
        super().__init__()
        num_in, num_out = linear.in_features, linear.out_features
        self.register_buffer("weight_fixed", torch.empty(num_out, num_in))
        self.lora_A_experts = _parameters(num_experts, rank, num_in)
        self.lora_B_experts = _parameters(num_experts, num_out, rank)
        self.bias = linear.bias

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """The whole weight, and the experts as far as their gates are open."""
        down, up = torch.cat([*self.lora_A_experts]), torch.cat([*self.lora_B_experts], dim=1)
        gains = gates[:, :, None].expand(-1, -1, len(down) // gates.shape[1])  # (B, E, r)
        return F.linear(x, self.weight_fixed, self.bias) + _low_rank(x, gains, down, up)


class SplitLinear(nn.Module):
    """A linear layer with one SVD residual that is always on: (..., in) to (..., out)."""

    def __init__(self, linear: nn.Linear, *, rank: int) -> None:
        super().__init__()
        num_in, num_out = linear.in_features, linear.out_features
        self.register_buffer("weight_main", torch.empty(num_out, num_in))
        self.U_residual = nn.Parameter(torch.empty(num_out, rank))
        self.S_residual = nn.Parameter(torch.empty(rank))
        self.V_residual = nn.Parameter(torch.empty(rank, num_in))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """The main part and the residual."""
        residual = F.linear(F.linear(x, self.V_residual) * self.S_residual, self.U_residual)
        return F.linear(x, self.weight_main, self.bias) + residual


class Router(nn.Module):
    """Which experts look at a picture: features (B, width) to logits (B, routed experts)."""

    def __init__(self, width: int, *, hidden: int, num_routed: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, num_routed))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, routed experts)."""
        logits: Tensor = self.network(features)
        return logits


def gates_of(logits: Tensor, *, top_k: int, num_experts: int) -> Tensor:
    """Gates (B, E) of router logits (B, R): softmax over the `top_k` largest, 0 for the others.

    Where there is one expert more than the router knows, it is the last, and always on with gate 1.
    """
    best = logits.topk(top_k, dim=-1)
    gates = torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(dim=-1))
    always_on = gates.new_ones(len(gates), num_experts - gates.shape[1])
    return torch.cat([gates, always_on], dim=1)


def _parameters(count: int, *shape: int) -> nn.ParameterList:
    return nn.ParameterList([nn.Parameter(torch.empty(*shape)) for _ in range(count)])


def _low_rank(x: Tensor, gains: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """All experts in two products: x (B, T, in), gains (B, E, r), down (E * r, in), up (out, E * r)."""
    return F.linear(F.linear(x, down) * gains.flatten(1)[:, None], up)
