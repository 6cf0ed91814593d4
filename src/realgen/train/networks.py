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
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from realgen.core.errors import ModelError
from realgen.train.dual_encoder import MEAN, STD

LABELS = {0: "real", 1: "fake"}
_INDICES = {name: index for index, name in LABELS.items()}
SIDE = 128
"""Pixels that a fresh network sees."""


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
    """Some 2.8 million parameters on the whole picture in patches of 16 pixels."""
    module = ViTForImageClassification(
        ViTConfig(
            image_size=SIDE,
            patch_size=16,
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=3,
            intermediate_size=768,
            hidden_dropout_prob=0.1,
            id2label=LABELS,
            label2id=_INDICES,
        )
    )
    return _network(module, SIDE, "ViTImageProcessor")


def build_clip(folder: Path) -> Network:
    """The image tower of the CLIP in `folder`, which knows what pictures show, on the whole picture at its own size."""
    try:
        tower = CLIPModel.from_pretrained(folder, dtype=torch.float32).vision_model
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"cannot open the CLIP in {folder}: {reason}", hint="give start=FOLDER of one") from error
    config = CLIPConfig(vision_config=tower.config.to_dict(), id2label=LABELS, label2id=_INDICES)
    module = CLIPForImageClassification(config).float()
    module.vision_model.load_state_dict(tower.state_dict())
    return _network(module, tower.config.image_size, "ViTImageProcessor", mean=MEAN, std=STD)


def build_convnext() -> Network:
    """Some 2 million parameters on the whole picture at 128 pixels."""
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
    return _network(module, SIDE, "ConvNextImageProcessor")


def _network(
    module: ViTForImageClassification | CLIPForImageClassification | ConvNextForImageClassification,
    side: int,
    processor: str,
    *,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
) -> Network:
    def log_odds(pixels: Tensor) -> Tensor:
        if pixels.shape[2:] != (side, side):
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        shift, scale = (pixels.new_tensor(part).view(3, 1, 1) for part in (mean, std))
        logits = module(pixel_values=(pixels - shift) / scale).logits
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
            "image_mean": list(mean),
            "image_std": list(std),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    return Network(module, log_odds, module.classifier, save)
