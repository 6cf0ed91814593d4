"""Trains a small residual network to tell the categories of photographs apart.

It is the yardstick for the embedded generator (does a picture show what was asked for, how far is it from real ones),
so it sees the train split alone and nothing that was generated. Knows no generator.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetForImageClassification

from realgen.train.optimizers import MuonAdamW
from realgen.train.photographs import Photograph, to_tensor
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.single import SingleModelTrainer

SIDE = 96
"""Pixels that the network sees: less than a generator draws, so that sharpness counts for little."""


def build_classifier(categories: Sequence[str]) -> ResNetForImageClassification:
    """A fresh network of some 3 million parameters, its labels the categories."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128, 256],
            depths=[1, 2, 2, 2],
            layer_type="basic",
            id2label=dict(enumerate(categories)),
            label2id={category: index for index, category in enumerate(categories)},
        )
    )


def prepare(images: Sequence[Image.Image]) -> Tensor:
    """Images of any size as (B, 3, SIDE, SIDE) in [-1, 1]."""
    small = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2) for image in images]
    return to_tensor([np.asarray(image) for image in small])


class ClassifierTrainer(SingleModelTrainer):
    """One classifier, its optimiser and its average."""

    def __init__(
        self,
        model: ResNetForImageClassification,
        photographs: Sequence[Photograph],
        held_out: Sequence[Photograph],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        ema_decay: float,
        seed: int,
    ) -> None:
        self.optimizer = MuonAdamW(model.named_parameters(), lr=learning_rate, weight_decay=0.05)
        super().__init__(model, self.optimizer, ema_decay=ema_decay)
        self.steps, self.batch, self.learning_rate, self.seed = steps, batch, learning_rate, seed
        self.pixels, self.labels = self._load(photographs)
        self.held_out = self._load(held_out)
        counts = torch.bincount(self.labels, minlength=model.config.num_labels).clamp(min=1)
        self._chance = (1 / counts.sqrt())[self.labels].double().numpy()  # half way from as they come to all alike
        self._chance /= self._chance.sum()

    def _load(self, photographs: Sequence[Photograph]) -> tuple[Tensor, Tensor]:
        known = self.model.config.label2id
        chosen = [photograph for photograph in photographs if photograph.category in known]
        pixels = prepare([Image.fromarray(photograph.pixels) for photograph in chosen])
        return pixels, torch.tensor([known[photograph.category] for photograph in chosen])

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on augmented photographs that depend on (seed, index) alone."""
        rng = np.random.default_rng((self.seed, index))
        chosen = torch.from_numpy(rng.choice(len(self.labels), size=self.batch, p=self._chance))
        self.model.train()
        with computing_in(self.dtype, self.device):
            logits = self.model(augment(self.pixels[chosen], rng).to(self.device)).logits
        loss = F.cross_entropy(logits.float(), self.labels[chosen].to(self.device), label_smoothing=0.1)
        loss.backward()
        self.optimizer.step(
            self.learning_rate * warmup_cosine(index, steps=self.steps, warmup=min(100, self.steps // 4))
        )
        self.ema.update(self.model)
        return {"loss": loss.item()}

    @torch.no_grad()
    def evaluate(self) -> Mapping[str, float]:
        """Share of held-out photographs whose category is named, by the average."""
        self.ema.swap(self.model)
        self.model.eval()
        pixels, labels = self.held_out
        found = torch.cat([self.model(chunk.to(self.device)).logits.argmax(1).cpu() for chunk in pixels.split(128)])
        self.ema.swap(self.model)
        return {"accuracy": float((found == labels).float().mean())}

    def preview(self) -> list[Image.Image]:
        """Nothing to see."""
        return []


def augment(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """Mirror, shift, zoom, brightness, contrast and blur of a batch (B, 3, S, S) in [-1, 1]."""
    count = len(pixels)
    draw = torch.from_numpy(rng.uniform(-1, 1, size=(6, count))).float()
    zoom, mirror = 0.8 + 0.15 * draw[0], draw[1].sign()
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = zoom * mirror, zoom
    theta[:, 0, 2], theta[:, 1, 2] = 0.15 * draw[2], 0.15 * draw[3]
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    lit = moved * (1 + 0.3 * draw[4]).view(-1, 1, 1, 1) + (0.2 * draw[5]).view(-1, 1, 1, 1)
    if rng.random() < 0.3:
        lit = F.avg_pool2d(F.pad(lit, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return lit.clamp(-1, 1)
