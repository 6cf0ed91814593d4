"""Training of the autoencoder: the error falls, a resume is exact, figures are what they say."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from realgen.train.autoencoder import AutoencoderTrainer, build_autoencoder, linear_autoencoder, reconstruction_quality
from realgen.train.photographs import Photograph


def photographs(count=4, size=32):
    rows, columns = np.mgrid[:size, :size] / size
    pictures = []
    for i in range(count):
        wave = np.sin(rows * (2 + i) + columns * (5 - i))
        pixels = np.stack([wave * 100 + 128, wave * 60 + 90, columns * 200], -1).astype(np.uint8)
        pictures.append(Photograph(f"{i}.png", pixels, None, "", (), ""))
    return pictures


def trainer_of(steps=6):
    torch.manual_seed(0)
    model = linear_autoencoder(photographs(), widths=(16, 32, 32), latent_channels=4, groups=4, size=32, seed=0)
    return AutoencoderTrainer(
        model,
        photographs(),
        photographs(2),
        steps=steps,
        batch=2,
        crop=16,
        learning_rate=1e-3,
        kl_weight=1e-6,
        ema_decay=0.5,
        seed=0,
    )


def test_the_model_is_fluxs_class_and_layout():
    model = build_autoencoder(widths=(16, 32, 32), latent_channels=4, groups=4, size=32)
    assert isinstance(model, AutoencoderKL)
    assert model.quant_conv is None
    assert model.encode(torch.zeros(1, 3, 32, 48)).latent_dist.mean.shape == (1, 4, 8, 12)


def test_the_error_falls():
    trainer = trainer_of(30)
    with torch.no_grad():
        trainer.model.decoder.conv_out.bias += 0.5
    losses = [trainer.step(index)["mse"] for index in range(30)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_a_resume_is_exact(tmp_path):
    whole, cut, resumed = trainer_of(), trainer_of(), trainer_of()
    for index in range(6):
        last = whole.step(index)
    for index in range(3):
        cut.step(index)
    torch.save(cut.state_dict(), tmp_path / "state.pt")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(3, 6):
        again = resumed.step(index)
    assert again == last
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert all(torch.equal(value, resumed.ema.shadow[name]) for name, value in whole.ema.shadow.items())


def test_exports_and_previews_are_the_average(tmp_path):
    trainer = trainer_of()
    trainer.step(0)
    trainer.export(tmp_path)
    exported = AutoencoderKL.from_pretrained(tmp_path)
    assert torch.equal(exported.decoder.conv_in.weight, trainer.ema.shadow["decoder.conv_in.weight"])
    previews = trainer.preview()
    assert [image.size for image in previews] == [(32, 32)] * 4
    assert np.array_equal(np.asarray(previews[0]), photographs(2)[0].pixels)


class Same:
    """An autoencoder that changes its pictures by a known function."""

    def __init__(self, change):
        self.change = change

    def encode(self, pixels):
        latents = type("Posterior", (), {"mean": self.change(pixels)})
        return type("Output", (), {"latent_dist": latents})

    def decode(self, latents):
        return type("Output", (), {"sample": latents})


def test_quality_by_hand():
    """An error of 0.02 in [-1, 1] is 0.01 in [0, 1]: 40 dB; half the contrast is a quarter of the gradient energy."""
    psnr, _ = reconstruction_quality(Same(lambda pixels: pixels * 0.5 + 0.02 + pixels * 0.5), photographs())
    assert psnr == pytest.approx(40, abs=1.5)
    _, sharpness = reconstruction_quality(Same(lambda pixels: pixels * 0.5), photographs())
    assert sharpness == pytest.approx(0.25, rel=1e-3)
