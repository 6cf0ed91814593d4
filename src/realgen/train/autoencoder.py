"""Trains an `AutoencoderKL` on photographs: the room in which the embedded generator draws.

It minimises the pixel error with a very small KL term, and so draws softly: `train/decoder.py` sharpens the decoder
later, behind the encoder as it stands. Knows nothing of prompts or of the flow.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from realgen.core.errors import ModelError
from realgen.formulas.pixels import to_images
from realgen.train.linear_start import start_linear
from realgen.train.optimizers import MuonAdamW
from realgen.train.photographs import Photograph, random_crops, to_tensor
from realgen.train.precision import computing_in
from realgen.train.run import warmup_cosine
from realgen.train.single import Optimizer, SingleModelTrainer


def build_autoencoder(*, widths: Sequence[int], latent_channels: int, groups: int, size: int) -> AutoencoderKL:
    """A fresh autoencoder of FLUX.1's class and layout; each width after the first halves the picture."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        sample_size=size,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def linear_autoencoder(
    photographs: Sequence[Photograph],
    *,
    widths: Sequence[int],
    latent_channels: int,
    groups: int,
    size: int,
    seed: int,
) -> AutoencoderKL:
    """A fresh autoencoder that projects patches of these photographs onto their principal components."""
    model = build_autoencoder(widths=widths, latent_channels=latent_channels, groups=groups, size=size)
    start_linear(model, random_crops(photographs, count=384, size=96, rng=np.random.default_rng(seed)))
    return model


def open_autoencoder(folder: Path) -> AutoencoderKL:
    """The autoencoder in `folder`, or in its `vae` where that is a pipeline's: float32, frozen."""
    root = folder / "vae" if (folder / "vae").is_dir() else folder
    try:
        name = json.loads((root / "config.json").read_text(encoding="utf-8"))["_class_name"]
        if name != "AutoencoderKL":
            raise ModelError(f"{root} holds a {name}, not an AutoencoderKL", hint="give model=FOLDER of one")
        model: AutoencoderKL = AutoencoderKL.from_pretrained(root, dtype=torch.float32)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"cannot open the autoencoder in {root}: {reason}",
            hint="give model=FOLDER of a FLUX.1 pipeline or of an AutoencoderKL",
        ) from error
    model.register_to_config(_name_or_path="")  # what is exported does not say where this one lay
    return model.requires_grad_(False)


class ReconstructionTrainer(SingleModelTrainer):
    """What is measured and shown of an autoencoder in training: held-out photographs through its average."""

    model: AutoencoderKL

    def __init__(
        self, model: AutoencoderKL, optimizer: Optimizer, held_out: Sequence[Photograph], *, ema_decay: float
    ) -> None:
        super().__init__(model, optimizer, ema_decay=ema_decay)
        self.held_out = held_out

    def evaluate(self) -> Mapping[str, float]:
        """PSNR in dB and the gradient energy over the photographs' own, of the average on held-out photographs."""
        self.ema.swap(self.model)
        psnr, sharpness = reconstruction_quality(self.model, self.held_out, device=self.device)
        self.ema.swap(self.model)
        return {"psnr": psnr, "gradient_energy": sharpness}

    @torch.no_grad()
    def preview(self) -> list[Image.Image]:
        """Eight held-out photographs, and below them what the average makes of them."""
        self.ema.swap(self.model)
        pixels = to_tensor([photograph.pixels for photograph in self.held_out[:8]]).to(self.device)
        decoded = self.model.decode(self.model.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        self.ema.swap(self.model)
        return to_images(torch.cat([pixels, decoded]) / 2 + 0.5)


class AutoencoderTrainer(ReconstructionTrainer):
    """One autoencoder, its optimiser and its average."""

    def __init__(
        self,
        model: AutoencoderKL,
        photographs: Sequence[Photograph],
        held_out: Sequence[Photograph],
        *,
        steps: int,
        batch: int,
        crop: int,
        learning_rate: float,
        kl_weight: float,
        ema_decay: float,
        seed: int,
    ) -> None:
        self.photographs = photographs
        self.steps, self.batch, self.crop = steps, batch, crop
        self.learning_rate, self.kl_weight, self.seed = learning_rate, kl_weight, seed
        self.optimizer = MuonAdamW(model.named_parameters(), lr=learning_rate, weight_decay=1e-3)
        super().__init__(model, self.optimizer, held_out, ema_decay=ema_decay)

    def step(self, index: int) -> Mapping[str, float]:
        """One optimiser step on crops that depend on (seed, index) alone."""
        crops = random_crops(
            self.photographs, count=self.batch, size=self.crop, rng=np.random.default_rng((self.seed, index))
        ).to(self.device)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        with computing_in(self.dtype, self.device):
            posterior = self.model.encode(crops).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
            decoded = self.model.decode(posterior.mean + posterior.std * noise).sample
        error = decoded.float() - crops
        absolute, squared = error.abs().mean(), error.square().mean()
        kl = (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean() / 2
        loss = absolute + 2 * squared + self.kl_weight * kl
        loss.backward()
        self.optimizer.clip(1.0)
        self.optimizer.step(self.learning_rate * warmup_cosine(index, steps=self.steps, warmup=100, floor=0.02))
        self.ema.update(self.model)
        return {"l1": absolute.item(), "mse": squared.item(), "kl": kl.item()}


def reconstruction_quality(
    model: AutoencoderKL, photographs: Sequence[Photograph], *, device: torch.device | None = None
) -> tuple[float, float]:
    """Mean PSNR in dB, and mean gradient energy of the reconstructions over that of the photographs (1 = as sharp)."""
    psnr: list[float] = []
    energy = torch.zeros(2)
    for start in range(0, len(photographs), 32):
        pixels = to_tensor([photograph.pixels for photograph in photographs[start : start + 32]]).to(device)
        with torch.no_grad():
            decoded = model.decode(model.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        mse = ((decoded - pixels) / 2).square().mean((1, 2, 3))
        psnr += (-10 * mse.log10()).tolist()
        energy += torch.stack([_gradient_energy(decoded), _gradient_energy(pixels)]).cpu()
    return float(np.mean(psnr)), float(energy[0] / energy[1])


def _gradient_energy(pixels: Tensor) -> Tensor:
    across, down = pixels.diff(dim=-1), pixels.diff(dim=-2)
    return across.square().mean() * len(pixels) + down.square().mean() * len(pixels)
