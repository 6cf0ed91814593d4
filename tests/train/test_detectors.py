"""A detector learns without rewarding degradations, resumes exactly, and leaves calibrated."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import nn
from torch.nn import functional as F

from realgen.formulas import stats
from realgen.train import detectors
from realgen.train.degradations import KINDS
from realgen.train.detectors import DetectorTrainer, Fakes, fit_calibration, to_pixels
from realgen.train.networks import Network

SIDE = 32
KNOBS = {"steps": 40, "batch": 8, "learning_rate": 3e-2, "ema_decay": 0.8, "seed": 0}


class Energies(nn.Module):
    """Log-odds of the logarithms of what a few filters let pass."""

    def __init__(self):
        super().__init__()
        self.filters = nn.Conv2d(3, 8, 3, bias=False)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 1)

    def forward(self, pixels):
        passed = self.filters(pixels - pixels.mean((2, 3), keepdim=True)).float()
        energies = passed.square().mean((2, 3)).add(1e-5).log() + 5
        return self.head(self.dropout(energies))[:, 0]

    def save(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.state_dict(), folder / "weights.pt")


def network_of(seed=0):
    torch.manual_seed(seed)
    module = Energies()
    return Network(module, module, module.head, module.save)


def photographs(count, seed):
    """Texture of every frequency."""
    levels = np.random.default_rng(seed).normal(128, 45, (count, SIDE, SIDE, 3))
    return levels.clip(0, 255).astype(np.uint8)


def fakes_of(pixels, *, radius=1.0, family="smooth"):
    """The same pictures, smoothed, in another order."""
    partner = np.random.default_rng(1).permutation(len(pixels))
    smooth = [np.asarray(Image.fromarray(pixels[place]).filter(ImageFilter.GaussianBlur(radius))) for place in partner]
    return Fakes(family, np.stack(smooth), partner)


def trainer_of(network=None, **knobs):
    train, held_out = photographs(48, seed=0), photographs(32, seed=1)
    families = [fakes_of(train), fakes_of(train, radius=1.5, family="smoother")]
    apart = [fakes_of(held_out), fakes_of(held_out, radius=1.5, family="smoother")]
    return DetectorTrainer(network or network_of(), train, families, (held_out, apart), **(KNOBS | knobs))


@pytest.fixture(scope="module")
def trained():
    trainer = trainer_of()
    trainer.told = [trainer.step(index) for index in range(KNOBS["steps"])]
    return trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def alike(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- what it learns -------------------------------------------------------------------------------------


def test_it_learns_to_tell_texture_from_smoothed_texture(trained):
    losses = [told["loss"] for told in trained.told]  # of batches more or less degraded: the least tell how far it is
    assert min(losses[-20:]) < 0.5 * min(losses[:4])
    fresh = trainer_of()
    figures = trained.evaluate()
    assert set(figures) == {"auroc_smooth", "auroc_smoother", *(f"gain_{kind}" for kind in KINDS)}
    assert figures["auroc_smooth"] > 0.9
    assert figures["auroc_smoother"] > 0.9
    assert fresh.evaluate() != figures
    assert all(0 <= told["accuracy"] <= 1 for told in trained.told)


def test_degraded_fakes_do_not_gain(trained):
    figures = trained.evaluate()
    assert all(figures[f"gain_{kind}"] < 0.1 for kind in KINDS)


def test_figures_are_the_average_s_and_leave_the_weights(trained):
    before = weights(trained)
    figures = trained.evaluate()
    assert alike(weights(trained), before)
    trained.ema.swap(trained.model)
    on_real, on_fakes = trained.answers(trained.held_out_photographs), trained.answers(trained.held_out_fakes[1].pixels)
    trained.ema.swap(trained.model)
    assert figures["auroc_smoother"] == stats.auroc(on_real, on_fakes)


def test_answers_are_those_of_one_at_a_time(trained):
    pixels = photographs(70, seed=3)  # more than one chunk
    alone = torch.cat([trained.answers(pixels[place : place + 1]) for place in range(70)])
    assert trained.answers(pixels).tolist() == pytest.approx(alone.tolist(), abs=1e-4)
    assert not trained.answers(pixels).requires_grad


class Brightness(nn.Module):
    """Log-odds 4 * mean - 2 + bias: what a step should find is worked out by hand."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 1)
        with torch.no_grad():
            self.head.weight.fill_(4)
            self.head.bias.fill_(-2)

    def forward(self, pixels):
        with torch.autocast("cpu", enabled=False):
            return self.head(pixels.mean((1, 2, 3))[:, None])[:, 0]


def test_the_loss_by_hand():
    """Cross entropies against 0.98 and 0.02, fakes clean and degraded weighing half, and what these gain."""
    module = Brightness()
    trainer = trainer_of(Network(module, module, module.head, lambda folder: None))
    drawn = trainer._draw(5).numpy().reshape(3, -1, SIDE, SIDE, 3)
    real, clean, degraded = drawn.mean((2, 3, 4)) / 255 * 4 - 2

    def entropy(log_odds, wanted):
        chance = 1 / (1 + np.exp(-log_odds))
        return -(wanted * np.log(chance) + (1 - wanted) * np.log(1 - chance)).mean()

    gained = np.maximum(degraded - np.maximum(clean, -4), 0)
    assert gained.max() > 0
    wanted = entropy(real, 0.98) + (entropy(clean, 0.02) + entropy(degraded, 0.02)) / 2 + gained.mean()
    told = trainer.step(5)
    assert told["loss"] == pytest.approx(wanted, rel=1e-4)
    assert told["accuracy"] == pytest.approx(np.mean([*(real > 0), *(clean < 0)]))


def test_who_is_sure_of_a_clean_fake_is_not_paid_for_doubting_the_degraded_one(monkeypatch):
    """Log-odds of -20 for clean fakes and -4 for degraded ones: neither loss has anything left to ask."""
    module = Brightness()
    trainer = trainer_of(Network(module, module, module.head, lambda folder: None))
    answers = torch.cat([torch.full((8,), 4.0), torch.full((8,), -20.0), torch.full((8,), -4.0)]).requires_grad_()
    monkeypatch.setattr(trainer, "log_odds", lambda pixels: answers)
    trainer.step(0)
    assert answers.grad[16:].abs().max() < 0.02 / 8


def test_a_step_holds_a_photograph_its_fake_and_the_fake_degraded(monkeypatch):
    monkeypatch.setattr(detectors, "recolour", lambda pixels, rng: pixels)
    levels = np.arange(0, 240, 24, dtype=np.uint8)
    plain = np.broadcast_to(levels[:, None, None, None], (10, SIDE, SIDE, 3))
    partner = np.random.default_rng(0).permutation(10)
    fakes = [Fakes(name, plain[partner] + shift, partner) for name, shift in (("a", 1), ("b", 2))]
    module = Brightness()
    network = Network(module, module, module.head, lambda folder: None)
    trainer = DetectorTrainer(network, plain, fakes, (plain, fakes), degraded_photographs=0, **KNOBS)
    shifts = set()
    for index in range(6):
        real, clean, degraded = trainer._draw(index).numpy().reshape(3, 8, SIDE, SIDE, 3)
        for photograph, fake, worse in zip(real, clean, degraded, strict=True):
            shifts.add(int(fake[0, 0, 0]) - int(photograph[0, 0, 0]))
            assert abs(worse.mean() - fake.mean()) < 12
    assert shifts == {1, 2}


def test_every_fake_is_as_likely_whatever_its_family():
    plain = np.zeros((10, SIDE, SIDE, 3), np.uint8)
    families = [Fakes("few", plain[:1], np.arange(1)), Fakes("many", plain[:9] + 200, np.arange(9))]
    module = Brightness()
    network = Network(module, module, module.head, lambda folder: None)
    trainer = DetectorTrainer(network, plain, families, (plain, families), **KNOBS)
    many = [fake.mean() > 100 for index in range(60) for fake in trainer._draw(index).numpy()[8:16]]
    assert np.mean(many) == pytest.approx(0.9, abs=0.05)


def test_windows_are_cut_of_photographs_and_fakes_alike(monkeypatch):
    cut = []
    monkeypatch.setattr(
        detectors, "recrop", lambda pixels, rng, least: cut.append((int(pixels.mean()), least)) or pixels
    )
    plain = np.full((10, SIDE, SIDE, 3), 50, np.uint8)
    fakes = [Fakes("a", plain + 100, np.arange(10))]
    module = Brightness()
    network = Network(module, module, module.head, lambda folder: None)
    trainer = DetectorTrainer(network, plain, fakes, (plain, fakes), min_crop=0.7, **KNOBS)
    trainer._draw(0)
    assert sorted(cut) == [(50, 0.7)] * 8 + [(150, 0.7)] * 8
    whole = DetectorTrainer(network, plain, fakes, (plain, fakes), **KNOBS)
    whole._draw(0)
    assert len(cut) == 16


def test_a_share_of_the_degraded_fakes_are_spoilt_photographs(monkeypatch):
    strengths = []
    monkeypatch.setattr(detectors, "random_degradation", lambda x, rng, least=0.1: strengths.append(least) or x)
    plain = np.full((10, SIDE, SIDE, 3), 20, np.uint8)
    fakes = [Fakes("a", plain + 200, np.arange(10))]
    module = Brightness()
    network = Network(module, module, module.head, lambda folder: None)
    trainer = DetectorTrainer(
        network, plain, fakes, (plain, fakes), degraded_photographs=0, spoilt_photographs=0.25, **KNOBS
    )
    degraded = [picture.mean() for index in range(60) for picture in trainer._draw(index).numpy()[16:]]
    are_photographs = [mean < 100 for mean in degraded]
    assert np.mean(are_photographs) == pytest.approx(0.25, abs=0.06)
    assert strengths == [0.5 if one else 0.1 for one in are_photographs]


@pytest.mark.parametrize("share", [0.2, 0.05])
def test_a_share_of_the_photographs_is_degraded(monkeypatch, share):
    degraded = []
    monkeypatch.setattr(detectors, "recolour", lambda pixels, rng: pixels)
    monkeypatch.setattr(detectors, "random_degradation", lambda pixels, rng, **_: degraded.append(0) or pixels)
    trainer = trainer_of(degraded_photographs=share)
    for index in range(60):
        trainer._draw(index)
    assert len(degraded) / (60 * 8) - 1 == pytest.approx(share, abs=0.06 if share > 0.1 else 0.03)


# ---- resume and export ----------------------------------------------------------------------------------


def test_a_step_depends_on_seed_and_index_alone():
    first, again, other = trainer_of(), trainer_of(), trainer_of(seed=1)
    before = torch.random.get_rng_state()
    told = first.step(3)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(7)  # another caller's draw changes nothing, dropout included
    assert again.step(3) == told
    assert alike(weights(first), weights(again))
    assert other.step(3) != told


def test_a_resume_is_exact(tmp_path):
    whole, cut, resumed = trainer_of(), trainer_of(), trainer_of(network_of(seed=9))
    for index in range(6):
        last = whole.step(index)
    for index in range(3):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    torch.rand(1)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        again = resumed.step(index)
    assert again == last
    assert alike(weights(whole), weights(resumed))
    assert alike(whole.ema.shadow, resumed.ema.shadow)


def test_the_export_is_the_average_with_its_head_over_the_temperature(trained, tmp_path):
    before, shadow = weights(trained), {name: value.clone() for name, value in trained.ema.shadow.items()}
    trained.export(tmp_path)
    assert alike(weights(trained), before)
    assert alike(trained.ema.shadow, shadow)

    trained.ema.swap(trained.model)
    on_real = trained.answers(trained.held_out_photographs)
    on_fakes = torch.cat([trained.answers(fakes.pixels) for fakes in trained.held_out_fakes])
    trained.ema.swap(trained.model)
    temperature, bias = fit_calibration(on_real, on_fakes)
    assert abs(temperature - 1) > 0.1
    assert abs(bias) > 0.01
    saved = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert torch.equal(saved["filters.weight"], shadow["filters.weight"])
    assert torch.equal(saved["head.weight"], shadow["head.weight"] / temperature)
    assert torch.equal(saved["head.bias"], shadow["head.bias"] / temperature + bias)

    module = Energies().eval()
    module.load_state_dict(saved)
    with torch.no_grad():
        answers = module(to_pixels(trained.held_out_photographs))
    assert answers.tolist() == pytest.approx((on_real / temperature + bias).tolist(), abs=1e-4)


def test_a_training_goes_on_after_an_export_as_without_one(tmp_path):
    one, other = trainer_of(), trainer_of()
    one.step(0)
    other.step(0)
    one.export(tmp_path)
    one.evaluate()
    assert one.step(1) == other.step(1)
    assert alike(weights(one), weights(other))


# ---- calibration ----------------------------------------------------------------------------------------


def calibrated(count, seed):
    """Log-odds that mean what they say, of as many real as fake."""
    generator = torch.Generator().manual_seed(seed)
    log_odds = 2 * torch.randn(count, generator=generator)
    is_real = torch.rand(count, generator=generator) < log_odds.sigmoid()
    return log_odds[is_real], log_odds[~is_real]


@pytest.mark.parametrize(("temperature", "bias"), [(0.6, 0.0), (1.0, 1.5), (5.0, -0.8)])
def test_a_known_temperature_and_bias_are_found(temperature, bias):
    on_real, on_fakes = (temperature * (part - bias) for part in calibrated(20000, seed=0))
    assert fit_calibration(on_real, on_fakes) == pytest.approx((temperature, bias), rel=0.06, abs=0.06)


def test_they_are_where_the_log_loss_is_least():
    on_real, on_fakes = (3 * part - 2 for part in calibrated(300, seed=1))
    on_fakes = on_fakes[:40]  # a class of few weighs the same

    def loss(temperature, bias):
        real = F.binary_cross_entropy_with_logits(on_real / temperature + bias, torch.ones_like(on_real))
        return real + F.binary_cross_entropy_with_logits(on_fakes / temperature + bias, torch.zeros_like(on_fakes))

    temperature, bias = fit_calibration(on_real, on_fakes)
    least = loss(temperature, bias)
    assert all(least <= loss(temperature * factor, bias) for factor in (0.9, 0.95, 1.05, 1.1))
    assert all(least <= loss(temperature, bias + shift) for shift in (-0.2, -0.1, 0.1, 0.2))


def test_they_stay_within_bounds():
    assert fit_calibration(torch.ones(4), -torch.ones(4)) == pytest.approx((0.5, 0), abs=0.03)
    assert fit_calibration(-torch.ones(4), torch.ones(4))[0] == pytest.approx(20, rel=0.01)


# ---- pictures -------------------------------------------------------------------------------------------


def test_previews_are_eight_of_every_family_photographs_and_degraded_ones(trained):
    images = trained.preview()
    assert len(images) == 8 * 4
    assert {image.size for image in images} == {(SIDE, SIDE)}
    assert np.array_equal(np.asarray(images[0]), trained.held_out_fakes[0].pixels[0])
    assert np.array_equal(np.asarray(images[16]), trained.held_out_photographs[0])
    assert [a.tobytes() for a in images] == [b.tobytes() for b in trained.preview()]


def test_pixels_lie_between_0_and_1():
    pixels = np.zeros((2, 3, 4, 3), np.uint8)
    pixels[1, 2, 3] = (255, 51, 0)
    tensor = to_pixels(list(pixels))
    assert tensor.shape == (2, 3, 3, 4)
    assert tensor[1, :, 2, 3].tolist() == pytest.approx([1, 0.2, 0])
    assert tensor.sum().item() == pytest.approx(1.2)
