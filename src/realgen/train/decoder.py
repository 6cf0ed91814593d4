"""Sharpens the decoder of a trained `AutoencoderKL` against a patch discriminator; the encoder stays as it is.

    loss = |y - x| + 2 (y - x)^2 + w(step) a L(D(y)),    a = |d pixel loss / d last| / |d L / d last|

Over pictures that the flow drew there is no photograph to be like: there the pixel loss asks only that patches of 4x4
pixels keep the mean they had, and the discriminator asks for the rest.

`last` is the kernel of the decoder's last convolution, and w is zero while the discriminator warms up. The latents are
what the flow learned, so the encoder reads every photograph once, at the start. Knows nothing of prompts or of the
flow.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.autograd import grad
from torch.nn import functional as F

from realgen.core.errors import ConfigError, DataError
from realgen.train.autoencoder import ReconstructionTrainer
from realgen.train.discriminator import PatchDiscriminator, adaptive_weight, decoder_loss, discriminator_loss
from realgen.train.flow_data import cached, digest
from realgen.train.optimizers import MuonAdamW
from realgen.train.photographs import Photograph, to_tensor
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine


class Pairs(NamedTuple):
    """Windows of photographs with their latents."""

    latents: Tensor
    """Posterior means (B, channels, crop/factor, crop/factor), seen in the whole photograph."""
    pixels: Tensor
    """(B, 3, crop, crop) in [-1, 1]."""


class Windows:
    """Photographs of one size with the latents of the whole of each, the encoder's or given, held in memory."""

    def __init__(
        self,
        photographs: Sequence[Photograph],
        model: AutoencoderKL,
        *,
        crop: int,
        seed: int,
        cache: Path | None = None,
        latents: Tensor | None = None,
    ) -> None:
        self.photographs, self.crop, self.seed = photographs, crop, seed
        self.factor = 2 ** (len(model.config["block_out_channels"]) - 1)
        height, width, _ = photographs[0].pixels.shape
        if crop % self.factor:
            raise ConfigError(
                f"crop {crop} is not a multiple of the autoencoder's factor {self.factor}",
                hint=f"crop={-(-crop // self.factor) * self.factor}",
            )
        if height % self.factor or width % self.factor or crop > min(height, width):
            raise DataError(
                f"photographs of {width}x{height} have no windows of {crop} on a grid of {self.factor}",
                hint="a smaller crop, or photographs whose sides are multiples of the autoencoder's factor",
            )
        if latents is None:
            latents = cached(cache, _key(photographs, model), lambda: _encode_all(photographs, model))
        self.latents = latents
        """(N, channels, H/factor, W/factor), bfloat16: the decoder computes in it."""

    def draw(self, index: int, *, count: int) -> Pairs:
        """`count` windows on the latents' grid that depend on (seed, index) alone."""
        rng = np.random.default_rng((self.seed, index))
        side, (rows, columns) = self.crop // self.factor, self.latents.shape[2:]
        chosen = rng.integers(len(self.photographs), size=count)
        tops = rng.integers(rows - side + 1, size=count)
        lefts = rng.integers(columns - side + 1, size=count)
        places = list(zip(chosen.tolist(), tops.tolist(), lefts.tolist(), strict=True))
        latents = [self.latents[i, :, top : top + side, left : left + side] for i, top, left in places]
        pixels = [self._window(i, top * self.factor, left * self.factor) for i, top, left in places]
        return Pairs(torch.stack(latents).float(), to_tensor(pixels))

    def _window(self, index: int, top: int, left: int) -> np.ndarray:
        return self.photographs[index].pixels[top : top + self.crop, left : left + self.crop]


class DecoderTrainer(ReconstructionTrainer):
    """One decoder behind its frozen encoder, its discriminator, both optimisers and the decoder's average."""

    def __init__(
        self,
        model: AutoencoderKL,
        discriminator: PatchDiscriminator,
        windows: Windows,
        held_out: Sequence[Photograph],
        *,
        steps: int,
        batch: int,
        learning_rate: float,
        discriminator_learning_rate: float,
        adversarial_weight: float,
        adversarial_warmup: int,
        ema_decay: float,
        drawn: Windows | None = None,
    ) -> None:
        self.windows, self.drawn, self.discriminator = windows, drawn, discriminator
        model.requires_grad_(False).decoder.requires_grad_(True)
        self.steps, self.batch, self.learning_rate = steps, batch, learning_rate
        self.adversarial_weight, self.adversarial_warmup = adversarial_weight, adversarial_warmup
        self.optimizer = MuonAdamW(model.named_parameters(), lr=learning_rate, weight_decay=1e-3)
        self.discriminator_optimizer = torch.optim.AdamW(
            discriminator.parameters(), lr=discriminator_learning_rate, betas=(0.5, 0.9)
        )
        super().__init__(model, self.optimizer, held_out, ema_decay=ema_decay)
        self._parts |= {"discriminator": discriminator, "discriminator_optimizer": self.discriminator_optimizer}

    def step(self, index: int) -> Mapping[str, float]:
        """One step of the decoder, then one of the discriminator, on windows that depend on (seed, index) alone."""
        latents, pixels = (part.to(self.device) for part in self.windows.draw(index, count=self.batch))
        before = None
        if self.drawn is not None:
            drawn, before = (part.to(self.device) for part in self.drawn.draw(index, count=self.batch))
            latents = torch.cat([latents, drawn])
        with computing_in(self.dtype, self.device):
            decoded = self.model.decode(latents).sample.float()
        metrics = self.backward(decoded, pixels, before, share=rise(index, warmup=self.adversarial_warmup))
        self.optimizer.clip(1.0)
        warmup = min(100, self.steps // 10)
        self.optimizer.step(self.learning_rate * warmup_cosine(index, steps=self.steps, warmup=warmup, floor=0.02))
        self.ema.update(self.model)
        return {**metrics, "discriminator": self.discriminate(pixels, decoded.detach())}

    def backward(
        self, decoded: Tensor, pixels: Tensor, before: Tensor | None = None, *, share: float
    ) -> dict[str, float]:
        """The decoder's gradients, with `share` of the adversarial weight: at 0 those of the pixel loss alone.

        `decoded` begins with what was made of the photographs `pixels`; what follows was drawn, and looked as `before`.
        """
        error = decoded[: len(pixels)] - pixels
        absolute, squared = error.abs().mean(), error.square().mean()
        loss = absolute + 2 * squared
        metrics = {"l1": absolute.item(), "mse": squared.item(), "adversarial": 0.0, "adaptive_weight": 0.0}
        if before is not None:
            coarse = F.avg_pool2d(decoded[len(pixels) :] - before, 4).abs().mean()
            loss = loss + coarse
            metrics["coarse_l1"] = coarse.item()
        (gradient,) = grad(loss, decoded)
        if (weight := share * self.adversarial_weight) > 0:
            adversarial = decoder_loss(self._answers(decoded))
            (towards_real,) = grad(adversarial, decoded)
            last = self.model.decoder.conv_out.weight
            at_last = [grad(decoded, last, way, retain_graph=True)[0] for way in (gradient, towards_real)]
            adaptive = adaptive_weight(*at_last)
            gradient = gradient + weight * adaptive * towards_real
            metrics |= {"adversarial": adversarial.item(), "adaptive_weight": adaptive.item()}
        decoded.backward(gradient)
        return metrics

    def discriminate(self, pixels: Tensor, decoded: Tensor) -> float:
        """One optimiser step of the discriminator; returns its loss, which is 2 where it cannot tell."""
        real, fake = self._answers(torch.cat([pixels, decoded])).split([len(pixels), len(decoded)])
        loss = discriminator_loss(real, fake)
        loss.backward()
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _answers(self, pixels: Tensor) -> Tensor:
        with computing_in(self.dtype, self.device):
            answers: Tensor = self.discriminator(pixels)
        return answers.float()


def rise(step: int, *, warmup: int) -> float:
    """Share of the adversarial weight at `step`: 0 for `warmup` steps, then up to 1 over as many."""
    return min(1.0, max(0.0, (step + 1 - warmup) / max(1, warmup)))


def _key(photographs: Sequence[Photograph], model: AutoencoderKL) -> str:
    names = "\n".join(photograph.file for photograph in photographs)
    return hashlib.sha256(f"{names}\n{digest(model.encoder)}".encode()).hexdigest()


def _encode_all(photographs: Sequence[Photograph], model: AutoencoderKL) -> Tensor:
    chunks = []
    for start in range(0, len(photographs), 64):
        pixels = to_tensor([photograph.pixels for photograph in photographs[start : start + 64]]).to(
            next(model.encoder.parameters()).device
        )
        with torch.no_grad():
            chunks.append(model.encode(pixels).latent_dist.mean.to("cpu", torch.bfloat16))
    return torch.cat(chunks)
