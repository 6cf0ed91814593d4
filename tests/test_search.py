"""Best of several: which seeds are drawn, which is kept, and what is said of it. The scores are the seeds' own."""

import pytest
from PIL import Image

from realgen import search
from realgen.core.spec import RewardSpec
from realgen.core.types import Progress, Request, Sample, Score

SPEC = RewardSpec(weights={"a": 1.0})
BOUNDED = RewardSpec.model_validate({"weights": {"a": 1}, "constraints": {"b": {"low": 0.5}}})


def drawing(values, asked=None, b=1.0):
    """A draw whose image of seed s has the score values[s]."""

    def draw(requests):
        if asked is not None:
            asked.extend(requests)
        for request in requests:
            yield Progress(1, 1)
            value = values[request.seed]
            scores = {"a": Score(value, "" if value is not None else "it broke"), "b": Score(b)}
            yield Sample(request, "text", Image.new("RGB", (1, 1), (request.seed, 0, 0)), scores=scores)

    return draw


def chosen(requests, draw, spec=SPEC, num=3):
    items = search.best_of(requests, draw, spec=spec, num=num)
    return [item for item in items if not isinstance(item, Progress)]


def test_the_candidates_are_the_seeds_from_the_asked_one_on():
    request = Request("a cat", 7, name="cat", size=(32, 32))
    seeds = [candidate.seed for candidate in search.candidates_of(request, 3)]
    assert seeds == [7, 8, 9]
    assert search.candidates_of(request, 1) == [request]
    assert {(one.prompt, one.name, one.size) for one in search.candidates_of(request, 3)} == {
        ("a cat", "cat", (32, 32))
    }


def test_the_best_of_every_three_is_kept_with_its_own_seed():
    asked = []
    draw = drawing({7: 0.1, 8: 0.9, 9: 0.5, 10: 0.3, 11: 0.2, 12: 0.1}, asked)
    samples = chosen([Request("a", 7), Request("b", 10)], draw)
    assert [(request.prompt, request.seed) for request in asked] == [
        *(("a", seed) for seed in (7, 8, 9)),
        *(("b", seed) for seed in (10, 11, 12)),
    ]
    assert [sample.request for sample in samples] == [Request("a", 8), Request("b", 10)]
    assert [sample.image.getpixel((0, 0))[0] for sample in samples] == [8, 10]
    assert [sample.choice.asked for sample in samples] == [Request("a", 7), Request("b", 10)]
    assert samples[0].scores["a"] == Score(0.9)


def test_the_choice_keeps_every_candidate_and_says_why():
    (sample,) = chosen([Request("a", 7)], drawing({7: 0.1, 8: 0.875, 9: None}))
    assert sample.choice.why == "total 0.875, the highest of 3, 1 unscored"
    first, second, third = sample.choice.candidates
    assert (first.seed, first.total, dict(first.parts)) == (7, 0.1, {"a": 0.1})
    assert (second.seed, second.total, second.is_violated, second.reason) == (8, 0.875, False, "")
    assert (third.total, dict(third.parts), third.reason) == (None, {"a": None}, "a: it broke")


def test_of_equals_the_first_is_kept():
    (sample,) = chosen([Request("a", 7)], drawing({7: 0.5, 8: 0.5, 9: 0.5}))
    assert sample.request.seed == 7


def test_an_unscored_candidate_never_beats_a_scored_one():
    (sample,) = chosen([Request("a", 7)], drawing({7: None, 8: -3.0, 9: None}))
    assert sample.request.seed == 8
    assert sample.choice.why == "total -3, the highest of 3, 2 unscored"


def test_where_none_is_scored_the_first_is_kept_and_it_is_said():
    (sample,) = chosen([Request("a", 7)], drawing(dict.fromkeys((7, 8, 9))))
    assert sample.request.seed == 7
    assert sample.choice.why == "none of 3 could be scored within bounds, this is the first of the unscored"


def test_a_candidate_out_of_bounds_is_passed_over():
    def draw(requests):
        for sample in drawing({7: 0.9, 8: 0.1, 9: 0.2})(requests):
            if isinstance(sample, Progress) or sample.request.seed != 7:
                yield sample
            else:
                yield Sample(sample.request, "", sample.image, scores={**sample.scores, "b": Score(0.0)})

    (sample,) = chosen([Request("a", 7)], draw, BOUNDED)
    assert sample.request.seed == 9
    assert sample.choice.why == "total 0.2, the highest of 3, 1 out of bounds"
    outside = sample.choice.candidates[0]
    assert (outside.is_violated, outside.total, dict(outside.parts)) == (True, None, {"a": 0.9})


def test_where_all_are_out_of_bounds_the_least_bad_is_kept():
    (sample,) = chosen([Request("a", 7)], drawing({7: 0.1, 8: 0.3, 9: 0.2}, b=0.0), BOUNDED)
    assert sample.request.seed == 8
    assert sample.choice.why == "all 3 are out of bounds, this one is the least bad"


def test_one_candidate_is_the_picture_itself():
    (sample,) = chosen([Request("a", 7)], drawing({7: 0.5}), num=1)
    assert sample.request == sample.choice.asked == Request("a", 7)


def test_a_choice_comes_as_soon_as_its_candidates_are_there():
    items = search.best_of([Request("a", 1), Request("a", 3)], drawing({1: 0.1, 2: 0.2, 3: 0.3}), spec=SPEC, num=2)
    assert isinstance(next(items), Progress)
    assert isinstance(next(items), Progress)
    assert next(items).request.seed == 2  # before seed 4, which this draw does not have
    with pytest.raises(KeyError):
        list(items)
