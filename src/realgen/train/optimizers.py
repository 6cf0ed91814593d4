"""Muon for matrices and AdamW for the rest, as one optimiser with one learning rate.

Muon orthogonalises the momentum of a matrix; with its update scaled to AdamW's root mean square both share a
learning rate. It takes matrices only, so a convolution's kernel is seen as one, (out, in * height * width), through
a view that shares its memory. torch.optim.Muon always orthogonalises in bfloat16, which takes twice as long as
float32 on a CPU without matrix tiles; here the products compute in what autocast says.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration: K. Jordan 2024, kellerjordan.github.io/posts/muon."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum of matrices, orthogonalised, with decoupled weight decay."""

    def __init__(self, matrices: list[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonal(matrix.grad.lerp(mean, group["momentum"]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Nearly the closest matrix (M, N) whose singular values are all 1: they end between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if wide is not matrix else x


class MuonAdamW:
    """Muon for parameters of two dimensions or more, AdamW for vectors and for names like one of `adam_names`."""

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        lr: float,
        weight_decay: float,
        adam_names: tuple[str, ...] = (),
    ) -> None:
        chosen = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
        is_matrix = [p.ndim >= 2 and not any(fnmatchcase(name, like) for like in adam_names) for name, p in chosen]
        self.parameters = [parameter for _, parameter in chosen]
        self._matrices = [p for (_, p), matrix in zip(chosen, is_matrix, strict=True) if matrix]
        self._views = [nn.Parameter(p.data.view(len(p), -1)) for p in self._matrices]
        others = [p for (_, p), matrix in zip(chosen, is_matrix, strict=True) if not matrix]
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        if self._views:
            self._optimizers["muon"] = Muon(self._views, lr=lr, weight_decay=weight_decay)
        if others:
            self._optimizers["adamw"] = torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, lr: float) -> None:
        """Update with the gradients as they stand, then drop them."""
        for view, parameter in zip(self._views, self._matrices, strict=True):
            view.grad = None if parameter.grad is None else parameter.grad.reshape(view.shape)
        for optimizer in self._optimizers.values():
            step_at(optimizer, lr)
        for parameter in self.parameters:
            parameter.grad = None

    def clip(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their joint norm is at most `max_norm`; returns the norm before."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, max_norm)

    def state_dict(self) -> dict[str, Any]:
        """Moments of both, under their names."""
        return {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state[name])


def little_momentum(module: nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """AdamW for who learns against somebody who moves too."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0)


def step_at(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Update at this learning rate with the gradients as they stand."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
