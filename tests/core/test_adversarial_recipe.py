"""What a recipe may say of whom a flow learns against."""

import pytest
from pydantic import ValidationError

from realgen.core.adversarial_recipe import LatentOpponentSpec, PictureOpponentSpec


def test_nothing_need_be_said():
    assert PictureOpponentSpec().count is None
    assert LatentOpponentSpec().learning_rate > PictureOpponentSpec().learning_rate


@pytest.mark.parametrize("levels", [(0.0, 0.9), (0.5, 0.5)])
def test_levels_that_are_a_range(levels):
    assert LatentOpponentSpec(levels=levels).levels == levels


@pytest.mark.parametrize("levels", [(0.8, 0.1), (-0.1, 0.5), (0.1, 1.0)])
def test_levels_that_are_none(levels):
    with pytest.raises(ValidationError, match="levels go up from 0 to below 1"):
        LatentOpponentSpec(levels=levels)


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        (PictureOpponentSpec, {"count": 0}),
        (PictureOpponentSpec, {"lattice_weight": -1}),
        (LatentOpponentSpec, {"weight": 0}),
        (LatentOpponentSpec, {"blocks": ()}),
        (LatentOpponentSpec, {"lattice_weight": 1}),
    ],
)
def test_what_makes_no_sense_is_refused(spec, wrong):
    with pytest.raises(ValidationError):
        spec(**wrong)
