"""Batches made ahead are those that the step would have made, from any index on."""

import pytest
import torch

from realgen.train.ahead import Ahead


def batch_of(index):
    return torch.full((2,), index), [f"text {index}"]


@pytest.mark.parametrize("loaders", [0, 2])
def test_batches_come_in_order_and_after_a_jump(loaders):
    batches = Ahead(batch_of, loaders=loaders)
    for index in (0, 1, 2, 7, 8, 3):
        numbers, texts = batches(index)
        assert numbers.tolist() == [index, index]
        assert texts == [f"text {index}"]


def test_an_error_of_a_process_reaches_the_caller():
    def fail(index):
        raise ValueError(f"batch {index} is broken")

    with pytest.raises(ValueError, match="batch 4 is broken"):
        Ahead(fail, loaders=1)(4)
