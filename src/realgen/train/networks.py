"""Fresh small networks that learn to tell real from generated, of the Hugging Face hub's own classes.

Label 0 is "real", label 1 "fake"; exported folders are image-classification checkpoints like any other.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextForImageClassification, ViTConfig, ViTForImageClassification

LABELS = {0: "real", 1: "fake"}
VIT_SIDE, CONVNEXT_SIDE = 64, 128
"""Pixels that each sees: the ViT less than a generator draws, so that it judges what is shown, not the grain."""


@dataclass(frozen=True, slots=True)
class Network:
    """A detector's network as its trainer drives it."""

    module: nn.Module
    log_odds: Callable[[Tensor], Tensor]
    """Log-odds of "real" (B,) of pixels (B, 3, H, W) in [0, 1], with gradients."""
    head: nn.Linear
    """The last layer, which calibration scales."""
    save: Callable[[Path], None]
    """Writes the folder that the detector's scorer opens."""


def build_vit() -> Network:
    """Some 2.7 million parameters on the whole picture at 64 pixels."""
    module = ViTForImageClassification(
        ViTConfig(
            image_size=VIT_SIDE,
            patch_size=8,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=768,
            hidden_dropout_prob=0.1,
            id2label=LABELS,
            label2id={name: index for index, name in LABELS.items()},
        )
    )
    return _network(module, VIT_SIDE, "ViTImageProcessor")


def build_convnext() -> Network:
    """Some 2 million parameters on the whole picture at 128 pixels."""
    module = ConvNextForImageClassification(
        ConvNextConfig(
            hidden_sizes=[32, 64, 128, 256],
            depths=[2, 2, 4, 2],
            image_size=CONVNEXT_SIDE,
            drop_path_rate=0.05,
            id2label=LABELS,
            label2id={name: index for index, name in LABELS.items()},
        )
    )
    return _network(module, CONVNEXT_SIDE, "ConvNextImageProcessor")


def _network(module: ViTForImageClassification | ConvNextForImageClassification, side: int, processor: str) -> Network:
    def log_odds(pixels: Tensor) -> Tensor:
        if pixels.shape[2:] != (side, side):
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        logits = module(pixel_values=pixels * 2 - 1).logits
        return logits[:, 0] - logits[:, 1]

    def save(folder: Path) -> None:
        copy.deepcopy(module).to(torch.bfloat16).save_pretrained(folder)
        settings = {
            "image_processor_type": processor,
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 2,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    return Network(module, log_odds, module.classifier, save)
