"""The table of scores: means with their intervals, what is left out and counted, JSON and CSV."""

import csv
import io
import json
import math

import pytest

from realgen import score_table
from realgen.core.types import Metric, Score, ScorerInfo
from realgen.score_table import Row, summarise

INFO = ScorerInfo(0, math.inf, is_detector=False, is_held_out=True, licence="MIT", source="here")


def rows_of(*values, name="a"):
    return [Row(f"{index}.png", None, {name: Score(value)}) for index, value in enumerate(values)]


def test_the_mean_and_what_was_left_out():
    rows = [*rows_of(0.2, 0.4, None, 0.6), Row("broken.png", None, reason="it is cut")]
    metric = summarise(rows, ["a"])["a"]
    assert metric.value == pytest.approx(0.4)
    assert (metric.n, metric.unscored) == (3, 1)
    assert 0.2 <= metric.low < 0.4 < metric.high <= 0.6


def test_the_interval_of_many_values_is_that_of_the_normal_distribution():
    """0 and 1 alternating, n = 400: 0.5 -+ 1.96 x 0.5 / 20 = 0.451 to 0.549; a bootstrap finds it within 0.01."""
    metric = summarise(rows_of(*[0.0, 1.0] * 200), ["a"])["a"]
    assert (metric.low, metric.high) == (pytest.approx(0.451, abs=0.01), pytest.approx(0.549, abs=0.01))


def test_from_many_values_on_the_normal_interval_is_taken_and_fits_the_bootstrap(monkeypatch):
    rows = rows_of(*[0.0, 0.1, 0.5, 0.9] * 100)
    by_bootstrap = summarise(rows, ["a"])["a"]
    monkeypatch.setattr(score_table, "LARGE", 400)
    by_formula = summarise(rows, ["a"])["a"]
    deviation = math.sqrt(sum((x - 0.375) ** 2 for x in (0.0, 0.1, 0.5, 0.9)) * 100 / 399)
    assert by_formula.low == pytest.approx(0.375 - 1.96 * deviation / 20)
    assert by_formula.high - by_formula.low == pytest.approx(by_bootstrap.high - by_bootstrap.low, rel=0.1)


def test_the_interval_is_the_same_every_time():
    rows = rows_of(0.1, 0.7, 0.4)
    assert summarise(rows, ["a"]) == summarise(rows, ["a"])


def test_a_single_value_has_no_interval():
    metric = summarise(rows_of(0.3), ["a"])["a"]
    assert (metric.value, metric.n) == (0.3, 1)
    assert math.isnan(metric.low)
    assert math.isnan(metric.high)


def test_no_value_at_all_is_not_0():
    metric = summarise(rows_of(None, None), ["a"])["a"]
    assert math.isnan(metric.value)
    assert (metric.n, metric.unscored) == (0, 2)


def test_json_has_rows_figures_and_null_where_nothing_is_known():
    rows = [Row("1.png", "a cat", {"a": Score(0.3), "b": Score(None, "it broke")}), Row("2.png", None, reason="cut")]
    metrics = summarise(rows, ["a", "b"])
    plain = json.loads(json.dumps(score_table.as_json(rows, metrics, {"a": INFO, "b": INFO}), allow_nan=False))
    assert plain["unreadable"] == 1
    assert plain["images"][0]["scores"] == {
        "a": {"value": 0.3, "reason": ""},
        "b": {"value": None, "reason": "it broke"},
    }
    assert plain["images"][1] == {"file": "2.png", "prompt": None, "scores": {}, "reason": "cut"}
    assert {key: plain["scorers"]["a"][key] for key in ("value", "low", "high", "n", "unscored")} == {
        "value": 0.3,
        "low": None,
        "high": None,
        "n": 1,
        "unscored": 0,
    }
    assert plain["scorers"]["b"]["value"] is None
    assert (plain["scorers"]["a"]["info"]["high"], plain["scorers"]["a"]["info"]["is_held_out"]) == (None, True)


def test_csv_reads_back():
    rows = [
        Row("a, b.png", 'say "hi"\nthere', {"a": Score(0.125), "b": Score(None, "it broke")}),
        Row("2.png", None, reason="cut"),
    ]
    text = score_table.as_csv(rows, ["a", "b"])
    assert list(csv.reader(io.StringIO(text))) == [
        ["file", "prompt", "a", "b", "reason"],
        ["a, b.png", 'say "hi"\nthere', "0.125", "", "b: it broke"],
        ["2.png", "", "", "", "cut"],
    ]


def test_csv_can_be_written_whatever_the_prompt_holds():
    assert "\\udc80" in score_table.as_csv([Row("1.png", "\udc80")], [])


def test_a_metric_is_the_vocabulary_s_own():
    assert isinstance(summarise(rows_of(0.1, 0.2), ["a"])["a"], Metric)
