"""What a flow answers with: to single steps and with whole drawings, and how far that is from before."""

import pytest
import torch

from realgen.formulas.flow import interpolate, trajectory
from realgen.train.answers import FinishedAnswers, Flows, StepAnswers, WholeAnswers, low
from realgen.train.half_drawn import chance
from train.test_adversarial import SIZE, backbone_of, encoder_of, moved, trainer_of, trajectories_of, weights_of


def flows_of(folder):
    learning, before = backbone_of(folder, trains=True), backbone_of(folder, trains=False)
    return Flows(learning, before, encoder_of(before), SIZE)


def steps_of(folder, steps=(3, 4)):
    flows = flows_of(folder)
    trajectories = trajectories_of(flows.learning, flows.encode, steps=steps)
    return StepAnswers(flows, trajectories=trajectories, lateness=2.0)


def texts_of(number, count):
    return [("a rose", "a cat")[(number + place) % 2] for place in range(count)]


def wholes(unrolled=2, steps=4, kept=0):
    counts = {"batch": 2, "steps": steps, "unrolled": unrolled, "kept": kept}
    knobs = {"texts": texts_of, "guidance": (1.0, 4.0), "seed": 0, **counts}
    return lambda flows: WholeAnswers(flows, **knobs)


def wholes_of(folder, **options):
    return wholes(**options)(flows_of(folder))


def photographs_of(number, count):
    generator = torch.Generator().manual_seed(1000 + number)
    return torch.randn(count, 4, 16, generator=generator), texts_of(number, count)


def finished(begun=(2,), steps=4):
    knobs = {"batch": 4, "steps": steps, "begun": begun, "guidance": (1.0, 4.0), "seed": 0}
    return lambda flows: FinishedAnswers(flows, photographs=photographs_of, **knobs)


def shifted(flow, by=0.05):
    with torch.no_grad():
        flow.module.proj_out.bias += by


def test_the_answer_to_a_step_is_the_end_of_a_straight_line(random_flux):
    answers = steps_of(random_flux)
    taken, answered = answers.trajectories.at(1), answers.at(1)
    with torch.no_grad():
        condition = answers.flows.encode(taken.texts)
        v = answers.flows.learning.velocity(taken.x, taken.sigma, condition, guidance=taken.guidance, size=SIZE)
    torch.testing.assert_close(answered.latents, taken.x - taken.sigma.view(-1, 1, 1) * v, atol=1e-5, rtol=1e-5)
    assert torch.equal(answered.sigma, taken.sigma)
    assert torch.equal(answered.weights, 1 - taken.sigma**2)


def test_how_far_an_answer_to_a_step_is_from_before(random_flux):
    answers = steps_of(random_flux)
    taken = answers.trajectories.at(0)
    assert answers.at(0).away().item() == pytest.approx(0, abs=1e-9)
    shifted(answers.flows.learning)
    distance = (0.05 * taken.sigma).square()
    wanted = distance.mean() + (taken.sigma**4 * distance).mean()
    assert answers.at(0).away().item() == pytest.approx(wanted.item(), rel=1e-3)


def test_a_period_learns_from_each_state_once(random_flux):
    answers = steps_of(random_flux, steps=(4,))
    taken = [answers.trajectories.at(index) for index in range(3)]
    states = torch.cat([one.x for one in taken]).flatten(1)
    assert torch.cdist(states, states).add(torch.eye(12) * 9).min() > 1e-3
    assert sorted(taken[0].sigma.tolist() + taken[1].sigma.tolist() + taken[2].sigma.tolist()) == pytest.approx(
        sorted(answers.flows.learning.sigmas(4, SIZE)[:-1].tolist() * 3)
    )
    assert not torch.equal(answers.trajectories.at(3).x, taken[0].x)


def test_a_whole_drawing_is_what_the_flow_draws(random_flux):
    """Whatever it learns through: the picture is the end of all steps."""
    drawn = [wholes_of(random_flux, unrolled=unrolled).at(3) for unrolled in (1, 4)]
    torch.testing.assert_close(drawn[0].latents, drawn[1].latents)
    answers = wholes_of(random_flux)
    flows, generator = answers.flows, chance(0, 0, 3)
    noise = torch.randn(drawn[0].latents.shape, generator=generator)
    guidance, condition = 1 + 3 * torch.rand(2, generator=generator), flows.encode(texts_of(3, 2))
    sigmas = flows.learning.sigmas(4, SIZE)
    with torch.no_grad():
        *_, last = trajectory(
            lambda x, sigma: flows.learning.velocity(x, sigma, condition, guidance=guidance, size=SIZE), noise, sigmas
        )
    torch.testing.assert_close(drawn[0].latents, last.x)
    assert not drawn[0].sigma.any()
    assert torch.equal(drawn[0].weights, torch.ones(2))
    assert not torch.equal(answers.at(4).latents, answers.at(3).latents)
    assert torch.equal(answers.at(3).latents, answers.at(3).latents)


def test_gradients_go_through_the_last_steps_alone(random_flux):
    answers = wholes_of(random_flux, unrolled=2)
    seen, velocity = [], answers.flows.learning.velocity

    def watched(x, sigma, condition, **given):
        v = velocity(x, sigma, condition, **given)
        seen.append(v.requires_grad)
        return v

    answers.flows.learning.velocity = watched
    assert answers.at(0).latents.requires_grad
    assert seen == [False, False, True, True]
    with torch.no_grad():
        assert not answers.at(0).latents.requires_grad


def test_how_far_a_whole_drawing_is_from_before(random_flux):
    """Of one of its steps: where it leads at once, a level times the change of the velocity."""
    answers = wholes_of(random_flux, unrolled=2)
    assert answers.at(0).away().item() == pytest.approx(0, abs=1e-9)
    shifted(answers.flows.learning)
    levels = answers.flows.learning.sigmas(4, SIZE)[2:4]
    far = answers.at(0).away().item()
    assert any(far == pytest.approx((0.05 * level.item()) ** 2, rel=1e-3) for level in levels)


def test_the_last_steps_may_be_those_of_the_flow_before(random_flux):
    answers = wholes_of(random_flux, unrolled=3, kept=2)
    flows, generator, taken = answers.flows, chance(0, 0, 3), []
    shifted(flows.learning)
    drawn = answers.at(3).latents
    noise = torch.randn(drawn.shape, generator=generator)
    guidance, condition = 1 + 3 * torch.rand(2, generator=generator), flows.encode(texts_of(3, 2))

    def velocity(x, sigma):
        taken.append(flows.learning if len(taken) < 2 else flows.before)
        return taken[-1].velocity(x, sigma, condition, guidance=guidance, size=SIZE)

    with torch.no_grad():
        *_, last = trajectory(velocity, noise, flows.learning.sigmas(4, SIZE))
    torch.testing.assert_close(drawn.detach(), last.x)
    drawn.sum().backward()
    assert flows.learning.module.proj_out.bias.grad.any()
    assert all(one.grad is None for one in flows.before.module.parameters())


def test_what_is_kept_is_compared_in_every_detail(random_flux):
    """One learned step, of level 0.05 times its own, and a kept one: ten times the square of 0.05."""
    answers = wholes_of(random_flux, unrolled=3, kept=2)
    assert answers.at(0).away().item() == pytest.approx(0, abs=1e-9)
    shifted(answers.flows.learning)
    level = answers.flows.learning.sigmas(4, SIZE)[1].item()
    assert answers.at(0).away().item() == pytest.approx(0.05**2 * (level**2 + 10), rel=1e-3)


@pytest.mark.parametrize(("answers", "batch"), [(wholes(), 2), (finished(), 4)])
def test_drawings_teach_and_resume_exactly(random_flux, answers, batch):
    whole, cut, fresh = (trainer_of(random_flux, answers=answers, batch=batch) for _ in range(3))
    before = weights_of(whole.module)
    for index in range(3):
        metrics = whole.step(index)
        if index < 2:
            cut.step(index)
    assert {"pictures_adversarial", "latents_adversarial", "anchor", "grad_norm"} <= metrics.keys()
    assert moved(whole.module, before)
    fresh.load_state_dict(cut.state_dict())
    fresh.step(2)
    assert not moved(fresh.module, weights_of(whole.module))
    for name, opponent in fresh.opponents.items():
        assert not moved(opponent.module, weights_of(whole.opponents[name].module))


def test_what_was_begun_is_finished_by_the_flow_that_learns(random_flux):
    """Half from photographs with noise, half from its own first steps as they stood."""
    answers = finished()(flows_of(random_flux))
    flows, generator = answers.flows, chance(0, 0, 3)
    shifted(flows.learning)
    answered = answers.at(3)
    clean, captions = photographs_of(3, 4)
    noise = torch.randn(answered.latents.shape, generator=generator)
    guidance, sigmas = 1 + 3 * torch.rand(4, generator=generator), flows.learning.sigmas(4, SIZE)

    def drawn(flow, x, part, levels):
        condition, scale = flows.encode(captions[part]), guidance[part]
        *_, last = trajectory(lambda x, sigma: flow.velocity(x, sigma, condition, guidance=scale, size=SIZE), x, levels)
        return last.x

    with torch.no_grad():
        own = drawn(flows.before, noise[2:], slice(2, 4), sigmas[:3])
        x = torch.cat([interpolate(clean[:2], noise[:2], sigmas[2].expand(2)), own])
        torch.testing.assert_close(answered.latents, drawn(flows.learning, x, slice(0, 4), sigmas[2:]))
    torch.testing.assert_close(answered.photographs, clean[:2])
    assert not answered.sigma.any()
    assert torch.equal(answered.weights, torch.ones(4))


def test_all_steps_that_are_left_teach_the_flow_that_learns(random_flux):
    answers = finished()(flows_of(random_flux))
    seen, velocity = [], answers.flows.learning.velocity

    def watched(x, sigma, condition, **given):
        v = velocity(x, sigma, condition, **given)
        seen.append((len(x), v.requires_grad))
        return v

    answers.flows.learning.velocity = watched
    answers.at(0).latents.sum().backward()
    assert seen == [(4, True), (4, True)]
    assert all(one.grad is None for one in answers.flows.before.module.parameters())


def test_the_steps_before_are_compared_in_every_detail(random_flux):
    answers = finished()(flows_of(random_flux))
    assert answers.at(0).away().item() == pytest.approx(0, abs=1e-9)
    shifted(answers.flows.learning)
    assert answers.at(0).away().item() == pytest.approx(10 * 0.05**2, rel=1e-3)


def test_drawings_are_begun_by_each_of_the_numbers_of_steps(random_flux):
    answers = finished(begun=(1, 3))(flows_of(random_flux))
    counts, velocity = [], answers.flows.learning.velocity

    def watched(*given, **more):
        counts[-1] += 1
        return velocity(*given, **more)

    answers.flows.learning.velocity = watched
    for index in range(8):
        counts.append(0)
        answers.at(index)
    assert set(counts) == {1, 3}


def test_low_is_the_mean_of_four_tokens():
    latents = torch.arange(16.0).view(1, 16, 1)
    assert low(latents).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
