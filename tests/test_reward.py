"""The reward's arithmetic, by hand and by property: what is unscored is never 0, what is out of bounds is last."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from realgen import reward
from realgen.core.errors import RealGenError
from realgen.core.spec import RewardSpec
from realgen.core.types import Score
from realgen.reward import Unscored, check_unscored, soft_min

shares = st.floats(0, 1)
ensembles = st.lists(shares, min_size=1, max_size=6)
temperatures = st.floats(1e-3, 1e3)


def scored(**values):
    return {name: Score(value, reason="" if value is not None else "it broke") for name, value in values.items()}


def spec_of(**fields):
    return RewardSpec.model_validate(fields)


# ---- the soft minimum ------------------------------------------------------------------------------------


def test_a_soft_minimum_by_hand():
    """-0.1 ln((e^-2 + e^-8) / 2) = 0.2 + 0.1 ln 2 - 0.1 ln(1 + e^-6) = 0.2 + 0.0693147 - 0.0002476."""
    assert soft_min([0.2, 0.8], temperature=0.1) == pytest.approx(0.2690671, abs=1e-7)


def test_detectors_that_agree_keep_their_answer():
    assert soft_min([0.3, 0.3, 0.3], temperature=0.1) == pytest.approx(0.3, abs=1e-15)
    assert soft_min([0.7], temperature=5) == 0.7


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_a_small_temperature_takes_the_least(temperature):
    assert soft_min([0.9, 0.2, 0.5], temperature=temperature) == pytest.approx(0.2, abs=2e-3)


@pytest.mark.parametrize("temperature", [1e4, 1e12, 1e100])
def test_a_large_temperature_takes_the_mean(temperature):
    """The mean of 0.9, 0.2 and 0.4 is 0.5; the plain formula loses it to rounding long before 1e12."""
    assert soft_min([0.9, 0.2, 0.4], temperature=temperature) == pytest.approx(0.5, abs=1e-5)


def test_in_between_disagreement_costs_its_variance():
    """Values 0.4 and 0.6: mean 0.5, variance 0.01, so at T = 1 about 0.5 - 0.005; the next term is of order T^-3."""
    assert soft_min([0.4, 0.6], temperature=1) == pytest.approx(0.495, abs=1e-5)
    errors = [abs(soft_min([0.1, 0.2, 0.9], temperature=t) - (0.4 - 0.38 / 3 / (2 * t))) for t in (4, 8, 16)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_one_unscored_detector_leaves_the_ensemble_unscored():
    assert math.isnan(soft_min([0.5, math.nan], temperature=0.1))
    assert math.isnan(soft_min([math.nan, 0.5], temperature=0.1))


@given(ensembles, temperatures)
def test_it_lies_between_the_least_and_the_mean(values, temperature):
    found = soft_min(values, temperature=temperature)
    assert min(values) - 1e-12 <= found <= math.fsum(values) / len(values) + 1e-12


@given(ensembles, temperatures, st.data())
def test_it_rises_with_every_detector(values, temperature, data):
    place = data.draw(st.integers(0, len(values) - 1))
    raised = [*values]
    raised[place] = data.draw(st.floats(values[place], 1))
    assert soft_min(raised, temperature=temperature) >= soft_min(values, temperature=temperature) - 1e-12


@given(ensembles, temperatures, st.randoms())
def test_the_detectors_order_does_not_matter(values, temperature, random):
    shuffled = [*values]
    random.shuffle(shuffled)
    assert soft_min(shuffled, temperature=temperature) == soft_min(values, temperature=temperature)


@given(ensembles, temperatures)
def test_it_falls_as_the_temperature_falls(values, temperature):
    assert soft_min(values, temperature=temperature / 2) <= soft_min(values, temperature=temperature) + 1e-12


# ---- parts and totals ------------------------------------------------------------------------------------

TWO_PARTS = spec_of(
    weights={"real": 3, "quality": 1},
    ensembles={"real": {"scorers": ["semantic", "feature"], "temperature": 0.1}},
)


def test_an_ensemble_is_one_part_and_totals_are_weighted_means():
    """(3 x 0.2690671 + 1 x 0.5) / 4 = 0.3268003."""
    found = reward.parts([scored(semantic=0.2, feature=0.8, quality=0.5)], TWO_PARTS)
    assert set(found.values) == {"real", "quality"}
    assert found.values["real"] == [pytest.approx(0.2690671, abs=1e-7)]
    assert found.values["quality"] == [0.5]
    assert reward.totals(found, TWO_PARTS.weights) == [pytest.approx(0.3268003, abs=1e-7)]


def test_the_size_of_the_weights_does_not_matter():
    images = [scored(a=0.1, b=0.9), scored(a=0.4, b=0.3)]
    small, large = spec_of(weights={"a": 0.1, "b": 0.3}), spec_of(weights={"a": 10, "b": 30})
    totals = [reward.totals(reward.parts(images, spec), spec.weights) for spec in (small, large)]
    assert totals[0] == pytest.approx(totals[1])
    assert totals[1] == pytest.approx([0.7, 0.325])


@pytest.mark.parametrize("missing", ["semantic", "feature", "quality"])
def test_a_scorer_that_fails_leaves_the_image_unscored_and_never_0(missing):
    values = {"semantic": 0.2, "feature": 0.8, "quality": 0.5, missing: None}
    found = reward.parts([scored(**values), scored(semantic=0.1, feature=0.1, quality=0.1)], TWO_PARTS)
    part = "quality" if missing == "quality" else "real"
    assert math.isnan(found.values[part][0])
    assert found.reasons == [f"{missing}: it broke", ""]
    totals = reward.totals(found, TWO_PARTS.weights)
    assert math.isnan(totals[0])
    assert totals[1] == pytest.approx(0.1)


def test_a_part_of_weight_0_is_left_out_even_where_it_is_unscored():
    spec = spec_of(weights={"a": 1, "b": 0})
    found = reward.parts([scored(a=0.4, b=None)], spec)
    assert dict(found.values) == {"a": [0.4]}
    assert found.reasons == [""]
    assert reward.totals(found, spec.weights) == [0.4]


def test_a_scorer_that_the_reward_does_not_read_does_not_matter():
    found = reward.parts([scored(a=0.4, held_out=None)], spec_of(weights={"a": 1}))
    assert (dict(found.values), found.reasons) == ({"a": [0.4]}, [""])


@pytest.mark.parametrize(
    ("value", "wanted"), [(0.5, 0.0), (0.9, math.log(9)), (0.0, -math.log(1e6 - 1)), (1.0, math.log(1e6 - 1))]
)
def test_log_odds_of_a_detector(value, wanted):
    spec = RewardSpec(weights={"semantic": 1, "text": 1}, log_odds=("semantic",))
    found = reward.parts([{"semantic": Score(value), "text": Score(0.25)}], spec)
    assert found.values["semantic"] == pytest.approx([wanted])
    assert found.values["text"] == [0.25]


def test_log_odds_of_what_was_not_scored_are_unscored():
    assert math.isnan(reward.log_odds(math.nan))


def test_no_images_have_no_parts():
    found = reward.parts([], TWO_PARTS)
    assert dict(found.values) == {"real": [], "quality": []}
    assert reward.totals(found, TWO_PARTS.weights) == reward.order(found, TWO_PARTS.weights) == []


# ---- constraints -----------------------------------------------------------------------------------------

BOUNDED = spec_of(weights={"a": 1}, constraints={"sharp": {"low": 0.2, "high": 0.9}})


@pytest.mark.parametrize(("sharp", "violated"), [(0.1, True), (0.2, False), (0.5, False), (0.9, False), (0.91, True)])
def test_a_bound_holds_its_own_value(sharp, violated):
    assert reward.parts([scored(a=0.5, sharp=sharp)], BOUNDED).violated == [violated]


def test_an_image_out_of_bounds_is_below_every_other_and_keeps_its_parts():
    found = reward.parts([scored(a=1.0, sharp=0.0), scored(a=0.0, sharp=0.5), scored(a=-5.0, sharp=0.5)], BOUNDED)
    assert found.values["a"] == [1.0, 0.0, -5.0]
    assert reward.totals(found, BOUNDED.weights) == [-math.inf, 0.0, -5.0]
    assert reward.order(found, BOUNDED.weights) == [1, 2, 0]


def test_a_bound_whose_score_is_missing_cannot_be_judged():
    found = reward.parts([scored(a=0.5, sharp=None)], BOUNDED)
    assert (found.violated, found.reasons) == ([False], ["sharp: it broke"])
    assert math.isnan(reward.totals(found, BOUNDED.weights)[0])


def test_a_known_violation_outweighs_a_missing_part():
    found = reward.parts([scored(a=None, sharp=0.0)], BOUNDED)
    assert reward.totals(found, BOUNDED.weights) == [-math.inf]


def test_the_order_is_scored_then_unscored_then_out_of_bounds_the_least_bad_first():
    images = [
        scored(a=0.2, sharp=0.0),
        scored(a=None, sharp=0.5),
        scored(a=0.3, sharp=0.5),
        scored(a=0.9, sharp=1.0),
        scored(a=0.3, sharp=0.5),
        scored(a=0.7, sharp=0.5),
        scored(a=None, sharp=1.0),
    ]
    assert reward.order(reward.parts(images, BOUNDED), BOUNDED.weights) == [5, 2, 4, 1, 3, 0, 6]


images_of = st.lists(st.tuples(shares, shares, st.none() | shares), min_size=1, max_size=6)


@given(images_of, st.randoms())
def test_parts_and_totals_follow_the_images(rows, random):
    spec = spec_of(
        weights={"both": 1, "c": 2}, ensembles={"both": {"scorers": ["a", "b"]}}, constraints={"a": {"low": 0.5}}
    )
    images = [scored(a=a, b=b, c=c) for a, b, c in rows]
    places = list(range(len(rows)))
    random.shuffle(places)
    plain, shuffled = (reward.parts(x, spec) for x in (images, [images[place] for place in places]))
    for straight, moved in (
        *((plain.values[name], shuffled.values[name]) for name in plain.values),
        (plain.violated, shuffled.violated),
        (plain.reasons, shuffled.reasons),
        (reward.totals(plain, spec.weights), reward.totals(shuffled, spec.weights)),
    ):
        assert repr([straight[place] for place in places]) == repr(moved)  # NaN is where NaN was


@given(images_of)
def test_the_best_has_the_greatest_total(rows):
    spec = spec_of(weights={"a": 1, "c": 1}, constraints={"b": {"low": 0.5}})
    found = reward.parts([scored(a=a, b=b, c=c) for a, b, c in rows], spec)
    totals, order = reward.totals(found, spec.weights), reward.order(found, spec.weights)
    known = [total for total in totals if math.isfinite(total)]
    assume(known)
    assert totals[order[0]] == max(known)
    assert sorted(order) == list(range(len(rows)))


# ---- when too many are unscored --------------------------------------------------------------------------


def test_a_step_s_unscored_are_counted_with_the_first_reason():
    found = reward.parts([scored(a=0.1), scored(a=None), scored(a=None)], spec_of(weights={"a": 1}))
    assert reward.unscored(found) == Unscored(2, 3, "a: it broke")
    assert reward.unscored(reward.parts([scored(a=0.1)], spec_of(weights={"a": 1}))) == Unscored(0, 1)


GOOD, ONE = Unscored(0, 10), Unscored(1, 10, "semantic: it broke")


@pytest.mark.parametrize(
    "history", [[], [GOOD], [ONE], [ONE, ONE], [ONE, ONE, GOOD], [ONE, GOOD, ONE, ONE], [Unscored(0, 0)]]
)
def test_a_few_unscored_images_are_borne(history):
    check_unscored(history, max_unscored=0.1)


def test_too_many_of_a_step_stop_the_run():
    with pytest.raises(RealGenError, match=r"2 of a step's 10 images went unscored \(semantic: it broke\)") as caught:
        check_unscored([GOOD, Unscored(2, 10, "semantic: it broke")], max_unscored=0.1)
    assert "max_unscored=0.1" in caught.value.hint


def test_an_old_bad_step_is_past():
    check_unscored([Unscored(9, 10, "x"), GOOD], max_unscored=0.1)


def test_the_share_is_compared_exactly():
    """29 of 100 is not more than 0.29, though 0.29 x 100 is 28.999999999999996."""
    check_unscored([Unscored(29, 100, "x")], max_unscored=0.29)
    with pytest.raises(RealGenError):
        check_unscored([Unscored(30, 100, "x")], max_unscored=0.29)


@pytest.mark.parametrize("max_unscored", [0.1, 1.0])
def test_three_steps_in_a_row_stop_the_run(max_unscored):
    with pytest.raises(RealGenError, match="3 steps in a row left images unscored"):
        check_unscored([GOOD, ONE, ONE, ONE], max_unscored=max_unscored)


def test_none_may_be_allowed():
    with pytest.raises(RealGenError, match="1 of a step's 10"):
        check_unscored([ONE], max_unscored=0)
