"""Whom a flow learns against: both losses by hand, what each looks at, and that they learn."""

import pytest
import torch
from torch.nn import functional as F

from realgen.train.feature_discriminator import level_waves
from train.test_adversarial import TOKEN, backbone_of, moved, opponents_of, weights_of

LEVELS = torch.tensor([0.2, 0.4, 0.6, 0.8])


def chance(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def condition(random_flux):
    return backbone_of(random_flux, trains=False).encode(["a rose", "a cat", "a rose in the rain", "a cat"])


def latents_of(seed, scale=1.0):
    return torch.randn(4, 4, 16, generator=chance(seed)) * scale


def seen_of(opponent, condition, *, real=1, fake=2, scale=1.0):
    return [
        opponent.see(latents, condition, LEVELS, chance(seed))
        for seed, latents in ((3, latents_of(real)), (4, latents_of(fake, scale)))
    ]


@pytest.mark.parametrize("name", ["pictures", "latents"])
def test_the_losses_are_what_the_docstring_says(random_flux, condition, name):
    opponent = opponents_of(random_flux, weight=0.5)[name]
    opponent.module.eval()
    real, fake = seen_of(opponent, condition)
    groups = opponent.judge(real.beside(fake), chance())
    count = len(real.asked)
    hinge = [F.relu(1 - one[:count]).mean() + F.relu(1 + one[count:]).mean() for one in groups]
    assert opponent.learn(real, fake, 0.0, chance())["discriminator"] == pytest.approx(sum(hinge).item() / len(groups))
    weights = 1 - LEVELS**2
    wanted = [-(one * weights[:count, None]).mean() for one in opponent.judge(fake, chance(5))]
    loss, parts = opponent.asks(fake, weights, chance(5))
    assert parts["adversarial"].item() == pytest.approx(sum(wanted).item() / len(groups), abs=1e-6)
    assert loss.item() == pytest.approx(0.5 * sum(wanted).item() / len(groups), abs=1e-6)


def test_the_losses_of_log_odds_are_what_the_docstring_says(random_flux, condition):
    opponent = opponents_of(random_flux, weight=0.5, older=0)["enlarged"]
    real, fake = seen_of(opponent, condition)
    with torch.no_grad():
        groups = [one.sigmoid() for one in opponent.judge(real.beside(fake), chance())]
    losses = []
    for one in groups:
        on_real, on_fake = one[:4], one[4:]
        losses += [-(0.95 * on_real.log() + 0.05 * (1 - on_real).log()).mean()]
        losses += [-(0.05 * on_fake.log() + 0.95 * (1 - on_fake).log()).mean()]
    said = opponent.learn(real, fake, 0.0, chance())["discriminator"]
    assert said == pytest.approx(sum(losses).item() / 4, rel=1e-4)
    weights = 1 - LEVELS**2
    wanted = [-(weights[:, None] * one.sigmoid().log()).mean() for one in opponent.judge(fake, chance(5))]
    loss, _ = opponent.asks(fake, weights, chance(5))
    assert loss.item() == pytest.approx(0.5 * sum(wanted).item() / 4, rel=1e-4)


@pytest.mark.parametrize("name", ["pictures", "latents", "enlarged"])
def test_an_opponent_learns_to_tell_fainter_latents(random_flux, condition, name):
    opponent = opponents_of(random_flux, learning_rate=1e-2, updates=5)[name]
    said = [
        opponent.learn(*seen_of(opponent, condition, scale=0.3), 1.0, chance(i))["discriminator"] for i in range(12)
    ]
    assert said[-1] < said[0] - 0.1


@pytest.mark.parametrize("name", ["pictures", "latents", "enlarged"])
def test_gradients_reach_the_latents(random_flux, condition, name):
    opponent = opponents_of(random_flux)[name]
    latents = latents_of(1).requires_grad_()
    seen = opponent.see(latents, condition, LEVELS, chance())
    opponent.asks(seen, torch.ones(4), chance())[0].backward()
    looked_at = 3 if name == "pictures" else 4
    assert [bool(one.abs().max() > 0) for one in latents.grad] == [place < looked_at for place in range(4)]


@pytest.mark.parametrize("name", ["pictures", "latents", "enlarged"])
def test_a_share_of_nothing_changes_nothing(random_flux, condition, name):
    opponent = opponents_of(random_flux, updates=2)[name]
    before = weights_of(opponent.module)
    opponent.learn(*seen_of(opponent, condition), 0.0, chance())
    assert not moved(opponent.module, before)
    opponent.learn(*seen_of(opponent, condition), 1.0, chance())
    assert moved(opponent.module, before)


def test_each_update_sees_the_same_pictures_another_way(random_flux, condition):
    opponent = opponents_of(random_flux, updates=3)["pictures"]
    looked = []
    opponent.module.register_forward_pre_hook(lambda module, given: looked.append(given))
    opponent.learn(*seen_of(opponent, condition), 1.0, chance())
    assert [pixels.shape for pixels, _ in looked] == [(6, 3, 32, 32)] * 3
    assert not torch.equal(looked[0][0], looked[1][0])
    assert not torch.equal(looked[1][0], looked[2][0])
    assert torch.equal(looked[0][1], looked[2][1])


def test_latents_are_looked_at_under_noise_of_the_levels(random_flux, condition):
    """Of latents that are all 0 only the noise is left, as strong as its level; each level is said."""
    opponent = opponents_of(random_flux)["latents"]
    given = []
    opponent.features = lambda noised, level, condition: given.append((noised, level, condition)) or []
    opponent.module = lambda maps, asked: given.append(asked) or ()
    seen = opponent.see(torch.zeros(4, 256, 64), condition, LEVELS, chance())
    opponent.judge(seen, chance())
    (noised, level, read), asked = given
    assert level.min() >= 0.1
    assert level.max() <= 0.8
    torch.testing.assert_close(noised.std((1, 2)), level, atol=0.02, rtol=0)
    assert type(read) is type(condition)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read, condition, strict=True))
    assert asked.shape == (4, opponent.read(condition).shape[1] + 16)
    torch.testing.assert_close(asked[:, -8:], level_waves(level))


def test_low_levels_come_more_often_where_fine_things_count(random_flux, condition):
    means = []
    for finer in (1.0, 3.0):
        opponent = opponents_of(random_flux)["latents"]
        opponent.finer, given = finer, []
        opponent.features = lambda noised, level, condition, given=given: given.append(level) or []
        opponent.module = lambda maps, asked: ()
        for seed in range(64):
            opponent.judge(opponent.see(latents_of(1), condition, LEVELS, chance()), chance(seed))
        means.append(torch.cat(given).mean().item())
    assert means == pytest.approx([0.1 + 0.7 / 2, 0.1 + 0.7 / 4], abs=0.04)


@pytest.mark.parametrize("name", ["latents", "enlarged"])
def test_older_answers_are_learned_from_and_forgotten(random_flux, condition, name):
    opponent = opponents_of(random_flux, older=3)[name]
    opponent.MEMORY, looked = 6, []
    judge = opponent.judge
    opponent.judge = lambda seen, generator: looked.append(seen) or judge(seen, generator)
    drawn = [seen_of(opponent, condition, fake=10 + place) for place in range(3)]
    for place, (real, fake) in enumerate(drawn):
        opponent.learn(real, fake, 1.0, chance(place))
    assert [len(one.asked) for one in looked] == [8, 11, 11]
    former = {tuple(one.flatten().tolist()) for _, fake in drawn[:2] for one in fake.shown[0]}
    assert all(tuple(one.flatten().tolist()) in former for one in looked[2].shown[0][8:])
    assert len(opponent.memory.asked) == 6
    assert torch.equal(opponent.memory.shown[0][-4:], drawn[2][1].shown[0])
    assert not any(one.requires_grad for one in opponent.memory.shown)


def test_nothing_older_is_kept_where_nobody_asks(random_flux, condition):
    opponent = opponents_of(random_flux, older=0)["latents"]
    opponent.learn(*seen_of(opponent, condition), 1.0, chance())
    assert opponent.memory is None


def test_a_lattice_is_asked_against_where_it_weighs(random_flux, condition):
    side = 8 * TOKEN
    for weight, wanted in ((0.0, {"adversarial"}), (2.0, {"adversarial", "lattice"})):
        opponent = opponents_of(random_flux, side, lattice_weight=weight)["pictures"]
        seen = opponent.see(torch.randn(4, 64, 16, generator=chance()), condition, LEVELS, chance())
        loss, parts = opponent.asks(seen, torch.ones(4), chance())
        assert parts.keys() == wanted
        woven = parts.get("lattice", torch.zeros(())).relu()
        torch.testing.assert_close(loss, parts["adversarial"] + weight * woven)
