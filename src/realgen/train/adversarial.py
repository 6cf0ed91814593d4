"""Adversarial post-training of a flow: what it makes of its own half-drawn pictures has to look like a photograph.

    x_0 = x_s - s v(x_s, s, text),    x_s on a trajectory that the flow itself has drawn
    loss: sum over opponents of what each asks for, answers weighing 1 - s^l,  + w (|low(d)|^2 + s^(2 l) |d|^2)

d is how far x_0 lies from what the flow answered before this training, and `low` the mean over squares of 2x2 tokens.
A flow that learned by squared errors answers with the mean of what could be there, and a small one is left with
strokes of a brush. Here it must answer with a picture; but not where little is drawn yet, or it would settle there what
the levels after should choose (l says how early it may), and layout and colours stay near what guidance made of them.

Trajectories are drawn every `period` steps, of a number of steps from `trajectory_steps`, and all their levels are
learned from before the next are drawn. What is exported lies between the weights before and the average of those after:
captions teach less of text than prompts ask, and what was known of it is kept so.

Sources: Sauer et al. 2024, arXiv 2403.12015 (LADD); Lin et al. 2025, arXiv 2501.08316 (adversarial post-training);
Wortsman et al. 2022, arXiv 2109.01903 (weights between). Knows no model: it is handed a backbone and opponents.
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
from realgen.train.flow_data import FlowData
from realgen.train.flow_features import as_map
from realgen.train.half_drawn import HalfDrawn, OwnTrajectories, chance
from realgen.train.opponents import Opponent, Seen
from realgen.train.optimizers import little_momentum, step_at
from realgen.train.precision import computing_in
from realgen.train.run import Ema, warmup_cosine


class AdversarialTrainer:
    """The backbone's module against opponents that tell its answers from photographs, and learn to.

    `before` is the flow as it stood, and stays so. `encode` makes of texts what both read, whatever was encoded
    earlier. `elaborate` makes some captions of photographs longer, as those of the trajectories are.
    """

    dtype = torch.bfloat16
    """What matrix products and convolutions compute in; wiring sets the machine's."""

    def __init__(
        self,
        backbone: FlowBackbone,
        before: FlowBackbone,
        opponents: Mapping[str, Opponent],
        encode: Callable[[Sequence[str]], Any],
        data: FlowData,
        save: Callable[[Path], None],
        *,
        trajectories: OwnTrajectories,
        steps: int,
        batch: int,
        learning_rate: float,
        warmup: int,
        lateness: float,
        anchor_weight: float,
        trained_share: float,
        ema_decay: float,
        size: Size,
        seed: int,
        preview_prompts: Sequence[str] = (),
        elaborate: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self.backbone, self.before, self.opponents = backbone, before, opponents
        self.encode, self.data, self.save = encode, data, save
        self.steps, self.batch, self.warmup, self.learning_rate = steps, batch, warmup, learning_rate
        self.lateness, self.anchor_weight, self.trained_share = lateness, anchor_weight, trained_share
        self.trajectories = trajectories
        self.size, self.seed, self.preview_prompts, self.elaborate = size, seed, preview_prompts, elaborate
        self.module = backbone.module
        self.device = next(self.module.parameters()).device
        self.optimizer = little_momentum(self.module, learning_rate)
        self.ema = Ema(self.module, ema_decay)

    def step(self, index: int) -> Mapping[str, float]:
        """The opponents' updates, then one of the flow against them."""
        with computing_in(self.dtype, self.device):
            taken = self.trajectories.at(index)
            condition = self._encoded(taken.texts)
            with torch.set_grad_enabled(index >= self.warmup):
                answer = self._answer(self.backbone, taken, condition)
            generator = chance(self.seed, 2, index)
            seen, metrics = self._learned(answer, condition, taken.sigma, index, generator)
            if index >= self.warmup:
                loss, parts = self._asked(seen, taken.sigma, generator)
                parts["anchor"] = self._away(answer, taken, condition)
                (loss + self.anchor_weight * parts["anchor"]).backward()  # type: ignore[no-untyped-call]
                metrics |= {name: value.item() for name, value in parts.items()}
                metrics["grad_norm"] = self._update(index)
        return metrics

    def _learned(
        self, answer: Tensor, condition: Any, sigma: Tensor, index: int, generator: torch.Generator
    ) -> tuple[dict[str, Seen], dict[str, float]]:
        """What each opponent sees of the answer, once it has learned from it, and its metrics."""
        clean, captions = self._photographs(index)
        told = self._encoded(captions)
        seen: dict[str, Seen] = {}
        metrics: dict[str, float] = {}
        for name, opponent in self.opponents.items():
            with torch.no_grad():
                real = opponent.see(clean, told, sigma, generator)
            seen[name] = opponent.see(answer, condition, sigma, generator)
            said = opponent.learn(real, seen[name], self._share(index), generator)
            metrics |= {f"{name}_{what}": value for what, value in said.items()}
        return seen, metrics

    def _asked(
        self, seen: Mapping[str, Seen], sigma: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What all opponents ask of the flow, and what that is made of."""
        loss, parts = torch.zeros((), device=self.device), dict[str, Tensor]()
        for name, opponent in self.opponents.items():
            asked, said = opponent.asks(seen[name], 1 - sigma**self.lateness, generator)
            loss = loss + asked
            parts |= {f"{name}_{what}": value for what, value in said.items()}
        return loss, parts

    def _away(self, answer: Tensor, taken: HalfDrawn, condition: Any) -> Tensor:
        """How far the flow has gone from what it answered before: in layout and colours, and early in all."""
        with torch.no_grad():
            was = self._answer(self.before, taken, condition)
        away, early = answer - was, taken.sigma ** (2 * self.lateness)
        return low(away).square().mean() + (early * away.square().mean((1, 2))).mean()

    def _update(self, index: int) -> float:
        """One of the flow's weights; the norm of its gradient."""
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        step_at(self.optimizer, self.learning_rate * self._share(index))
        self.optimizer.zero_grad(set_to_none=True)
        for opponent in self.opponents.values():  # what it asks for teaches the flow alone
            opponent.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        return float(norm)

    def _photographs(self, index: int) -> tuple[Tensor, list[str]]:
        """Latents, and captions."""
        batch = self.data.batch(2 * index + 1, count=self.batch, caption_dropout=0.0).to(self.device)
        captions = batch.captions if self.elaborate is None else self.elaborate(batch.captions, 2 * index + 1)
        return batch.clean, captions

    def _answer(self, flow: FlowBackbone, drawn: HalfDrawn, condition: Any) -> Tensor:
        flow.module.train(flow is self.backbone)
        v = flow.velocity(drawn.x, drawn.sigma, condition, guidance=drawn.guidance, size=self.size)
        return drawn.x - drawn.sigma.view(-1, 1, 1) * v.float()

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> Any:
        return self.encode(texts)

    def _share(self, index: int) -> float:
        """Of all learning rates: they stay up for half of the steps."""
        return warmup_cosine(index, steps=self.steps, warmup=min(20, self.steps // 10), hold=0.5, floor=0.05)

    def evaluate(self) -> Mapping[str, float]:
        """Nothing: no loss of this training says how good the pictures are, the previews do."""
        return {}

    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """Pictures of the preview prompts by what would be exported, at guidance 3, seeds from 0."""
        with self._served.applied(self.module), computing_in(self.dtype, self.device):
            return previewed(self.backbone, self.encode, self.preview_prompts, size=self.size)

    def export(self, folder: Path) -> None:
        """Write the weights between those before and the average, in the format of the model."""
        with self._served.applied(self.module):
            self.save(folder)

    @property
    def _served(self) -> Ema:
        """The weights that are served."""
        if self.trained_share == 1:
            return self.ema
        return self.ema.between(dict(self.before.module.named_parameters()), share=self.trained_share)

    def state_dict(self) -> dict[str, Any]:
        """All networks that learn, their moments, the average and the trajectories that are being learned from."""
        return {
            "module": self.module.state_dict(),
            "opponents": {name: opponent.state_dict() for name, opponent in self.opponents.items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "drawn": self.trajectories.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in ("module", "optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])
        for name, opponent in self.opponents.items():
            opponent.load_state_dict(state["opponents"][name])
        self.trajectories.load_state_dict(state["drawn"])


def low(latents: Tensor) -> Tensor:
    """Means over squares of 2x2 tokens of square latents (B, tokens, channels): (B, channels, side / 2, side / 2)."""
    return F.avg_pool2d(as_map(latents), 2)
