"""Training of the decoder: the encoder stays byte for byte, the adversarial gradient is what the formula says."""

import copy
import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import nn
from torch.nn import functional as F

from realgen.core import config
from realgen.core.errors import ConfigError, DataError, ModelError
from realgen.train.autoencoder import build_autoencoder, open_autoencoder, reconstruction_quality
from realgen.train.decoder import DecoderTrainer, Windows, rise
from realgen.train.discriminator import PatchDiscriminator, decoder_loss
from realgen.train.photographs import Photograph, of_one_size
from realgen.wiring import training

SIZE, FACTOR = 32, 4


def photographs(count=4, size=SIZE, height=None):
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: height or size, :size] / size
    pictures = []
    for i in range(count):
        wave = np.sin(rows * (2 + i) + columns * (5 - i))
        smooth = np.stack([wave * 60 + 128, wave * 40 + 110, columns * 100 + 60], -1)
        pixels = (smooth + rng.normal(0, 20, size=smooth.shape)).clip(0, 255).astype(np.uint8)
        pictures.append(Photograph(f"{i}.png", pixels, None, "", (), ""))
    return pictures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random autoencoder with the scaling of its latents."""
    torch.manual_seed(0)
    model = build_autoencoder(widths=(16, 32, 32), latent_channels=4, groups=4, size=SIZE)
    model.register_to_config(scaling_factor=0.7, shift_factor=0.1)
    path = tmp_path_factory.mktemp("autoencoder")
    model.save_pretrained(path)
    return path


def trainer_of(folder, **options):
    model = open_autoencoder(folder)
    torch.manual_seed(0)
    knobs = {
        "steps": 6,
        "batch": 2,
        "learning_rate": 1e-3,
        "discriminator_learning_rate": 1e-3,
        "adversarial_weight": 0.5,
        "adversarial_warmup": 0,
        "ema_decay": 0.5,
        **options,
    }
    windows = Windows(photographs(), model, crop=16, seed=0)
    return DecoderTrainer(model, PatchDiscriminator(width=8), windows, photographs(2), **knobs)


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def learned(module):
    return {name for name, _ in module.named_parameters()}


def decode(trainer, latents):
    with torch.autocast("cpu", torch.bfloat16):
        return trainer.model.decode(latents).sample.float()


def gradients(trainer):
    return {name: parameter.grad for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}


# ---- the model ------------------------------------------------------------------------------------------


def test_the_decoder_alone_is_open_to_training(folder):
    model = trainer_of(folder).model
    trains = {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {"decoder"}
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())


def test_a_pipeline_s_autoencoder_is_its_vae(random_flux):
    model = open_autoencoder(random_flux)
    assert (model.config["scaling_factor"], model.config["shift_factor"]) == (0.7, 0.1)
    kept = AutoencoderKL.from_pretrained(random_flux / "vae")
    assert torch.equal(model.encoder.conv_in.weight, kept.encoder.conv_in.weight)


def test_half_precision_is_opened_in_full(folder, tmp_path):
    AutoencoderKL.from_pretrained(folder).to(torch.bfloat16).save_pretrained(tmp_path)
    assert open_autoencoder(tmp_path).dtype == torch.float32


def test_a_folder_without_an_autoencoder_is_refused(random_flux, folder, tmp_path):
    with pytest.raises(ModelError, match="cannot open the autoencoder"):
        open_autoencoder(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="not an AutoencoderKL"):
        open_autoencoder(random_flux / "transformer")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot open the autoencoder"):
        open_autoencoder(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot open the autoencoder"):
        open_autoencoder(tmp_path)


# ---- the windows ----------------------------------------------------------------------------------------


class Averages:
    """An autoencoder whose latents are the mean colours of 4x4 pixels; counts the photographs that it reads."""

    config = {"block_out_channels": (1, 1, 1)}

    def __init__(self, bias=0.0):
        self.num_encoded = 0
        self.encoder = nn.Linear(1, 1)
        nn.init.constant_(self.encoder.weight, 1.0)
        nn.init.constant_(self.encoder.bias, bias)

    def encode(self, pixels):
        self.num_encoded += len(pixels)
        posterior = type("Posterior", (), {"mean": F.avg_pool2d(pixels, FACTOR)})
        return type("Output", (), {"latent_dist": posterior})


def test_a_window_s_latents_are_those_of_its_pixels():
    latents, pixels = Windows(photographs(6), Averages(), crop=16, seed=0).draw(0, count=20)
    assert latents.shape == (20, 3, 4, 4)
    assert pixels.shape == (20, 3, 16, 16)
    assert latents.dtype == pixels.dtype == torch.float32
    torch.testing.assert_close(latents, F.avg_pool2d(pixels, FACTOR), rtol=2**-8, atol=0)


def test_windows_depend_on_seed_and_index_alone():
    windows = Windows(photographs(), Averages(), crop=16, seed=3)
    first = windows.draw(9, count=4)
    windows.draw(1, count=2)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(first.pixels, windows.draw(9, count=4).pixels)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first.pixels, windows.draw(10, count=4).pixels)
    assert not torch.equal(first.pixels, Windows(photographs(), Averages(), crop=16, seed=4).draw(9, count=4).pixels)


def test_every_place_of_the_grid_is_drawn():
    """Of 32x24 pixels, a window of 16 has 5 places across and 3 down: all fifteen, and nothing else."""
    coded = np.zeros((24, 32, 3), dtype=np.uint8)
    coded[..., 0], coded[..., 1] = np.arange(32), np.arange(24)[:, None]
    windows = Windows([Photograph("0.png", coded, None, "", (), "")], Averages(), crop=16, seed=0)
    corners = (windows.draw(0, count=300).pixels[:, :2, 0, 0] * 127.5 + 127.5).round().int().tolist()
    assert {tuple(corner) for corner in corners} == {(x, y) for x in range(0, 17, 4) for y in range(0, 9, 4)}


def test_latents_are_kept_for_the_next_start_and_made_anew_for_another_encoder(tmp_path):
    cache, first, same, other = tmp_path / "latents.pt", Averages(), Averages(), Averages(bias=1.0)
    drawn = [
        Windows(photographs(), model, crop=16, seed=0, cache=cache).draw(0, count=2).latents
        for model in (first, same, other)
    ]
    assert [model.num_encoded for model in (first, same, other)] == [4, 0, 4]
    assert torch.equal(drawn[0], drawn[1])


def test_windows_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="crop 18 is not a multiple") as caught:
        Windows(photographs(), Averages(), crop=18, seed=0)
    assert caught.value.hint == "crop=20"
    with pytest.raises(DataError, match="32x32 have no windows of 36"):
        Windows(photographs(), Averages(), crop=36, seed=0)
    with pytest.raises(DataError, match="32x30 have no windows of 16"):
        Windows(photographs(height=30), Averages(), crop=16, seed=0)


def test_given_latents_are_not_encoded():
    model, given = Averages(), torch.randn(4, 4, 8, 8)
    latents, _ = Windows(photographs(), model, crop=16, seed=0, latents=given).draw(0, count=30)
    assert model.num_encoded == 0
    assert {float(value) for value in latents.flatten()} <= {float(value) for value in given.flatten()}


def test_photographs_of_the_commonest_size_are_kept():
    mixed = [*photographs(1, size=48), *photographs(3), *photographs(2, size=16)]
    assert [photograph.pixels.shape for photograph in of_one_size(mixed)] == [(SIZE, SIZE, 3)] * 3


# ---- a step ---------------------------------------------------------------------------------------------


def test_the_adversarial_weight_rises_after_the_warm_up():
    assert [rise(step, warmup=4) for step in (0, 3, 4, 5, 7, 8, 99)] == [0, 0, 0.25, 0.5, 1, 1, 1]
    assert rise(0, warmup=0) == 1


def test_a_step_changes_decoder_and_discriminator_and_nothing_of_the_encoder(folder):
    trainer = trainer_of(folder)
    pixels = torch.rand(1, 3, SIZE, SIZE)
    latents = trainer.model.encode(pixels).latent_dist.mean
    model, discriminator = weights_of(trainer.model), weights_of(trainer.discriminator)
    for index in range(3):
        trainer.step(index)
    assert changed(trainer.model, model) == {name for name in model if name.startswith("decoder.")}
    assert changed(trainer.discriminator, discriminator) >= learned(trainer.discriminator)
    assert torch.equal(trainer.model.encode(pixels).latent_dist.mean, latents)
    trainer.ema.swap(trainer.model)
    assert not changed(trainer.model.encoder, {name.removeprefix("encoder."): model[name] for name in model})
    assert torch.equal(trainer.model.encode(pixels).latent_dist.mean, latents)


def test_the_encoder_is_never_run_in_a_step(folder, monkeypatch):
    trainer = trainer_of(folder)
    monkeypatch.setattr(trainer.model, "encode", None)
    monkeypatch.setattr(trainer.model, "encoder", None)
    assert trainer.step(0)["l1"] > 0


@pytest.mark.parametrize("options", [{"adversarial_warmup": 5}, {"adversarial_weight": 0.0}])
def test_before_the_rise_the_gradient_is_that_of_the_pixel_loss(folder, options, monkeypatch):
    trainer, plain = trainer_of(folder, **options), trainer_of(folder)
    latents, pixels = trainer.windows.draw(4, count=2)
    monkeypatch.setattr(trainer, "discriminator", None)
    share = rise(4, warmup=trainer.adversarial_warmup)
    metrics = trainer.backward(decode(trainer, latents), pixels, share=share)
    error = decode(plain, latents) - pixels
    (error.abs().mean() + 2 * error.square().mean()).backward()
    assert metrics["mse"] == error.square().mean().item()
    assert metrics["adaptive_weight"] == 0
    assert all(torch.equal(value, gradients(trainer)[name]) for name, value in gradients(plain).items())


def test_what_was_drawn_keeps_its_coarse_colours_and_answers_to_the_discriminator(folder, monkeypatch):
    """Without the adversarial part, the gradients of pixel loss + |mean of 4x4 (y - before)|; all of it is fake."""
    trainer, plain = (trainer_of(folder, adversarial_weight=0.0) for _ in range(2))
    trainer.drawn = Windows(photographs(3), plain.model, crop=16, seed=1, latents=torch.randn(3, 4, 8, 8))
    (latents, pixels), (drawn, before) = trainer.windows.draw(0, count=2), trainer.drawn.draw(0, count=2)
    both = torch.cat([latents, drawn])
    metrics = trainer.backward(decode(trainer, both), pixels, before, share=1.0)
    decoded = decode(plain, both)
    error, coarse = decoded[:2] - pixels, F.avg_pool2d(decoded[2:] - before, 4).abs().mean()
    (error.abs().mean() + 2 * error.square().mean() + coarse).backward()
    assert metrics["coarse_l1"] == pytest.approx(coarse.item())
    for name, value in gradients(plain).items():
        torch.testing.assert_close(gradients(trainer)[name], value)
    seen = []
    monkeypatch.setattr(
        trainer, "discriminate", lambda pixels, decoded: seen.append((len(pixels), len(decoded))) or 0.0
    )
    assert trainer.step(0)["coarse_l1"] > 0
    assert seen == [(2, 4)]


def test_the_discriminator_learns_from_the_first_step(folder):
    trainer = trainer_of(folder, adversarial_warmup=5)
    before = weights_of(trainer.discriminator)
    trainer.step(0)
    assert changed(trainer.discriminator, before) >= learned(trainer.discriminator)


def test_the_adversarial_gradient_by_hand(folder):
    """At a share of 0.4 of 0.5, the gradients of pixel loss + 0.2 a (-mean D(y)), a from whole backward passes."""
    trainer, plain = trainer_of(folder), trainer_of(folder)
    latents, pixels = trainer.windows.draw(0, count=2)
    metrics = trainer.backward(decode(trainer, latents), pixels, share=0.4)

    decoded = decode(plain, latents)
    pixel_loss = (decoded - pixels).abs().mean() + 2 * (decoded - pixels).square().mean()
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = decoder_loss(plain.discriminator(decoded).float())
    last = plain.model.decoder.conv_out.weight
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (pixel_loss, adversarial)]
    weight = float(lengths[0] / lengths[1])
    (pixel_loss + 0.2 * weight * adversarial).backward()

    assert metrics["adaptive_weight"] == pytest.approx(weight, rel=1e-3)
    assert metrics["adversarial"] == adversarial.item()
    assert all(parameter.grad is None for parameter in trainer.discriminator.parameters())
    for name, value in gradients(plain).items():
        assert (gradients(trainer)[name] - value).norm() < 0.02 * value.norm() + 1e-6, name


def test_the_discriminator_s_step_is_one_of_its_hinge_loss(folder):
    trainer = trainer_of(folder)
    with torch.no_grad():
        trainer.discriminator.layers[-1].bias.fill_(30.0)
    real, fake = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    loss = trainer.discriminate(real, fake)
    assert loss == pytest.approx(31, abs=1.5)  # the real ones are beyond the margin, the others at 1 + 30
    assert trainer.discriminator.layers[-1].bias.item() < 30
    assert all(parameter.grad is None for parameter in trainer.discriminator.parameters())


def test_pixels_alone_lower_the_error(folder):
    trainer = trainer_of(folder, steps=30, batch=4, adversarial_weight=0.0)
    losses = [trainer.step(index)["mse"] for index in range(30)]
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_the_decoder_learns_to_please_a_discriminator_that_stands_still(folder):
    options = {"discriminator_learning_rate": 1e-12, "adversarial_weight": 20.0, "learning_rate": 3e-3}
    trainer = trainer_of(folder, steps=12, **options)
    losses = [trainer.step(index)["adversarial"] for index in range(12)]
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1


# ---- the run --------------------------------------------------------------------------------------------


def test_a_resume_is_exact(folder, tmp_path):
    whole, cut, resumed = (trainer_of(folder, adversarial_warmup=1) for _ in range(3))
    for index in range(6):
        last = whole.step(index)
    for index in range(3):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        again = resumed.step(index)
    assert again == last
    assert last["adaptive_weight"] > 0
    assert not changed(resumed.model, whole.model.state_dict())
    assert not changed(resumed.discriminator, whole.discriminator.state_dict())
    assert all(torch.equal(value, resumed.ema.shadow[name]) for name, value in whole.ema.shadow.items())


def test_the_state_holds_all_that_learns(folder):
    assert trainer_of(folder).state_dict().keys() == {
        "model",
        "optimizer",
        "ema",
        "discriminator",
        "discriminator_optimizer",
    }


def test_figures_and_pictures_are_of_the_average(folder):
    trainer = trainer_of(folder)
    trainer.step(0)
    before = weights_of(trainer.model)
    averaged = copy.deepcopy(trainer.model)
    trainer.ema.swap(averaged)
    trainer.ema.swap(averaged)
    averaged.load_state_dict(trainer.ema.shadow, strict=False)  # the encoder is not trained
    psnr, energy = reconstruction_quality(averaged, photographs(2))
    assert trainer.evaluate() == {"psnr": psnr, "gradient_energy": energy}
    previews = trainer.preview()
    assert [image.size for image in previews] == [(SIZE, SIZE)] * 4
    assert np.array_equal(np.asarray(previews[1]), photographs(2)[1].pixels)
    assert not changed(trainer.model, before)


def test_the_export_keeps_the_encoder_and_the_scaling(folder, tmp_path):
    trainer = trainer_of(folder)
    for index in range(3):
        trainer.step(index)
    trainer.export(tmp_path)
    before, after = AutoencoderKL.from_pretrained(folder), AutoencoderKL.from_pretrained(tmp_path)
    assert not changed(after.encoder, before.encoder.state_dict())
    assert changed(after.decoder, before.decoder.state_dict()) == set(before.decoder.state_dict())
    assert torch.equal(after.decoder.conv_in.weight, trainer.ema.shadow["decoder.conv_in.weight"])
    written, given = (json.loads((path / "config.json").read_text()) for path in (tmp_path, folder))
    assert not written.pop("_name_or_path", "")
    assert written == given
    assert (written["scaling_factor"], written["shift_factor"]) == (0.7, 0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Photographs of two sizes in two splits."""
    path = tmp_path_factory.mktemp("photographs")
    rows = []
    for index, photograph in enumerate([*photographs(8), *photographs(2, size=48)]):
        Image.fromarray(photograph.pixels).save(path / f"{index}.png")
        rows.append({"file": f"{index}.png", "split": "train" if index % 2 else "test"})
    (path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(model, data, *overrides):
    small = ["steps=2", "batch=2", "crop=16", "adversarial_warmup=1", "evaluate_every=1"]
    return config.load("decoder-tiny", overrides=[f"model='{model}'", f"data='{data}'", *small, *overrides])


def test_a_trainer_from_its_recipe(random_flux, data, tmp_path):
    recipe = recipe_of(random_flux, data, "learning_rate=0.5", "discriminator_learning_rate=0.25", "seed=5")
    trainer = training.build_trainer(recipe, tmp_path)
    assert (len(trainer.windows.photographs), len(trainer.held_out)) == (4, 4)
    assert (trainer.windows.crop, trainer.windows.factor, trainer.windows.seed) == (16, 8, 5)
    assert (trainer.steps, trainer.batch, trainer.learning_rate) == (2, 2, 0.5)
    assert (trainer.adversarial_weight, trainer.adversarial_warmup, trainer.ema.decay) == (0.25, 1, 0.998)
    assert trainer.discriminator_optimizer.defaults["lr"] == 0.25
    assert trainer.discriminator_optimizer.defaults["betas"] == (0.5, 0.9)
    assert (tmp_path / "latents-train.pt").is_file()


def test_a_run_from_its_recipe_is_an_autoencoder_s_folder(random_flux, data, tmp_path):
    told = list(training.train(recipe_of(random_flux, data), tmp_path / "run", resume=False))
    assert [step for step, _ in told] == [2]
    assert {"l1", "mse", "adversarial", "adaptive_weight", "discriminator", "psnr"} <= told[0][1].keys()
    exported, given = open_autoencoder(tmp_path / "run" / "model"), open_autoencoder(random_flux)
    assert not changed(exported.encoder, given.encoder.state_dict())
    assert changed(exported.decoder, given.decoder.state_dict())


def test_a_recipe_s_drawn_pictures_are_the_pipeline_s_own(random_flux, data, tmp_path):
    """Their latents, decoded by the decoder as it stands, are the pictures; they are drawn once."""
    options = ("drawn=3", "machine.device=cpu", "machine.dtype=float32")
    trainer = training.build_trainer(recipe_of(random_flux, data, *options), tmp_path)
    windows = trainer.drawn
    assert len(windows.photographs) == len(windows.latents) == 3
    with torch.no_grad():
        pixels = trainer.model.decode(windows.latents).sample.clamp(-1, 1)
    seen = torch.from_numpy(np.stack([one.pixels for one in windows.photographs])).permute(0, 3, 1, 2) / 127.5 - 1
    assert (pixels - seen).abs().max() < 0.02
    metrics = trainer.step(0)
    assert {"coarse_l1", "discriminator"} <= metrics.keys()
    kept = (tmp_path / "drawn.pt").stat().st_mtime_ns
    again = training.build_trainer(recipe_of(random_flux, data, *options), tmp_path)
    assert torch.equal(again.drawn.latents, windows.latents)
    assert (tmp_path / "drawn.pt").stat().st_mtime_ns == kept


def test_the_discriminator_weighs_both_sides_whatever_their_number(folder):
    trainer = trainer_of(folder)
    answers = torch.tensor([0.5, -0.5, 0.0, 0.0, 0.0, 2.0]).view(6, 1, 1, 1).requires_grad_()
    trainer._answers = lambda pixels: answers
    found = trainer.discriminate(torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 8, 8))
    assert found == pytest.approx((0.5 + 1.5) / 2 + (1 + 1 + 1 + 3) / 4)


@pytest.mark.parametrize("wrong", ["adversarial_weight=-1", "crop=8", "adversarial_warmup=-1", "kl_weight=1"])
def test_recipes_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=wrong.partition("=")[0]):
        config.load("decoder-tiny", overrides=[wrong])
