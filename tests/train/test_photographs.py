"""Photographs from a manifest: sizes kept, splits, crops by chance that is given, and unreadable files named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.core.errors import DataError
from realgen.train.photographs import random_crops, read_photographs, to_tensor


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"file": "a.png", "split": "train", "category": "people", "cls": "man", "captions": ["a man"], "source": "x"},
        {"file": "b.png", "split": "train", "category": None, "cls": "scene", "captions": []},
        {"file": "c.png", "split": "test", "category": "plants", "cls": "rose", "captions": ["a", "b"]},
    ]
    for i, row in enumerate(rows):
        Image.new("RGB", (24 + 8 * i, 24), (i, 20, 30)).save(tmp_path / row["file"])
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_split_in_the_manifests_order(folder):
    train = read_photographs(folder, split="train")
    assert [photograph.file for photograph in train] == ["a.png", "b.png"]
    assert train[0].category == "people"
    assert train[0].captions == ("a man",)
    assert train[1].category is None
    assert train[1].pixels.shape == (24, 32, 3)


def test_a_folder_within_a_folder_of_the_same_name(folder, tmp_path):
    outer = tmp_path / "photos"
    inner = outer / "photos"
    inner.mkdir(parents=True)
    for file in ("a.png", "b.png", "c.png", "manifest.jsonl"):
        (inner / file).write_bytes((folder / file).read_bytes())
    assert len(read_photographs(outer, split="test")) == 1


def test_what_is_missing_or_damaged_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"manifest\.jsonl"):
        read_photographs(tmp_path / "nowhere", split="train")
    with pytest.raises(DataError, match="'validation'"):
        read_photographs(folder, split="validation")
    (folder / "b.png").write_bytes(b"\x89PNG nonsense")
    with pytest.raises(DataError, match=r"b\.png"):
        read_photographs(folder, split="train")


@pytest.mark.parametrize("line", ["{", "[]", '{"file": "a.png"}', "null", "[" * 100_000])
def test_a_line_of_the_manifest_that_says_nothing_is_numbered(folder, line):
    with (folder / "manifest.jsonl").open("a") as file:
        file.write(f"\n\n{line}\n")
    with pytest.raises(DataError, match=r"line \d+ of .*manifest\.jsonl"):
        read_photographs(folder, split="train")


def test_blank_lines_of_a_manifest_say_nothing(folder):
    with (folder / "manifest.jsonl").open("a") as file:
        file.write("\n \n")
    assert len(read_photographs(folder, split="train")) == 2


def test_tensors_span_minus_one_to_one():
    pixels = np.array([[[0, 127, 255]]], np.uint8)
    tensor = to_tensor([pixels, pixels])
    assert tensor.shape == (2, 3, 1, 1)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([-1, -1 / 255, 1], abs=1e-3)


def test_crops_follow_from_the_generator_alone(folder):
    train = read_photographs(folder, split="train")
    one, same = (random_crops(train, count=5, size=16, rng=np.random.default_rng(3)) for _ in range(2))
    assert one.shape == (5, 3, 16, 16)
    assert torch.equal(one, same)
    other = random_crops(train, count=5, size=16, rng=np.random.default_rng(4))
    assert not torch.equal(one, other)
