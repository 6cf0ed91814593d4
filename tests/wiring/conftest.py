"""Photographs that trainings are wired for."""

import json

import numpy as np
import pytest
from PIL import Image


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
