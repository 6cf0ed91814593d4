"""Adversarial post-training of a flow: what it makes of its own half-drawn pictures has to look like a photograph.

    x_0 = x_s - s v(x_s, s, text),    x_s on a trajectory that the flow itself has drawn
    flow:          -mean (1 - s^l) D(decode(x_0) | text, s) + w (|low(d)|^2 + s^(2 l) |d|^2)
                   + u max(0, lattice(decode(x_0)))
    discriminator: mean max(0, 1 - D(photograph | its caption, s)) + mean max(0, 1 + D(decode(x_0) | text, s))

d is how far x_0 lies from what the flow answered before this training, and `low` the mean over squares of 2x2 tokens.
A flow that learned by squared errors answers with the mean of what could be there, and a small one is left with
strokes of a brush. Here it must answer with a picture; but not where little is drawn yet, or it would settle there what
the levels after should choose (l says how early it may), and layout and colours stay near what guidance made of them.

Trajectories are drawn every `period` steps, of a number of steps from `trajectory_steps`, and all their levels are
learned from before the next are drawn. What is exported lies between the weights before and the average of those after:
captions teach less of text than prompts ask, and what was known of it is kept so.

Sources: Sauer et al. 2024, arXiv 2403.12015 (LADD); Lin et al. 2025, arXiv 2501.08316 (adversarial post-training);
Wortsman et al. 2022, arXiv 2109.01903 (weights between). Knows no model: it is handed a backbone, a decoder and a
discriminator.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

from realgen.core.errors import ConfigError
from realgen.core.protocols import FlowBackbone, Size
from realgen.train.discriminator import decoder_loss, discriminator_loss
from realgen.train.drawn import previewed
from realgen.train.feature_discriminator import FeatureDiscriminator, augmented, level_waves
from realgen.train.flow_data import FlowData
from realgen.train.half_drawn import HalfDrawn, OwnTrajectories, chance
from realgen.train.lattice import LEAST_SQUARES, lattice
from realgen.train.precision import computing_in
from realgen.train.run import Ema, warmup_cosine


class AdversarialTrainer:
    """The backbone's module against a discriminator of what `decode` makes of its answers.

    `before` is the flow as it stood, and stays so. `encode` makes of texts what both read, whatever was encoded
    earlier; `read` makes of that one vector a text, for the discriminator. `decode` takes latents to pixels in [0, 1].
    `elaborate` makes some captions of photographs longer, as those of the trajectories are.
    """

    dtype = torch.bfloat16
    """What matrix products and convolutions compute in; wiring sets the machine's."""

    def __init__(
        self,
        backbone: FlowBackbone,
        before: FlowBackbone,
        decode: Callable[[Tensor], Tensor],
        discriminator: FeatureDiscriminator,
        encode: Callable[[Sequence[str]], Any],
        read: Callable[[Any], Tensor],
        data: FlowData,
        save: Callable[[Path], None],
        *,
        trajectories: OwnTrajectories,
        steps: int,
        batch: int,
        learning_rate: float,
        discriminator_learning_rate: float,
        discriminator_updates: int,
        warmup: int,
        lateness: float,
        anchor_weight: float,
        lattice_weight: float,
        trained_share: float,
        ema_decay: float,
        size: Size,
        seed: int,
        preview_prompts: Sequence[str] = (),
        elaborate: Callable[[Sequence[str], int], list[str]] | None = None,
    ) -> None:
        self.backbone, self.before, self.decode, self.discriminator = backbone, before, decode, discriminator
        self.encode, self.read, self.data, self.save = encode, read, data, save
        self.steps, self.batch, self.warmup = steps, batch, warmup
        self.learning_rate, self.discriminator_learning_rate = learning_rate, discriminator_learning_rate
        self.discriminator_updates = discriminator_updates
        self.lateness, self.trained_share = lateness, trained_share
        self.anchor_weight, self.lattice_weight = anchor_weight, lattice_weight
        self.trajectories = trajectories
        self.size, self.seed, self.preview_prompts, self.elaborate = size, seed, preview_prompts, elaborate
        self.module = backbone.module
        self.device = next(self.module.parameters()).device
        self.optimizer = _adam(self.module, learning_rate)
        self.discriminator_optimizer = _adam(discriminator, discriminator_learning_rate)
        self.ema = Ema(self.module, ema_decay)
        self._squares = _side(backbone.noise([0], size))
        if lattice_weight and self._squares < LEAST_SQUARES:
            message = f"lattice_weight: a picture of {size[0]} pixels has {self._squares} tokens a side"
            raise ConfigError(message, hint=f"give lattice_weight=0, or a size with {LEAST_SQUARES} or more")

    def step(self, index: int) -> Mapping[str, float]:
        """The discriminator's updates, then one of the flow against it."""
        taken = self._taken(index)
        condition = self._encoded(taken.texts)
        answer = self._answer(self.backbone, taken, condition)
        fake = self._pixels(answer)
        asked = torch.cat([self.read(condition), level_waves(taken.sigma)], 1)
        generator = chance(self.seed, 2, index)
        metrics = self._discriminate(fake.detach(), asked, taken.sigma, index, generator)
        if index < self.warmup:
            return metrics
        with torch.no_grad():
            was = self._answer(self.before, taken, condition)
        away = answer - was
        answers = self._judged(augmented(fake, generator), asked)
        adversarial = decoder_loss(answers * (1 - taken.sigma**self.lateness)[:, None])
        anchor = low(away).square().mean() + (taken.sigma ** (2 * self.lateness) * away.square().mean((1, 2))).mean()
        woven = lattice(fake, self._squares) if self.lattice_weight else torch.zeros_like(adversarial)
        pleased = adversarial + self.lattice_weight * woven.relu()
        (towards_real,) = grad(pleased, fake)  # the discriminator's own weights learn nothing here
        torch.autograd.backward([fake, self.anchor_weight * anchor], [towards_real, torch.ones_like(anchor)])
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), 5.0)
        _step(self.optimizer, self.learning_rate * self._share(index))
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        found = {"adversarial": adversarial, "anchor": anchor, "lattice": woven, "grad_norm": norm}
        return metrics | {name: value.item() for name, value in found.items()}

    def _discriminate(
        self, fake: Tensor, asked: Tensor, sigma: Tensor, index: int, generator: torch.Generator
    ) -> dict[str, float]:
        """The discriminator's updates on photographs and on what the flow answered; the metrics of the first."""
        real, captions = self._photographs(index)
        told = torch.cat([self.read(self._encoded(captions)), level_waves(sigma)], 1)
        pixels, conditions = torch.cat([real, fake]), torch.cat([told, asked])
        metrics: dict[str, float] = {}
        for _ in range(self.discriminator_updates):
            on_real, on_fake = self._judged(augmented(pixels, generator), conditions).split([len(real), len(fake)])
            loss = discriminator_loss(on_real, on_fake)
            loss.backward()
            _step(self.discriminator_optimizer, self.discriminator_learning_rate * self._share(index))
            self.discriminator_optimizer.zero_grad(set_to_none=True)
            metrics = metrics or {
                "discriminator": loss.item(),
                "on_photographs": on_real.mean().item(),
                "on_pictures": on_fake.mean().item(),
            }
        return metrics

    def _taken(self, index: int) -> HalfDrawn:
        """The half-drawn pictures of a step."""
        with computing_in(self.dtype, self.device):
            return self.trajectories.at(index)

    def _photographs(self, index: int) -> tuple[Tensor, list[str]]:
        """As the decoder shows them, with captions."""
        batch = self.data.batch(2 * index + 1, count=self.batch, caption_dropout=0.0).to(self.device)
        captions = batch.captions if self.elaborate is None else self.elaborate(batch.captions, 2 * index + 1)
        with torch.no_grad():
            return self._pixels(batch.clean), captions

    def _answer(self, flow: FlowBackbone, drawn: HalfDrawn, condition: Any) -> Tensor:
        flow.module.train(flow is self.backbone)
        with computing_in(self.dtype, self.device):
            v = flow.velocity(drawn.x, drawn.sigma, condition, guidance=drawn.guidance, size=self.size)
        return drawn.x - drawn.sigma.view(-1, 1, 1) * v.float()

    def _pixels(self, latents: Tensor) -> Tensor:
        with computing_in(self.dtype, self.device):
            return self.decode(latents).float()

    def _encoded(self, texts: Sequence[str]) -> Any:
        with torch.no_grad(), computing_in(self.dtype, self.device):
            return self.encode(texts)

    def _judged(self, pixels: Tensor, conditions: Tensor) -> Tensor:
        with computing_in(self.dtype, self.device):
            answers: Tensor = self.discriminator(pixels, conditions)
        return answers.float()

    def _share(self, index: int) -> float:
        """Of both learning rates: they stay up for half of the steps."""
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
        """Both networks, their moments, the average and the trajectories that are being learned from."""
        return {
            "module": self.module.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "drawn": self.trajectories.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        for name in ("module", "discriminator", "optimizer", "discriminator_optimizer", "ema"):
            getattr(self, name).load_state_dict(state[name])
        self.trajectories.load_state_dict(state["drawn"])


def low(latents: Tensor) -> Tensor:
    """Means over squares of 2x2 tokens of square latents (B, tokens, channels): (B, channels, side / 2, side / 2)."""
    return F.avg_pool2d(latents.transpose(1, 2).unflatten(2, (_side(latents), _side(latents))), 2)


def _side(latents: Tensor) -> int:
    """Tokens a side of square latents (B, tokens, channels)."""
    side: int = round(latents.shape[1] ** 0.5)
    return side


def _adam(module: torch.nn.Module, learning_rate: float) -> torch.optim.AdamW:
    """With little momentum, since who it learns against moves too."""
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(learned, lr=learning_rate, betas=(0.5, 0.99), weight_decay=0.0)


def _step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.step()
