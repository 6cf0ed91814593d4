import pytest
import torch

import grpo
from realgen.train.geometry import Row
from realgen.train.world import World
from realgen.wiring import policy as policies


@pytest.fixture(scope="module")
def policy(random_flux):
    recipe = grpo.recipe_of()
    return policies.build_policy(recipe, grpo.load_generator(random_flux, recipe), World())


ROWS = [Row(place, place // 2, place % 2) for place in range(4)]
TEXTS = ["a cat", "a cat", "a dog", "a dog"]


def test_without_a_window_it_draws_as_the_generator_does(random_flux, policy):
    from realgen.formulas.pixels import to_images
    from realgen.train.geometry import noise_seed

    drawn = policy.rollout(ROWS[:2], TEXTS[:2], rollout=3, window=range(0))
    assert drawn.moments == []
    generator = grpo.load_generator(random_flux, grpo.recipe_of())
    seeds = [noise_seed(policy.seed, 3, row) for row in ROWS[:2]]
    wanted = [item for item in generator(TEXTS[:2], seeds=seeds) if hasattr(item, "size")]
    assert to_images(policy.decode(drawn)) == wanted


def test_only_the_window_is_kept_in_float32(policy):
    drawn = policy.rollout(ROWS, TEXTS, rollout=0, window=range(1, 3))
    assert [moment.index for moment in drawn.moments] == [1, 2]
    for moment in drawn.moments:
        assert moment.x.dtype == moment.following.dtype == torch.float32
        assert moment.deviation > 0 > moment.dt
    assert torch.equal(drawn.moments[0].following, drawn.moments[1].x)


def test_an_image_does_not_depend_on_its_micro_batch(policy):
    together = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2))
    alone = [policy.rollout([row], [text], rollout=0, window=range(2)) for row, text in zip(ROWS, TEXTS, strict=True)]
    assert torch.allclose(together.data, torch.cat([one.data for one in alone]), atol=1e-4)


def test_log_density_is_torchs_own(policy):
    drawn = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2))
    for moment in drawn.moments:
        normal = torch.distributions.Normal(moment.mean, moment.deviation)
        assert torch.allclose(moment.log_density, normal.log_prob(moment.following).flatten(1).mean(1), atol=1e-5)


def test_replay_is_the_rollout_before_an_update(policy):
    drawn = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2))
    for moment in drawn.moments:
        now = policy.replay(drawn, moment, with_reference=True)
        assert torch.equal(now.log_density, moment.log_density)
        assert torch.equal(now.mean, moment.mean)
        assert torch.equal(now.reference_v, now.v), "a fresh adapter changes nothing"
        assert now.v.requires_grad
        assert not now.reference_v.requires_grad


def test_members_and_rollouts_have_noise_of_their_own(policy):
    first = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2)).data
    again = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2)).data
    later = policy.rollout(ROWS, TEXTS, rollout=1, window=range(2)).data
    assert torch.equal(first, again)
    assert not torch.isclose(first, later).all(1).all(1).any()
    assert not torch.isclose(first[0], first[1]).all()


def test_a_group_may_begin_from_one_latent(policy, monkeypatch):
    monkeypatch.setattr(policy, "same_latent", True)
    drawn = policy.rollout(ROWS, TEXTS, rollout=0, window=range(2))
    began, ended = drawn.moments[0].x, drawn.data
    assert torch.equal(began[0], began[1])
    assert torch.equal(began[2], began[3])
    assert not torch.isclose(began[0], began[2]).all()
    assert not torch.isclose(ended[0], ended[1]).all()
