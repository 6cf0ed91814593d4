"""A folder of photographs with a `manifest.jsonl`, held in memory as 8-bit pixels.

Knows nothing of models. A manifest line needs `file` and `split`; `category`, `cls`, `captions` and
`source` are read where present. Pictures keep their own size, so small ones are never enlarged here.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from realgen.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Photograph:
    """One photograph: its line of the manifest and its pixels, (H, W, 3) uint8."""

    file: str
    pixels: np.ndarray
    category: str | None
    cls: str
    captions: tuple[str, ...]
    source: str
    weight: float = 1.0
    """How much more often it is drawn than others of its category."""


def read_photographs(folder: str | Path, *, split: str) -> list[Photograph]:
    """All photographs of one split, in the manifest's order."""
    root = find_manifest(Path(folder))
    lines = (root / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [_row(root, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    chosen = [row for row in rows if row["split"] == split]
    if not chosen:
        raise DataError(f"{root} has no photograph of the split {split!r}", hint="look at manifest.jsonl")
    return [_photograph(root, row) for row in chosen]


def find_manifest(folder: Path) -> Path:
    """`folder`, or the folder of its own name inside, as archives unpack: where manifest.jsonl lies."""
    for root in (folder, folder / folder.name):
        if (root / "manifest.jsonl").is_file():
            return root
    raise DataError(f"no manifest.jsonl in {folder}", hint="set data=FOLDER to the unpacked photographs")


def _row(root: Path, number: int, line: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not {"file", "split"} <= row.keys():
        raise DataError(
            f"line {number} of {root / 'manifest.jsonl'} says of no photograph",
            hint='each is JSON with "file" and "split"',
        )
    return row


def _photograph(root: Path, row: dict[str, object]) -> Photograph:
    path = root / str(row["file"])
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"cannot read the photograph {path}: {error}", hint="unpack the data again") from error
    captions = row.get("captions")
    return Photograph(
        file=str(row["file"]),
        pixels=pixels,
        category=str(row["category"]) if row.get("category") else None,
        cls=str(row.get("cls") or ""),
        captions=tuple(str(caption) for caption in captions) if isinstance(captions, list) else (),
        source=str(row.get("source") or ""),
    )


def of_one_size(photographs: Sequence[Photograph]) -> list[Photograph]:
    """Those of the commonest size; the others are left out."""
    (size, _), *_ = Counter(photograph.pixels.shape for photograph in photographs).most_common(1)
    return [photograph for photograph in photographs if photograph.pixels.shape == size]


def to_tensor(pixels: Sequence[np.ndarray]) -> Tensor:
    """Pictures of one size (H, W, 3) uint8 as a batch (B, 3, H, W) in [-1, 1]."""
    stacked = torch.from_numpy(np.stack(pixels))
    return stacked.permute(0, 3, 1, 2).float() / 127.5 - 1


def random_crops(photographs: Sequence[Photograph], *, count: int, size: int, rng: np.random.Generator) -> Tensor:
    """`count` square crops of `size` pixels, mirrored half of the time: (count, 3, size, size) in [-1, 1]."""
    crops = []
    for index in rng.integers(len(photographs), size=count):
        pixels = photographs[int(index)].pixels
        top = int(rng.integers(max(pixels.shape[0] - size, 0) + 1))
        left = int(rng.integers(max(pixels.shape[1] - size, 0) + 1))
        crop = pixels[top : top + size, left : left + size]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return to_tensor(crops)
