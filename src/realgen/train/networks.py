"""Small networks that learn to tell real from generated, of the Hugging Face hub's own classes.

Label 0 is "real", label 1 "fake"; exported folders are image-classification checkpoints like any other.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification, PvtV2Config, PvtV2ForImageClassification

from realgen.core.errors import ModelError

LABELS = {0: "real", 1: "fake"}
_INDICES = {name: index for index, name in LABELS.items()}
SIDE = 128
"""Pixels of the side of the whole picture, as these networks see it."""


@dataclass(frozen=True, slots=True)
class Network:
    """A detector's network as its trainer drives it."""

    module: nn.Module
    log_odds: Callable[[Tensor], Tensor]
    """Log-odds of "real" (B,) of pixels (B, 3, H, W) in [0, 1], with gradients."""
    head: nn.Linear
    """The last layer, which calibration scales and shifts; its first output is that of "real"."""
    save: Callable[[Path], None]
    """Writes the folder that the detector's scorer opens."""


def build_pvt() -> Network:
    """A pyramid vision transformer (PVTv2: Wang et al. 2022, arXiv 2106.13797) of some 2.4 million parameters."""
    module = PvtV2ForImageClassification(
        PvtV2Config(
            image_size=SIDE,
            hidden_sizes=[32, 64, 128, 192],
            depths=[2, 2, 3, 2],
            num_attention_heads=[1, 2, 4, 6],
            mlp_ratios=[4, 4, 4, 4],
            drop_path_rate=0.05,
            id2label=LABELS,
            label2id=_INDICES,
        )
    )
    return _network(module, "ViTImageProcessor")


def build_convnext() -> Network:
    """A ConvNeXt (Liu et al. 2022, arXiv 2201.03545) of some 2 million parameters."""
    module = ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[32, 64, 128, 256],
            depths=[2, 2, 4, 2],
            image_size=SIDE,
            drop_path_rate=0.05,
            id2label=LABELS,
            label2id=_INDICES,
        )
    )
    return _network(module, "ConvNextImageProcessor")


def go_on_from(module: nn.Module, folder: Path) -> None:
    """Give `module` the weights that its like was exported with to `folder`; ModelError where there are none."""
    try:
        module.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        hint = "give the folder that a detector of the same network was exported to"
        raise ModelError(f"cannot go on from {folder}: {reason}", hint=hint) from error


def _network(module: PvtV2ForImageClassification | ConvNextForImageClassification, processor: str) -> Network:
    def log_odds(pixels: Tensor) -> Tensor:
        if pixels.shape[2:] != (SIDE, SIDE):
            pixels = F.interpolate(pixels, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        logits = module(pixel_values=2 * pixels - 1).logits
        return logits[:, 0] - logits[:, 1]

    def save(folder: Path) -> None:
        copy.deepcopy(module).to(torch.bfloat16).save_pretrained(folder)
        settings = {
            "image_processor_type": processor,
            "do_resize": True,
            "size": {"height": SIDE, "width": SIDE},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    return Network(module, log_odds, module.classifier, save)
