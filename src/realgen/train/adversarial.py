"""Adversarial post-training of a flow: what it answers with has to look like a photograph.

    loss: sum over opponents of what each asks for,  + w times the squared distance from what it answered before,
          + u times how unlike the photographs are those answers that were begun from them

A flow that learned by squared errors answers with the mean of what could be there, and a small one is left with
strokes of a brush. Here it must answer with a picture; where little is drawn yet opponents count less and the distance
more, or it would settle there what the levels after should choose, and layout and colours stay near what guidance made
of them (`answers.py`).

What is exported lies between the weights before and the average of those after: captions teach less of text than
prompts ask, and what was known of it is kept so.

Sources: Sauer et al. 2024, arXiv 2403.12015 (LADD); Lin et al. 2025, arXiv 2501.08316 (adversarial post-training);
Wortsman et al. 2022, arXiv 2109.01903 (weights between). Knows no model: it is handed flows, answers, opponents.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from realgen.train.answers import Answered, Answers, Flows
from realgen.train.drawn import previewed
from realgen.train.flow_data import FlowData
from realgen.train.half_drawn import chance
from realgen.train.likeness import Likeness
from realgen.train.opponents import Opponent, Seen
from realgen.train.optimizers import little_momentum, step_at
from realgen.train.precision import computing_in
from realgen.train.run import Ema, warmup_cosine


class AdversarialTrainer:
    """A flow against opponents that tell its answers from photographs, and learn to.

    The flow before stays as it stood. `likeness` holds answers that were begun from photographs against them.
    `elaborate` makes some captions of photographs longer, as those of the answers are.
    """

    dtype = torch.bfloat16
    """What matrix products and convolutions compute in; wiring sets the machine's."""

    def __init__(
        self,
        flows: Flows,
        answers: Answers,
        opponents: Mapping[str, Opponent],
        data: FlowData,
        save: Callable[[Path], None],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        warmup: int,
        anchor_weight: float,
        trained_share: float,
        ema_decay: float,
        seed: int,
        likeness: Likeness | None = None,
        preview_prompts: Sequence[str] = (),
        elaborate: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self.flows, self.answers, self.opponents = flows, answers, opponents
        self.data, self.save = data, save
        self.steps, self.batch, self.warmup, self.learning_rate = steps, batch, warmup, learning_rate
        self.anchor_weight, self.trained_share = anchor_weight, trained_share
        self.likeness, self.elaborate = likeness, elaborate
        self.seed, self.preview_prompts = seed, preview_prompts
        self.module = flows.learning.module
        self.device = next(self.module.parameters()).device
        self.optimizer = little_momentum(self.module, learning_rate)
        self.ema = Ema(self.module, ema_decay)

    def step(self, index: int) -> Mapping[str, float]:
        """The opponents' updates, then one of the flow against them."""
        with computing_in(self.dtype, self.device):
            with torch.set_grad_enabled(index >= self.warmup):
                answered = self.answers.at(index)
            generator = chance(self.seed, 2, index)
            seen, metrics = self._learned(answered, index, generator)
            if index >= self.warmup:
                loss, parts = self._asked(seen, answered.weights, generator)
                parts["anchor"] = answered.away()
                loss = loss + self.anchor_weight * parts["anchor"]
                if self.likeness is not None and answered.photographs is not None:
                    begun = answered.latents[: len(answered.photographs)]
                    parts["unlike"] = self.likeness.away(begun, answered.photographs, generator)
                    loss = loss + self.likeness.weight * parts["unlike"]
                loss.backward()  # type: ignore[no-untyped-call]
                metrics |= {name: value.item() for name, value in parts.items()}
                metrics["grad_norm"] = self._update(index)
        return metrics

    def _learned(
        self, answered: Answered, index: int, generator: torch.Generator
    ) -> tuple[dict[str, Seen], dict[str, float]]:
        """What each opponent sees of the answers, once it has learned from them, and its metrics."""
        clean, captions = self._photographs(index)
        with torch.no_grad():
            told = self.flows.encode(captions)
        seen: dict[str, Seen] = {}
        metrics: dict[str, float] = {}
        for name, opponent in self.opponents.items():
            with torch.no_grad():
                real = opponent.see(clean, told, answered.sigma, generator)
            seen[name] = opponent.see(answered.latents, answered.condition, answered.sigma, generator)
            said = opponent.learn(real, seen[name], self._share(index), generator)
            metrics |= {f"{name}_{what}": value for what, value in said.items()}
        return seen, metrics

    def _asked(
        self, seen: Mapping[str, Seen], weights: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What all opponents ask of the flow, and what that is made of."""
        loss, parts = torch.zeros((), device=self.device), dict[str, Tensor]()
        for name, opponent in self.opponents.items():
            asked, said = opponent.asks(seen[name], weights, generator)
            loss = loss + asked
            parts |= {f"{name}_{what}": value for what, value in said.items()}
        return loss, parts

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
            return previewed(self.flows.learning, self.flows.encode, self.preview_prompts, size=self.flows.size)

    def export(self, folder: Path) -> None:
        """Write the weights between those before and the average, in the format of the model."""
        with self._served.applied(self.module):
            self.save(folder)

    @property
    def _served(self) -> Ema:
        """The weights that are served."""
        if self.trained_share == 1:
            return self.ema
        return self.ema.between(dict(self.flows.before.module.named_parameters()), share=self.trained_share)

    def state_dict(self) -> dict[str, Any]:
        """All networks that learn, their moments, the average, and what answers to come need of those before."""
        return {
            "module": self.module.state_dict(),
            "opponents": {name: opponent.state_dict() for name, opponent in self.opponents.items()},
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "answers": self.answers.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in ("module", "optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])
        for name, opponent in self.opponents.items():
            opponent.load_state_dict(state["opponents"][name])
        self.answers.load_state_dict(state["answers"])
