"""The smallest model that each scorer's file can load: plug-in -> (an empty folder) -> its options.

A new file in the room needs an entry here; the contract tests fail without one. Servers started here are local and
stop with the session.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lasting import lasting
from scorers import test_hpsv3, test_image_classifier, test_residual
from tiny_clip import random_clip, save_tokenizer
from tiny_detectors import random_effort, random_omniaid


def aesthetic(folder: Path):
    random_clip().save_pretrained(folder / "tower")
    sizes, generator = (24, 8, 6, 4, 3, 1), torch.Generator().manual_seed(0)
    tensors = {}
    for place, wide, narrow in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        tensors[f"layers.{place}.weight"] = torch.randn(narrow, wide, generator=generator)
        tensors[f"layers.{place}.bias"] = torch.randn(narrow, generator=generator)
    save_file(tensors, folder / "head.safetensors")
    return {"model": str(folder / "head.safetensors"), "tower": str(folder / "tower")}


def augmented(folder: Path):
    return {"scorer": {"name": "residual", "options": residual(folder)}, "resize": (0.5, 2.0)}


def dual_encoder(folder: Path):
    random_clip().save_pretrained(folder)
    save_tokenizer(folder)
    return {"model": str(folder)}


def effort(folder: Path):
    save_file(random_effort(), folder / "effort.safetensors")
    return {"model": str(folder)}


def forensic_chat(folder: Path):
    from tiny_vlm import save_tiny_vlm

    return {"model": str(save_tiny_vlm(folder))}


def hpsv3(folder: Path):
    """Random weights under the published names."""
    from torch import nn
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    base = folder / "base"
    base.mkdir()
    tokenizer = test_hpsv3.save_tokenizer(base)
    config = test_hpsv3.small_config(tokenizer, len(tokenizer) + 1)
    (base / "config.json").write_text(json.dumps(config))
    head = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Identity(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2))
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(**config))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    named = [*model.state_dict().items(), *((f"rm_head.{name}", tensor) for name, tensor in head.state_dict().items())]
    for name, tensor in named:
        is_norm = ("norm" in name or "ln_q" in name) and name.endswith("weight")
        published = name.removeprefix("model.").replace("language_model.", "model.")
        tensors[published] = torch.randn(tensor.shape, generator=generator) * 0.2 + float(is_norm)
    save_file(tensors, folder / "HPSv3.safetensors")
    (folder / "question.txt").write_text(test_hpsv3.QUESTION)
    return {"model": str(folder), "base": str(base), "instruction": str(folder / "question.txt")}


def image_classifier(folder: Path):
    return {"model": str(test_image_classifier.save(folder)), "real_label": "real"}


def omniaid(folder: Path):
    save_file(random_omniaid(), folder / "omniaid.safetensors")
    return {"model": str(folder)}


def remote(folder: Path):
    from serving import Brightness, running

    server = lasting.enter_context(running({"light": Brightness()}))
    return {"urls": (server.url,), "scorer": "light"}


def residual(folder: Path):
    test_residual.network_of().save_pretrained(folder)
    return {"model": str(folder)}


def visual_quality(folder: Path):
    """A server that rates the brightness: the tiny language models write nothing that can be read."""
    from chat_server import said, serving

    def rate(image, body):
        return said(f"<answer>{1 + 4 * np.asarray(image.convert('L')).mean() / 255:.2f}</answer>")

    return {"model": "bright", "server": {"base_url": lasting.enter_context(serving(rate)).url}}


FACTORIES = {
    make.__name__: make
    for make in (
        aesthetic,
        augmented,
        dual_encoder,
        effort,
        forensic_chat,
        hpsv3,
        image_classifier,
        omniaid,
        remote,
        residual,
        visual_quality,
    )
}
