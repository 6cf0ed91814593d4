"""One flow learns what two answer: an expert of much noise and an expert of little.

    loss = E || v(x_s, s, text; g) - v_e(x_s, s, text; g) ||^2,    e: early for s > boundary, else late

What makes a picture whole is decided at high noise levels, what it is made of at low ones, and training further may
do one good and the other harm: weights between two trainings then have a best place for either, not for both. x_s is
a state on a trajectory that the learner has drawn itself, so it learns where it will be asked.

Source: Balaji et al. 2022, arXiv 2211.01324 (experts by noise level). Knows no model: it is handed backbones.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from realgen.core.protocols import FlowBackbone, Size
from realgen.train.drawn import previewed
from realgen.train.flow_sft import ADAM_NAMES
from realgen.train.half_drawn import HalfDrawn, OwnTrajectories
from realgen.train.optimizers import MuonAdamW
from realgen.train.precision import computing_in
from realgen.train.run import Ema, warmup_cosine


class ExpertTrainer:
    """The backbone's module learns from `early` above the noise level `boundary`, from `late` at it and below.

    `encode` makes of texts what all three read.
    """

    dtype = torch.bfloat16
    """What matrix products compute in; wiring sets the machine's."""

    def __init__(
        self,
        backbone: FlowBackbone,
        early: FlowBackbone,
        late: FlowBackbone,
        encode: Callable[[Sequence[str]], Any],
        trajectories: OwnTrajectories,
        save: Callable[[Path], None],
        *,
        boundary: float,
        steps: int,
        batch: int,
        learning_rate: float,
        ema_decay: float,
        size: Size,
        preview_prompts: Sequence[str] = (),
    ) -> None:
        self.backbone, self.early, self.late, self.boundary = backbone, early, late, boundary
        self.encode, self.trajectories, self.save = encode, trajectories, save
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.size, self.preview_prompts = size, preview_prompts
        self.module = backbone.module
        self.device = next(self.module.parameters()).device
        self.optimizer = MuonAdamW(
            self.module.named_parameters(), lr=learning_rate, weight_decay=0.0, adam_names=ADAM_NAMES
        )
        self.ema = Ema(self.module, ema_decay)

    def step(self, index: int) -> Mapping[str, Tensor]:
        """One update on the states of step `index`; the losses by expert."""
        losses: dict[str, Tensor] = {}
        with computing_in(self.dtype, self.device):
            taken = self.trajectories.at(index)
            self.module.train()
            for name, expert, part in self._parts(taken):
                loss = self._loss(expert, part)
                (loss * (len(part.x) / self.batch)).backward()
                losses[f"{name}_loss"] = loss.detach()
            norm = self.optimizer.clip(1.0)
            share = warmup_cosine(index, steps=self.steps, warmup=min(20, self.steps // 10), hold=0.4, floor=0.02)
            self.optimizer.step(self.learning_rate * share)
        self.ema.update(self.module)
        return losses | {"grad_norm": norm}

    def _parts(self, taken: HalfDrawn) -> list[tuple[str, FlowBackbone, HalfDrawn]]:
        """Who teaches which states; nobody where there are none."""
        above = (taken.sigma > self.boundary).tolist()
        places = {"early": [i for i, is_above in enumerate(above) if is_above]}
        places["late"] = [i for i, is_above in enumerate(above) if not is_above]
        experts = {"early": self.early, "late": self.late}
        return [(name, experts[name], taken.at(which)) for name, which in places.items() if which]

    def _loss(self, expert: FlowBackbone, part: HalfDrawn) -> Tensor:
        with torch.no_grad():
            condition = self.encode(part.texts)
            target = expert.velocity(part.x, part.sigma, condition, guidance=part.guidance, size=self.size)
        v = self.backbone.velocity(part.x, part.sigma, condition, guidance=part.guidance, size=self.size)
        return F.mse_loss(v.float(), target.float())

    def evaluate(self) -> Mapping[str, float]:
        """Nothing: each step's states are new, so its losses are of what was not learned yet."""
        return {}

    def preview(self) -> list[Image.Image]:
        """The average's pictures of the preview prompts at guidance 3, seeds from 0."""
        with self.ema.applied(self.module), computing_in(self.dtype, self.device):
            return previewed(self.backbone, self.encode, self.preview_prompts, size=self.size)

    def export(self, folder: Path) -> None:
        """Write the average in the format of the model."""
        with self.ema.applied(self.module):
            self.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """Trained weights, moments, the average and the trajectories that are being learned from."""
        return {
            "parameters": {name: value for name, value in self.module.named_parameters() if value.requires_grad},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "drawn": self.trajectories.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.module.load_state_dict(state["parameters"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.trajectories.load_state_dict(state["drawn"])
