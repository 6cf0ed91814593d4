"""GRPO of a flow: rollout, reward, advantage, update. Knows no model, no detector and no recipe file.

    for every rollout:  images and their scores -> parts of a reward -> advantages within groups
    for every update:   sum over its images and moments of  clipped loss + beta KL,  over their number -> one step

Sources: Liu et al. 2025, arXiv 2505.05470 (Flow-GRPO); Wang et al. 2025, arXiv 2510.22319 (GRPO-Guard).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from realgen import reward
from realgen.core.errors import ConfigError, RealGenError
from realgen.core.grpo_recipe import FlowGrpoRecipe
from realgen.formulas import grpo
from realgen.train.evaluation import Evaluation
from realgen.train.flow_policy import FlowPolicy, MicroBatch, Moment
from realgen.train.geometry import Geometry, prompts_of, window_start
from realgen.train.objective import distance, likelihood_ratio
from realgen.train.run import Ema
from realgen.train.scoring import Judged, ScoringQueue
from realgen.train.self_checks import check_rewards, check_run
from realgen.train.world import World, put, whole


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one process keeps of a rollout: its micro-batches by update, and everybody's advantages."""

    micro_batches: list[list[MicroBatch]]
    advantages: grpo.Advantages
    """(P, G), of all processes."""


class FlowGrpoTrainer:
    """Takes optimiser steps; the first of every `recipe.period` draws a rollout, which is not kept in checkpoints."""

    def __init__(
        self,
        recipe: FlowGrpoRecipe,
        policy: FlowPolicy,
        queue: ScoringQueue,
        evaluation: Evaluation,
        prompts: Sequence[tuple[str, str]],
        save: Callable[[Path], None],
        *,
        geometry: Geometry,
        world: World,
    ) -> None:
        """`prompts` are (prompt, text) pairs; `save` writes what was trained, as a user loads it."""
        assert recipe.reward is not None
        self.recipe, self.spec, self.policy, self.queue = recipe, recipe.reward, policy, queue
        self.evaluation, self.prompts, self.save = evaluation, prompts, save
        self.geometry, self.world = geometry, world
        self.module: nn.Module = policy.backbone.module
        self.trained = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.ema = Ema(self.module, recipe.ema_decay)
        self.unscored: list[reward.Unscored] = []
        self.num_skipped = self.num_barren = 0
        self.checks: dict[str, float] = {}
        """Figures of the self-checks, once the first rollout was drawn."""
        self._rollout: Rollout | None = None

    def step(self, index: int) -> Mapping[str, float]:
        """Optimiser step `index`; RealGenError where too many images are unscored or too many steps were skipped."""
        rollout, part = divmod(index, self.recipe.period)
        figures: dict[str, float] = {}
        if part == 0:
            self._rollout, figures = self.collect(rollout)
        assert self._rollout is not None, "a rollout's first step comes first"
        began = time.perf_counter()
        figures |= self.update(self._rollout, part % self.recipe.updates)
        return figures | {"seconds_update": time.perf_counter() - began}

    def window(self, rollout: int) -> range:
        """The stochastic steps of a rollout, the same on every process."""
        window = self.recipe.window
        every = window.every if window.move == "sliding" else None
        start = window_start(rollout, first=window.first, last=window.last, every=every, seed=self.recipe.seed)
        return range(start, start + window.length)

    def collect(self, rollout: int) -> tuple[Rollout, dict[str, float]]:
        """Draw and score this process's share of a rollout; advantages are computed from everybody's."""
        began = time.perf_counter()
        drawn: list[list[MicroBatch]] = []
        seconds_decode = 0.0
        chosen = prompts_of(rollout, total=len(self.prompts), count=self.geometry.num_prompts, seed=self.recipe.seed)
        window = self.window(rollout)
        for update in range(self.recipe.updates):
            drawn.append([])
            for rows in self.geometry.micro_batches(update, self.world.rank, chosen):
                texts = [self.prompts[row.prompt][1] for row in rows]
                batch = self.policy.rollout(rows, texts, rollout=rollout, window=window)
                decoding = time.perf_counter()
                pixels = self.policy.decode(batch)
                seconds_decode += time.perf_counter() - decoding
                self.queue.put([row.place for row in rows], pixels, [self.prompts[row.prompt][0] for row in rows])
                drawn[-1].append(batch)
        waited = time.perf_counter()
        judged = sorted(self.world.gather(self.queue.results()), key=lambda one: one.place)
        waited_until = time.perf_counter()
        parts, figures = self._parts(judged)
        if not self.checks:
            self.checks = check_run(self.recipe, self.policy, self.trained, drawn, window, self.world)
            if rollout == 0:  # a late rollout may well be saturated
                self.checks |= check_rewards(parts)
        found = grpo.advantages(
            parts,
            self.spec.weights,
            clamp=self.recipe.max_advantage,
            over_all=self.recipe.deviation == "all",
        )
        self.num_barren = 0 if found.teaches.any() else self.num_barren + 1
        if self.num_barren >= reward.PATIENCE:
            raise RealGenError(
                f"in {self.num_barren} rollouts running no group had two images that differ in their reward",
                hint="look at the scorers and the bounds: nothing is learned",
            )
        figures |= {
            "groups_dropped": float((~found.teaches).sum()),
            "window_start": float(window.start),
            "seconds_decode": seconds_decode,
            "seconds_waiting_for_scores": waited_until - waited,
            "seconds_rollout": waited - began - seconds_decode,
        }
        return Rollout(drawn, found), figures

    def _parts(self, judged: Sequence[Judged]) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Parts of the reward (P, G), and their means; an image outside of a bound is the worst of its group."""
        shape = (self.geometry.num_prompts, self.geometry.group)
        found = reward.parts([one.scores for one in judged], self.spec)
        lost = torch.tensor([bool(reason) for reason in found.reasons]).view(shape)
        violated = torch.tensor(found.violated).view(shape)
        parts = {name: _part(values, lost, violated) for name, values in found.values.items()}
        self.unscored = [*self.unscored, reward.unscored(found)][-reward.PATIENCE :]
        reward.check_unscored(self.unscored, max_unscored=self.spec.max_unscored)
        figures = {"unscored": float(lost.sum()), "violated": float(violated.sum())}
        figures["sharpness"] = math.fsum(one.sharpness for one in judged) / len(judged)
        for name in judged[0].scores:
            values = [one.scores[name].value for one in judged]
            known = [value for value in values if value is not None]
            if known:
                figures[f"score_{name}"] = math.fsum(known) / len(known)
        for name, part in parts.items():
            figures[f"deviation_{name}"] = float(grpo.spread(part).nanmean())
        return parts, figures

    def update(self, rollout: Rollout, update: int) -> dict[str, float]:
        """One optimiser step on one part of a rollout; skipped and counted where it would not be finite."""
        places = torch.arange(self.geometry.num_images).view(self.recipe.updates, -1)[update]
        teaches = rollout.advantages.teaches.repeat_interleave(self.geometry.group)
        num_moments = len(rollout.micro_batches[update][0].moments)
        num_terms = int(teaches[places].sum()) * num_moments
        totals = dict.fromkeys(("loss", "kl", "clipped", "ratio_above", "ratio_below", "log_ratio"), 0.0)
        if num_terms:
            for batch in rollout.micro_batches[update]:
                for moment in batch.moments:
                    for name, value in self._accumulate(batch, moment, rollout.advantages, num_terms).items():
                        totals[name] += value
        norm = self._take_step() if num_terms else 0.0
        figures = {name: value / max(1, num_terms) for name, value in self.world.total(totals).items()}
        figures["log_ratio"] = math.sqrt(figures["log_ratio"])
        return figures | {"grad_norm": norm, "skipped": float(self.num_skipped)}

    def _accumulate(
        self, batch: MicroBatch, moment: Moment, advantages: grpo.Advantages, num_terms: int
    ) -> dict[str, float]:
        """Gradients of one moment of a micro-batch, and sums of its figures over the images that teach."""
        places = torch.tensor([row.place for row in batch.rows])
        teaches = advantages.teaches.repeat_interleave(self.geometry.group)[places].float()
        if not (teaches.any() or self.world.is_sharded):  # a sharded module's processes must all take part
            return {}
        advantage = advantages.value.flatten()[places].to(moment.x.device)
        teaches = teaches.to(moment.x.device)
        now = self.policy.replay(batch, moment, with_reference=self.recipe.kl_weight > 0)
        ratio = likelihood_ratio(now, moment, self.recipe.ratio)
        term = grpo.clipped_loss(ratio, advantage, self.recipe.clip)
        weight = 1.0 if self.recipe.ratio == "plain" else grpo.guard_weight(moment.dt)
        kl = distance(now, moment, self.recipe.kl)
        loss = torch.where(teaches > 0, term.loss * weight + self.recipe.kl_weight * kl, 0).sum()
        (loss * (self.world.loss_scale / num_terms)).backward()
        shift = term.ratio - 1
        sums = {
            "loss": loss,
            "kl": (kl * teaches).sum(),
            "clipped": (term.is_clipped * teaches).sum(),
            "ratio_above": ((shift > self.recipe.clip) * teaches).sum(),
            "ratio_below": ((shift < -self.recipe.clip) * teaches).sum(),
            "log_ratio": (term.ratio.log().square() * teaches).sum(),
        }
        return {name: float(value.detach()) for name, value in sums.items()}

    def _take_step(self) -> float:
        self.world.sum_gradients(self.trained.values())
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.recipe.max_grad_norm)
        length = float(whole(norm))
        if math.isfinite(length):
            self.num_skipped = 0
            self.optimizer.step()
            self.ema.update(self.module)
        else:
            self.num_skipped += 1
        self.optimizer.zero_grad(set_to_none=True)
        if self.num_skipped > self.recipe.max_skipped:
            raise RealGenError(
                f"{self.num_skipped} optimiser steps in a row had a gradient that is not finite",
                hint="lower learning_rate, or look at the reward; the last checkpoint is from before",
            )
        return length

    def evaluate(self) -> Mapping[str, float]:
        """The average on held-out prompts: means of every score, their total, and sharpness."""
        with self.ema.applied(self.module), self.policy.computing():
            return self.evaluation.figures(self.world, self.spec)

    def preview(self) -> list[Image.Image]:
        """The average's pictures of the first held-out prompts, as the last evaluation drew them."""
        return self.evaluation.pictures

    def export(self, folder: Path) -> None:
        """Write the average as a user loads it."""
        with self.ema.applied(self.module):
            self.save(folder)

    def state_dict(self) -> dict[str, Any]:
        """All that differs from a fresh trainer between two rollouts. Noise and prompts follow from the step."""
        state: dict[str, Any] = whole(
            {
                "parameters": self.trained,
                "optimizer": self.optimizer.state_dict()["state"],
                "ema": self.ema.state_dict(),
            }
        )
        unscored = [(one.count, one.total, one.reason) for one in self.unscored]
        counters = {"num_skipped": self.num_skipped, "num_barren": self.num_barren}
        return state | {"unscored": unscored, **counters, "recipe": experiment(self.recipe)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`, which may be of a run on another number of processes, but not of another recipe."""
        if changed := differences(state["recipe"], experiment(self.recipe)):
            raise ConfigError(
                f"the run's recipe has changed since its checkpoint: {'; '.join(changed)}",
                hint="put it back, or start another run with --out",
            )
        for name, value in state["parameters"].items():
            put(self.trained[name], value)
        self._load_optimizer(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.unscored = [reward.Unscored(*one) for one in state["unscored"]]
        self.num_skipped, self.num_barren = state["num_skipped"], state["num_barren"]

    def _load_optimizer(self, moments: Mapping[int, Mapping[str, Any]]) -> None:
        for place, parameter in enumerate(self.trained.values()):
            if place not in moments:
                continue
            held = self.optimizer.state[parameter]
            held["step"] = moments[place]["step"].clone()
            for name in ("exp_avg", "exp_avg_sq"):
                held[name] = torch.zeros_like(parameter)
                put(held[name], moments[place][name])


def experiment(recipe: FlowGrpoRecipe) -> dict[str, Any]:
    """The recipe but for its machine, as plain values."""
    values = recipe.model_dump(mode="json")
    return {key: value for key, value in values.items() if key not in {"machine", "save_minutes"}}


def differences(was: Any, now: Any, path: str = "") -> list[str]:
    """What differs between two recipes, as `key: was -> is`."""
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return [] if was == now else [f"{path}: {was!r} -> {now!r}"]
    keys = [*was, *(key for key in now if key not in was)]
    here = f"{path}." if path else ""
    return [found for key in keys for found in differences(was.get(key), now.get(key), f"{here}{key}")]


def _part(values: Sequence[float], lost: Tensor, violated: Tensor) -> Tensor:
    """One part (P, G): NaN where the image is unscored; outside of a bound, a deviation below the group's least."""
    part = torch.tensor(values, dtype=torch.float64).view(lost.shape)
    part = torch.where(lost | ~part.isfinite(), torch.nan, part)
    within = torch.where(violated, torch.nan, part)
    gap = grpo.spread(within).nan_to_num(0)
    worst = torch.where(within.isnan(), torch.inf, within).amin(1) - torch.where(gap > 0, gap, 1.0)
    worst = torch.where(worst.isinf(), 0.0, worst)  # all of a group are outside: all alike, and nothing is taught
    return torch.where(violated & ~part.isnan(), worst[:, None], part)
