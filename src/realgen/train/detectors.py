"""Fits a detector to tell photographs from generated pictures of the same content.

Every step holds photographs, a generated picture for each (drawn for its caption, or the photograph itself through
an autoencoder), and the same generated pictures degraded. Degraded photographs are rare, so that a degradation is
no sign of a photograph: without that, blur and noise are the cheapest way to look real. Knows no detector's
architecture and no generator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from realgen.formulas.stats import auroc
from realgen.train.ahead import Ahead
from realgen.train.degradations import KINDS, degrade, random_degradation, recolour, recrop
from realgen.train.networks import Network
from realgen.train.optimizers import MuonAdamW
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.single import SingleModelTrainer

SMOOTHING = 0.02
SPOILT = 0.5
"""Strength of a degradation from which on a photograph may count as a fake."""
ADAM_NAMES = ("classifier.*", "head.*")
"""Last layers, for which Muon's orthogonal updates make no sense."""
SURE = -4.0
"""Log-odds at which a fake is found out for good: a degraded one need not be any surer."""


@dataclass(frozen=True, slots=True)
class Fakes:
    """Generated pictures of one family, each with the place of the photograph whose content it has."""

    family: str
    pixels: np.ndarray
    """(N, H, W, 3) uint8, saved and read as the photographs were."""
    partner: np.ndarray
    """(N,) places of photographs."""


class DetectorTrainer(SingleModelTrainer):
    """One detector's network, its optimiser and its average."""

    def __init__(
        self,
        network: Network,
        photographs: np.ndarray,
        fakes: Sequence[Fakes],
        held_out: tuple[np.ndarray, Sequence[Fakes]],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        ema_decay: float,
        seed: int,
        min_crop: float = 1.0,
        degraded_photographs: float = 0.2,
        spoilt_photographs: float = 0.0,
        loaders: int = 0,
    ) -> None:
        """Learns from random windows of pictures, at least `min_crop` of their side, where that is below 1.

        A share `degraded_photographs` of the photographs is degraded too. A share `spoilt_photographs` of the degraded
        fakes are photographs, degraded so far (SPOILT) that they are not to pass either.
        """
        self.spoilt_photographs = spoilt_photographs
        self.optimizer = MuonAdamW(
            network.module.named_parameters(), lr=learning_rate, weight_decay=0.05, adam_names=ADAM_NAMES
        )
        super().__init__(network.module, self.optimizer, ema_decay=ema_decay)
        self.network, self.log_odds = network, network.log_odds
        self.photographs, self.min_crop, self.degraded_photographs = photographs, min_crop, degraded_photographs
        self.fakes = [(one.pixels[place], one.partner[place]) for one in fakes for place in range(len(one.pixels))]
        self.held_out_photographs, self.held_out_fakes = held_out
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        self._batches = Ahead(self._draw, loaders=loaders)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on `batch` photographs and as many fakes, clean and degraded; depends on (seed, index)."""
        pixels = self._batches(index).to(self.device)
        self.model.train()
        with torch.random.fork_rng(devices=_cuda(self.device)), computing_in(self.dtype, self.device):
            torch.manual_seed(self.seed * 1_000_003 + index)  # dropout draws from the global generator
            answers = self.log_odds(_unit(pixels)).float()
        on_real, on_clean, on_degraded = answers.chunk(3)
        loss = (
            _cross_entropy(on_real, real=True)
            + (_cross_entropy(on_clean, real=False) + _cross_entropy(on_degraded, real=False)) / 2
            + F.relu(on_degraded - on_clean.detach().clamp(min=SURE)).mean()
        )
        loss.backward()
        self.optimizer.clip(1.0)
        share = warmup_cosine(index, steps=self.steps, warmup=min(100, self.steps // 4))
        self.optimizer.step(self.learning_rate * share)
        self.ema.update(self.model)
        right = torch.cat([on_real > 0, on_clean < 0])
        return {"loss": loss.item(), "accuracy": float(right.float().mean())}

    def _draw(self, index: int) -> Tensor:
        """Photographs, fakes and the same fakes degraded, `batch` each: (3 batch, H, W, 3) uint8."""
        rng = np.random.default_rng((self.seed, index))
        real, clean, degraded = [], [], []
        for _ in range(self.batch):
            generated, partner = self.fakes[int(rng.integers(len(self.fakes)))]
            photograph, fake = (self._varied(pixels, rng) for pixels in (self.photographs[partner], generated))
            real.append(random_degradation(photograph, rng) if rng.random() < self.degraded_photographs else photograph)
            clean.append(fake)
            is_spoilt = rng.random() < self.spoilt_photographs
            degraded.append(
                random_degradation(photograph, rng, least=SPOILT) if is_spoilt else random_degradation(fake, rng)
            )
        return torch.from_numpy(np.stack([*real, *clean, *degraded]))

    def _varied(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Changed in ways that are no sign of either class."""
        window = pixels if self.min_crop == 1 else recrop(pixels, rng, least=self.min_crop)
        return recolour(window, rng)

    @torch.no_grad()
    def answers(self, pixels: Sequence[np.ndarray]) -> Tensor:
        """Log-odds (N,) of the weights as they stand."""
        self.model.eval()
        chunks = (pixels[start : start + 64] for start in range(0, len(pixels), 64))
        return torch.cat([self.log_odds(to_pixels(chunk).to(self.device)).cpu() for chunk in chunks])

    def evaluate(self) -> Mapping[str, float]:
        """AUROC of the average on held-out pictures, by family, and the mean change of P(real) under degradations."""
        self.ema.swap(self.model)
        on_real = self.answers(self.held_out_photographs)
        figures: dict[str, float] = {}
        for fakes in self.held_out_fakes:
            on_fakes = self.answers(fakes.pixels)
            figures[f"auroc_{fakes.family}"] = auroc(on_real, on_fakes)
        rng = np.random.default_rng(0)
        some = self.held_out_fakes[0].pixels[:64]
        before = torch.sigmoid(self.answers(some))
        for kind in KINDS:
            after = torch.sigmoid(self.answers([degrade(pixels, kind, 0.5, rng) for pixels in some]))
            figures[f"gain_{kind}"] = float((after - before).mean())
        self.ema.swap(self.model)
        return figures

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Write the average, calibrated on held-out pictures: a temperature and a bias of its head (Platt 1999)."""
        self.ema.swap(self.model)
        on_fakes = torch.cat([self.answers(fakes.pixels) for fakes in self.held_out_fakes])
        temperature, bias = fit_calibration(self.answers(self.held_out_photographs), on_fakes)
        kept = [parameter.clone() for parameter in self.network.head.parameters()]
        for parameter, value in zip(self.network.head.parameters(), kept, strict=True):
            parameter.copy_(value / temperature)
        self.network.head.bias[0] += bias
        self.network.save(folder)
        for parameter, value in zip(self.network.head.parameters(), kept, strict=True):
            parameter.copy_(value)
        self.ema.swap(self.model)

    def preview(self) -> list[Image.Image]:
        """Eight pictures of every family as the detector sees them, degraded ones among them."""
        rng = np.random.default_rng(0)
        rows = [fakes.pixels[:8] for fakes in self.held_out_fakes] + [self.held_out_photographs[:8]]
        rows.append(np.stack([random_degradation(pixels, rng) for pixels in self.held_out_fakes[0].pixels[:8]]))
        return [Image.fromarray(pixels) for row in rows for pixels in row if len(row) == 8]


def to_pixels(pixels: Sequence[np.ndarray]) -> Tensor:
    """Pictures of one size (H, W, 3) uint8 as (B, 3, H, W) in [0, 1]."""
    return _unit(torch.from_numpy(np.stack(pixels)))


def _unit(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float() / 255


def _cuda(device: torch.device) -> list[torch.device]:
    """The device, where it has a random generator of its own to put back."""
    return [device] if device.type == "cuda" else []


def _cross_entropy(log_odds: Tensor, *, real: bool) -> Tensor:
    wanted = torch.full_like(log_odds, 1 - SMOOTHING if real else SMOOTHING)
    return F.binary_cross_entropy_with_logits(log_odds, wanted)


def fit_calibration(on_real: Tensor, on_fakes: Tensor) -> tuple[float, float]:
    """T in [0.5, 20] and b in [-3, 3] of log-odds / T + b with the least log-loss, both classes weighing the same."""
    temperatures = torch.logspace(-0.30103, 1.30103, 200)  # a search over two numbers needs no optimiser
    biases = torch.linspace(-3, 3, 121)
    losses = torch.stack([_log_losses(on_real / one, on_fakes / one, biases[:, None]) for one in temperatures])
    place = divmod(int(losses.argmin()), len(biases))
    return float(temperatures[place[0]]), float(biases[place[1]])


def _log_losses(on_real: Tensor, on_fakes: Tensor, biases: Tensor) -> Tensor:
    return F.softplus(-on_real - biases).mean(1) + F.softplus(on_fakes + biases).mean(1)
