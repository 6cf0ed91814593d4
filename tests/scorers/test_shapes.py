"""Sizes read from shapes, and the one line for what is not there."""

import pytest
import torch

from realgen.core.errors import ModelError
from realgen.scorers._shapes import TowerShape, clip_shape, count, dino_shape, listed, size_of
from tiny_detectors import random_effort, random_omniaid


def test_every_tower_tells_its_shape():
    wanted = TowerShape(width=128, num_layers=2, mlp=48, patch=14, side=28)
    assert clip_shape(random_omniaid(), root="", layers="encoder_layers.", source="x") == wanted
    assert clip_shape(random_effort(), root="backbone.", layers="backbone.encoder.layers.", source="x") == wanted
    wanted = TowerShape(width=128, num_layers=2, mlp=48, patch=16, num_registers=3)
    assert dino_shape(random_omniaid("dino"), source="x") == wanted


def test_numbered_parts_are_counted_by_the_highest():
    assert count(["a.0.w", "a.11.w", "b.40.w", "a.x"], "a.") == 12
    assert count(["b.0"], "a.") == 0


@pytest.mark.parametrize("name", ["c", "a"])
def test_a_missing_tensor_or_dimension_is_named_with_what_is_there(name):
    tensors = {"a": torch.zeros(3), "b": torch.zeros(2)}
    assert size_of(tensors, "a", 0, source="x") == 3
    with pytest.raises(ModelError, match=f"x is not for this plug-in: it lacks {name}, and holds a, b"):
        size_of(tensors, name, 1, source="x")


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed("abcde") == "a, b, c and 2 more"
