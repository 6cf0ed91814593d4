"""Texts are encoded once, some are kept for good, and the encoders leave and come back."""

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from conftest import WEIGHTS
from realgen.generators._texts import Texts, knows_any


class Encoder(nn.Module):
    """One weight; writes down where it is sent, and stays."""

    def __init__(self, device="cpu"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, device=device), requires_grad=False)
        self.moves = []

    def to(self, device):
        self.moves.append(str(device))
        return self


class Case:
    """Texts whose one state is their length times the encoder's weight, with what was asked for."""

    def __init__(self, **kwargs):
        self.encoder, self.asked = Encoder(**kwargs), []
        self.texts = Texts(self.encode, [self.encoder], device=lambda: torch.device("cpu", 0), at_once=8)

    def encode(self, texts):
        self.asked.append(list(texts))
        return ((len(text) * self.encoder.weight,) for text in texts)

    def values(self, texts):
        return [float(state) for (state,) in self.texts(texts)]


def test_a_text_is_encoded_once_and_found_in_order():
    case = Case()
    assert case.values(["aa", "b", "aa"]) == [2, 1, 2]
    assert case.values(["b", "ccc"]) == [1, 3]
    assert case.asked == [["aa", "b"], ["ccc"]]
    assert case.encoder.moves == []


def test_no_more_than_eight_at_once_and_no_more_than_256_are_kept():
    case = Case()
    many = ["x" * length for length in range(1, 251)]
    assert case.values(many) == list(range(1, 251))
    assert max(len(texts) for texts in case.asked) == 8
    assert case.values([many[0], *("y" * length for length in range(1, 9))])[0] == 1
    assert case.asked[-2:] == [["x", *("y" * length for length in range(1, 8))], ["y" * 8]]


def test_what_is_remembered_is_never_dropped_and_needs_no_encoder():
    case = Case()
    case.values(["aa"])
    case.texts.remember(["aa", "b", "b"])
    assert case.encoder.moves == ["cpu"]
    for length in range(1, 300):
        case.values(["z" * length])
    case.asked.clear()
    case.encoder.moves.clear()
    assert case.values(["b", "aa"]) == [1, 2]
    assert case.asked == case.encoder.moves == []


def test_a_new_text_brings_the_encoders_back_for_as_long_as_it_takes():
    case = Case()
    case.texts.remember(["aa"])
    assert case.values(["ccc", "aa"]) == [3, 2]
    assert case.encoder.moves == ["cpu", "cpu:0", "cpu"]
    case.texts.remember(["dddd"])
    assert case.encoder.moves == ["cpu", "cpu:0", "cpu", "cpu:0", "cpu"]
    case.texts.remember(["dddd"])
    assert case.values(["dddd"]) == [4]
    assert case.asked == [["aa"], ["ccc"], ["dddd"]]


def test_what_an_offload_hook_moves_is_not_brought_back_and_weights_elsewhere_are_not_sent():
    hooked = Case()
    hooked.encoder._hf_hook = object()
    hooked.texts.remember(["a"])
    hooked.values(["bb"])
    assert hooked.encoder.moves == ["cpu", "cpu"]
    elsewhere = Case(device="meta")
    elsewhere.texts.remember([])
    assert elsewhere.encoder.moves == []


def test_what_sampling_encoded_can_be_trained_with():
    case = Case()
    with torch.inference_mode():
        ((state,),) = case.texts(["aa"])
    weight = torch.ones(1, requires_grad=True)
    (state * weight).sum().backward()
    assert float(weight.grad) == 2


def test_while_an_encoder_is_trained_nothing_is_kept():
    case = Case()
    case.values(["aa"])
    case.encoder.weight.requires_grad_(True)
    ((state,),) = case.texts(["aa"])
    state.sum().backward()
    assert float(case.encoder.weight.grad) == 2
    with pytest.raises(ValueError, match="being trained"):
        case.texts.remember(["aa"])
    case.encoder.weight.requires_grad_(False).fill_(5)
    assert case.values(["aa"]) == [10]


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("a cat", True),
        ("a cat 🐱", True),
        ("123", True),
        ("一只猫", False),
        ("кошка на диване", False),
        ("\u200b", False),
    ],
)
def test_the_embedded_model_reads_what_its_vocabulary_holds(text, is_read):
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "tokenizer_2")
    assert knows_any(tokenizer, text) is is_read
