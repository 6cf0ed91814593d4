import pytest
import torch

import grpo
from realgen.train.scoring import ScoringQueue


@pytest.mark.parametrize("beside", [False, True])
def test_scores_come_back_in_order_with_their_places(beside):
    queue = ScoringQueue(grpo.light, is_beside=beside)
    for start in (0, 2):
        pixels = torch.full((2, 3, 8, 8), (start + 1) / 10)
        queue.put([start, start + 1], pixels, ["a", "b"])
    found = queue.results()
    assert [one.place for one in found] == [0, 1, 2, 3]
    assert [round(one.scores["light"].value, 1) for one in found] == [0.1, 0.1, 0.3, 0.3]
    assert [one.sharpness for one in found] == [0.0] * 4
    assert queue.results() == []


@pytest.mark.parametrize("beside", [False, True])
def test_an_error_of_the_scorer_is_raised(beside):
    def broken(images, prompts):
        raise ZeroDivisionError

    queue = ScoringQueue(broken, is_beside=beside)

    def put_and_read():
        queue.put([0], torch.zeros(1, 3, 8, 8), ["a"])
        queue.results()

    with pytest.raises(ZeroDivisionError):
        put_and_read()
