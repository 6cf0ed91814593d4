"""Our small feature detector: the noise residual and the spectrum of patches at native resolution.

Nothing is resized, so a picture's finest grain is what it sees. Every patch answers for itself; the picture's
log-odds are their mean. Knows nothing of what a picture shows.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.core.errors import ModelError, unloadable
from realgen.core.spec import Machine, Spec
from realgen.core.types import Score, ScorerInfo
from realgen.hub.device import pick_device
from realgen.hub.names import expand
from realgen.scorers._scoring import score_batch

SIDE = 64
"""Pixels of a patch's side."""
MAX_A_SIDE = 4
"""At most so many patches across and down: 16 of a large picture."""
_LUMA = (0.299, 0.587, 0.114)


class Options(Spec):
    """What can be set."""

    model: str | None = None
    """Folder of the network; the card's by default."""

    temperature: float = Field(default=1.0, gt=0)
    """The log-odds are divided by it: calibration on held-out pictures."""


class ResidualNet(nn.Module):
    """Log-odds of "real" of patches (N, 3, 64, 64) in [0, 1], from their residual and from their spectrum."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.width = width
        self.trunk = nn.Sequential(
            *_level(5, width, stride=1),
            *_level(width, 2 * width, stride=2),
            *_level(2 * width, 4 * width, stride=2),
            *_level(4 * width, 4 * width, stride=2),
        )
        self.spectrum = nn.Sequential(
            *_level(1, width, stride=2), *_level(width, 2 * width, stride=2), *_level(2 * width, 2 * width, stride=2)
        )
        self.head = nn.Linear(2 * 4 * width + 2 * width, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """(N,) log-odds."""
        residual = high_pass(patches)
        grain = self.trunk(residual)
        waves = self.spectrum(log_spectrum(patches))
        features = torch.cat([grain.mean((2, 3)), grain.var((2, 3)).add(1e-6).sqrt(), waves.mean((2, 3))], dim=1)
        return self.head(features)[:, 0]

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"width": self.width}) + "\n", encoding="utf-8")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path) -> "ResidualNet":
        """The network in `folder`; ModelError where it is another's or damaged."""
        try:
            network = cls(int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["width"]))
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            said = f"{folder} holds no residual detector: {reason}"
            raise unloadable(error, said, hint="reinstall it, or train one") from error
        network.eval()
        return network


def _level(channels_in: int, channels_out: int, *, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, padding_mode="reflect")
    return [convolution, nn.GroupNorm(channels_out // 8, channels_out), nn.SiLU()]


def high_pass(patches: Tensor) -> Tensor:
    """What a 3x3 binomial blur leaves of each colour, and the second differences of luma: (N, 5, H, W), amplified."""
    padded = F.pad(patches, (1, 1, 1, 1), mode="reflect")
    # Sums, not a convolution: autocast and TF32 would round it more coarsely than the grain.
    rows = (padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]) / 4
    colours = patches - (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4
    luma = (padded * padded.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    across = (luma[..., 1:-1, :-2] + luma[..., 1:-1, 2:]) / 2 - luma[..., 1:-1, 1:-1]
    down = (luma[..., :-2, 1:-1] + luma[..., 2:, 1:-1]) / 2 - luma[..., 1:-1, 1:-1]
    return torch.cat([colours, across, down], dim=1) * 16


def log_spectrum(patches: Tensor) -> Tensor:
    """Log power of luma under a Hann window, standardised: (N, 1, H, W / 2 + 1), low frequencies in the middle rows."""
    luma = (patches * patches.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    hann = torch.hann_window(luma.shape[-1], periodic=False, device=luma.device)
    waves = torch.fft.rfft2((luma - luma.mean((2, 3), keepdim=True)) * hann[:, None] * hann, norm="ortho")
    power = waves.real.square() + waves.imag.square()
    return torch.fft.fftshift((power + 1e-7).log(), dim=2) / 4 + 2


def places(length: int) -> list[int]:
    """Where patches begin along a side: evenly spread from edge to edge, at most MAX_A_SIDE."""
    count = min(MAX_A_SIDE, max(1, -(-length // SIDE)))
    return [round(start) for start in np.linspace(0, length - SIDE, count)]


def cut(pixels: Tensor) -> Tensor:
    """Patches (B, N, 3, 64, 64) of pixels (B, 3, H, W); a smaller picture is continued by its mirror image."""
    while min(pixels.shape[2:]) < SIDE:
        missing = [min(max(SIDE - length, 0), max(length - 1, 0)) for length in pixels.shape[2:]]
        if not any(missing):
            pixels = F.interpolate(pixels, scale_factor=2.0)  # a side of one pixel has no mirror image
        else:
            pixels = F.pad(pixels, (0, missing[1], 0, missing[0]), mode="reflect")
    tops, lefts = places(pixels.shape[2]), places(pixels.shape[3])
    return torch.stack([pixels[:, :, top : top + SIDE, left : left + SIDE] for top in tops for left in lefts], dim=1)


class Residual:
    """A detector around a ResidualNet."""

    def __init__(self, module: ResidualNet, *, temperature: float = 1.0, batch: int = 8) -> None:
        self.module = module
        self.temperature = temperature
        self.batch = batch
        self.info = ScorerInfo(
            low=0,
            high=1,
            is_detector=True,
            is_held_out=False,
            licence="",
            source="realgen, trained on its own pictures",
        )

    def __call__(self, images: Sequence[Image], prompts: Sequence[str]) -> list[Score]:
        """P(real) of each image."""
        return score_batch(images, prompts, self._values, prepare=_patches, batch=self.batch)

    def differentiable(self, pixels: Tensor) -> Tensor:
        """P(real) (B,) of pixels (B, 3, H, W) in [0, 1]."""
        return torch.sigmoid(self.log_odds(pixels) / self.temperature)

    def log_odds(self, pixels: Tensor) -> Tensor:
        """Uncalibrated log-odds of "real" (B,) of pixels (B, 3, H, W) in [0, 1]."""
        patches = cut(pixels)
        answers: Tensor = self.module(patches.flatten(0, 1))
        return answers.view(patches.shape[:2]).mean(1)

    @torch.no_grad()
    def _values(self, patches: list[Tensor], prompts: list[str]) -> list[float]:
        del prompts
        device = next(self.module.parameters()).device
        answers = self.module(torch.cat(patches).to(device)).split([len(part) for part in patches])
        return [float(torch.sigmoid(part.mean() / self.temperature)) for part in answers]


def _patches(image: Image) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return cut(pixels[None])[0]


def build(options: Options, machine: Machine) -> Residual:
    """The detector in `options.model`."""
    if options.model is None:
        raise ModelError("residual needs a model", hint="set options.model to a folder, or card: tiny-residual")
    network = ResidualNet.from_pretrained(expand(options.model)).to(pick_device(machine))
    return Residual(network, temperature=options.temperature, batch=machine.batch)
