"""Photographs that trainings are wired for, and an eye to look at them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.train.efficientnet_lite import EfficientNetLite
from train.test_efficientnet_lite import published


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six photographs of 32 pixels, two of them held out."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    rows = []
    for index in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{index}.png")
        split = "train" if index < 4 else "test"
        rows.append(
            {"file": f"{index}.png", "split": split, "category": "plants", "cls": "rose", "captions": ["a rose"]}
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    """Random weights of an EfficientNet-Lite, in the file format of its package."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("eye") / "efficientnet-lite0-57934424.pth"
    torch.save(published(EfficientNetLite(width=1.0, depth=1.0)), path)
    return path
