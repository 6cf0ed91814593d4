"""A CLIP of any layout as transformers' `CLIPModel`, and unit embeddings of images. Knows no score."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from realgen.core.errors import ModelError
from realgen.core.spec import Machine
from realgen.scorers._checkpoint import read_tensors
from realgen.scorers._clip_keys import config_of, translate
from realgen.scorers._pixels import Preprocess
from realgen.scorers._weights import fill


def load_clip(
    path: Path, machine: Machine, *, activation: str = "quick_gelu", vision_head_width: int = 64
) -> tuple[CLIPModel, Preprocess]:
    """The model, frozen, on the machine's device, and how it reads a picture.

    Its sizes are its config.json's, or else its tensors', with this activation and head width. An automatic number
    format is float32: these scores differ in their third decimal, which bfloat16 rounds. The picture is resized to
    the model's size by its short side (bicubic) and cut; mean and deviation are CLIP's unless a
    preprocessor_config.json says others.
    """
    tensors = translate(read_tensors(path), source=str(path))
    config = _config(path)
    if config is None:
        config = config_of(tensors, source=str(path), activation=activation, vision_head_width=vision_head_width)
    model = fill(lambda: CLIPModel(config), tensors, source=str(path), machine=machine)
    return model, _preprocess(path, config)


def embed_images(model: CLIPModel, pixels: Tensor) -> Tensor:
    """Unit embeddings (B, D) of preprocessed pixels (B, 3, S, S), in float32 or wider, with gradients."""
    weight = model.visual_projection.weight
    pooled = model.vision_model(pixel_values=pixels.to(weight.device, weight.dtype)).pooler_output
    return unit(model.visual_projection(pooled))


def unit(embeddings: Tensor) -> Tensor:
    """Rows of length 1, in float32 or wider."""
    return F.normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=-1)


def _config(path: Path) -> CLIPConfig | None:
    if not (path / "config.json").is_file():
        return None
    if (kind := _read_json(path / "config.json").get("model_type")) != "clip":
        raise ModelError(f"{path} holds a {kind}, not a clip", hint="give a CLIP that transformers saved")
    return CLIPConfig.from_pretrained(path)


def _preprocess(path: Path, config: CLIPConfig) -> Preprocess:
    size = config.vision_config.image_size
    plain = Preprocess(size, fit="crop", resample="bicubic")
    file = path / "preprocessor_config.json"
    if not file.is_file():
        return plain
    told = _read_json(file)
    mean, std = told.get("image_mean", plain.mean), told.get("image_std", plain.std)
    return Preprocess(size, fit="crop", resample="bicubic", mean=tuple(mean), std=tuple(std))


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {file}: {error}", hint="fetch or copy the model again") from error
    return found
