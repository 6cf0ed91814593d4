"""Small models of no quality, for benchmarks of what surrounds them."""

from pathlib import Path

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor


def save_classifier(folder: Path, *, seed: int) -> Path:
    """An untrained image classifier with the labels real and fake, that reads 64 x 64 pixels."""
    torch.manual_seed(seed)
    size = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    shape = ViTConfig(image_size=64, patch_size=8, id2label={0: "real", 1: "fake"}, **size)
    ViTForImageClassification(shape).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder
