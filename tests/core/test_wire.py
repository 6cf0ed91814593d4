import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from realgen.core import wire
from realgen.core.types import Score, ScorerInfo

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
SCORE = st.builds(Score, st.none() | NUMBER, TEXT)
INFO = st.builds(ScorerInfo, NUMBER, NUMBER, st.booleans(), st.booleans(), TEXT, TEXT, TEXT)


@st.composite
def responses(draw):
    names = draw(st.lists(TEXT, min_size=1, max_size=3, unique=True))
    num = draw(st.integers(0, 4))
    scores = {name: tuple(map(wire.WireScore.of, draw(st.lists(SCORE, min_size=num, max_size=num)))) for name in names}
    return wire.ScoreResponse(scores=scores, models={name: draw(TEXT) for name in names})


def round_trip(record):
    return type(record).model_validate_json(record.model_dump_json())


@given(st.lists(TEXT, min_size=1, unique=True), st.lists(TEXT, min_size=1))
def test_a_request_arrives_as_it_was_sent(scorers, prompts):
    request = wire.ScoreRequest(scorers=tuple(scorers), prompts=tuple(prompts))
    assert round_trip(request) == request


@given(responses())
def test_a_response_arrives_as_it_was_sent(response):
    assert round_trip(response) == response


@given(SCORE)
def test_a_score_keeps_every_bit_of_its_value(score):
    assert round_trip(wire.WireScore.of(score)).score == score


@given(INFO, TEXT)
def test_a_scorer_is_described_as_it_is(info, model):
    served = round_trip(wire.ServedScorer.of(info, model=model))
    assert served.info == info
    assert served.model == model


@given(st.dictionaries(TEXT, st.builds(wire.ServedScorer.of, INFO, model=TEXT), max_size=3), st.integers(1, 99))
def test_what_is_served_arrives_as_it_was_sent(scorers, batch):
    about = wire.ScorersResponse(realgen="1", scorers=scorers, limits=wire.Limits(max_images=batch), batch=batch)
    assert round_trip(about) == about


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_that_json_lacks_travels(value):
    sent = wire.WireScore.of(Score(value))
    assert sent.value is None
    assert "answered" in sent.reason
    with pytest.raises(ValidationError):
        wire.WireScore(value=value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '{"scores": {}}',
        '{"scores": {"a": []}, "models": {"b": ""}}',
        '{"scores": {"a": [], "b": [{"value": 1}]}, "models": {"a": "", "b": ""}}',
        '{"scores": {"a": [{"value": "high"}]}, "models": {"a": ""}}',
        '{"scores": {"a": [{"value": NaN}]}, "models": {"a": ""}}',
        '{"scores": {"a": [{}]}, "models": {"a": ""}}',
        '{"scores": {"a": []}, "models": {"a": ""}, "schema_version": 2}',
        '{"scores": {"a": []}, "models": {"a": ""}, "more": 1}',
    ],
)
def test_nonsense_is_no_response(text):
    with pytest.raises(ValidationError):
        wire.ScoreResponse.model_validate_json(text)


def test_the_version_is_said():
    sent = json.loads(wire.ScoreRequest(scorers=("a",), prompts=("b",)).model_dump_json())
    assert sent == {"schema_version": 1, "scorers": ["a"], "prompts": ["b"]}


@pytest.mark.parametrize(
    "fields",
    [
        {"scorers": (), "prompts": ("a",)},
        {"scorers": ("a",), "prompts": ()},
        {"scorers": ("a", "a"), "prompts": ("a",)},
        {"scorers": ("a",), "prompts": ("x" * (wire.MAX_PROMPT + 1),)},
        {"scorers": ("a",), "prompts": ("\ud800",)},
        {"scorers": ("a",), "prompts": (b"a", 3)},
    ],
)
def test_a_request_that_cannot_be_is_refused_where_it_is_made(fields):
    with pytest.raises(ValidationError):
        wire.ScoreRequest(**fields)


@pytest.mark.parametrize("field", list(wire.Limits.model_fields))
def test_limits_let_something_through(field):
    with pytest.raises(ValidationError):
        wire.Limits(**{field: 0})
