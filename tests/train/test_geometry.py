import pytest
from hypothesis import given
from hypothesis import strategies as st

from realgen.core.errors import ConfigError
from realgen.train.geometry import Geometry, Row, noise_seed, prompts_of, window_start

sizes = st.integers(1, 4)


@given(prompts=sizes, group=st.integers(2, 6), updates=sizes, micro=sizes, processes=sizes)
def test_every_image_is_drawn_once_by_one_process(prompts, group, updates, micro, processes):
    geometry = Geometry(prompts * updates, group, updates, micro, processes)
    together = prompts * group
    if together % processes or together // processes % micro:
        with pytest.raises(ConfigError) as error:
            geometry.check()
        assert error.value.hint.startswith("nearest")
        return
    geometry.check()
    places = list(range(100, 100 + prompts * updates))
    rows = []
    for update in range(updates):
        of_update = [
            row for rank in range(processes) for batch in geometry.micro_batches(update, rank, places) for row in batch
        ]
        assert len(of_update) == processes * geometry.num_accumulated * micro
        assert {row.prompt for row in of_update} == set(places[update * prompts : (update + 1) * prompts])
        rows += of_update
    assert [row.place for row in rows] == list(range(geometry.num_images))
    assert [(row.prompt, row.member) for row in rows] == [(p, m) for p in places for m in range(group)]


def test_the_published_sizes():
    """24 prompts of 21 on 7 processes of 3, two optimiser steps: 504 images, 12 micro-batches a process and step."""
    geometry = Geometry(24, 21, 2, 3, 7)
    geometry.check()
    assert (geometry.num_images, geometry.num_accumulated) == (504, 12)


@pytest.mark.parametrize(
    ("geometry", "said", "hint"),
    [
        (Geometry(24, 21, 2, 3, 8), "252 images an optimiser step cannot be shared by 8 processes", "7 processes"),
        (Geometry(24, 21, 2, 5, 7), "36 images a process and optimiser step", "machine.batch=4, or group=35"),
        (Geometry(1, 5, 1, 4, 1), "5 images a process and optimiser step", "machine.batch=5, or group=4"),
    ],
)
def test_what_does_not_divide_names_what_would(geometry, said, hint):
    with pytest.raises(ConfigError, match=said) as error:
        geometry.check()
    assert hint in error.value.hint


@given(total=st.integers(1, 20), count=st.integers(1, 20), seed=st.integers(0, 3), rollout=st.integers(0, 50))
def test_a_rollout_has_no_prompt_twice(total, count, seed, rollout):
    if count > total:
        with pytest.raises(ConfigError, match="a rollout draws"):
            prompts_of(rollout, total=total, count=count, seed=seed)
        return
    drawn = prompts_of(rollout, total=total, count=count, seed=seed)
    assert len(set(drawn)) == count
    assert set(drawn) <= set(range(total))
    assert drawn == prompts_of(rollout, total=total, count=count, seed=seed)


def test_an_epoch_goes_through_all_prompts():
    drawn = [place for rollout in range(5) for place in prompts_of(rollout, total=20, count=4, seed=1)]
    assert sorted(drawn) == list(range(20))
    assert drawn != [place for rollout in range(5, 10) for place in prompts_of(rollout, total=20, count=4, seed=1)]


def test_noise_is_a_function_of_run_rollout_prompt_member_and_step():
    keys = [
        (seed, rollout, Row(0, prompt, member), step)
        for seed in range(2)
        for rollout in range(2)
        for prompt in range(2)
        for member in range(2)
        for step in (None, 0, 1)
    ]
    drawn = {noise_seed(*key) for key in keys}
    assert len(drawn) == len(keys)
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert noise_seed(1, 2, Row(0, 3, 4)) == noise_seed(1, 2, Row(9, 3, 4)), "its place does not matter"


def test_windows_slide_or_are_drawn_within_bounds():
    sliding = [window_start(rollout, first=1, last=3, every=2, seed=0) for rollout in range(8)]
    assert sliding == [1, 1, 2, 2, 3, 3, 1, 1]
    drawn = [window_start(rollout, first=1, last=3, every=None, seed=0) for rollout in range(60)]
    assert set(drawn) == {1, 2, 3}
