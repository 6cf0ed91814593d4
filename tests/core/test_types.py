"""Records that flow between the rooms: frozen, without a dictionary, equal by value, with their defaults."""

import copy
import inspect
import pickle
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass, replace

import pytest
from PIL import Image

from realgen.core import types
from realgen.core.types import (
    Candidate,
    Choice,
    Metric,
    Origin,
    Progress,
    Request,
    Rewrite,
    Sample,
    Score,
    ScorerInfo,
    Verdict,
)

RECORDS = {
    Rewrite: Rewrite("a cat on a sofa"),
    Score: Score(0.5),
    Request: Request("a cat", 7),
    Progress: Progress(1, 4),
    Candidate: Candidate(7, 0.5, {"real": 0.5}),
    Choice: Choice(Request("a cat", 7), (), "the only one"),
    Sample: Sample(Request("a cat", 7), "a cat", Image.new("RGB", (1, 1))),
    Metric: Metric(0.5, 0.4, 0.6, 100),
    ScorerInfo: ScorerInfo(0.0, 1.0, is_detector=True, is_held_out=False, licence="MIT", source="here"),
    Verdict: Verdict("a", "sharper"),
    Origin: Origin(7, "0.1.0", {}),
}
DEFAULTS = {
    Rewrite: {"reason": ""},
    Score: {"reason": ""},
    Request: {"name": "", "size": None},
    Progress: {},
    Candidate: {"is_violated": False, "reason": ""},
    Choice: {},
    Sample: {"note": "", "scores": {}, "choice": None},
    Metric: {"unscored": 0},
    ScorerInfo: {"caution": ""},
    Verdict: {},
    Origin: {"prompt": None, "text": None},
}
KINDS = pytest.mark.parametrize("kind", list(RECORDS), ids=lambda kind: kind.__name__)


def test_every_record_of_the_file_is_looked_at():
    found = {kind for _, kind in inspect.getmembers(types, is_dataclass) if kind.__module__ == types.__name__}
    assert found == set(RECORDS) == set(DEFAULTS)


@KINDS
def test_a_record_cannot_be_changed_or_added_to(kind):
    record = RECORDS[kind]
    name = fields(kind)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(record, name, None)
    with pytest.raises(FrozenInstanceError):
        delattr(record, name)
    with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
        record.extra = 1
    assert not hasattr(record, "__dict__")


@KINDS
def test_defaults_are_these_and_no_others(kind):
    optional = [
        field.name for field in fields(kind) if field.default is not MISSING or field.default_factory is not MISSING
    ]
    assert {name: getattr(RECORDS[kind], name) for name in optional} == DEFAULTS[kind]


@KINDS
def test_records_are_equal_by_value_and_says_what_they_hold(kind):
    record = RECORDS[kind]
    assert copy.copy(record) == record == replace(record)
    assert repr(record).startswith(f"{kind.__name__}({fields(kind)[0].name}=")


@pytest.mark.parametrize("kind", [Rewrite, Score, Request, Progress, Metric, ScorerInfo, Verdict])
def test_plain_records_are_hashable_and_travel_between_processes(kind):
    record = RECORDS[kind]
    assert {record: 1}[replace(record)] == 1
    assert pickle.loads(pickle.dumps(record)) == record


def test_no_opinion_is_not_zero():
    assert Score(None, "too small") != Score(0.0, "too small")
    assert Score(None).value is None


def test_samples_do_not_share_their_scores():
    one, other = (replace(RECORDS[Sample], scores={}) for _ in range(2))
    fresh = [Sample(Request("a", 1), "a", Image.new("RGB", (1, 1))) for _ in range(2)]
    assert fresh[0].scores is not fresh[1].scores
    assert one == other


def test_a_withheld_prompt_is_none_and_an_empty_one_is_not():
    assert Origin(7, "0.1.0", {}).prompt is None
    assert Origin(7, "0.1.0", {}, prompt="") != Origin(7, "0.1.0", {})
