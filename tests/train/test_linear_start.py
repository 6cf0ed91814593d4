"""The autoencoder that starts as principal components: its latents are them, and both halves are linear at first."""

import pytest
import torch
from torch.nn import functional as F

from realgen.core.errors import ConfigError
from realgen.train.autoencoder import build_autoencoder
from realgen.train.linear_start import start_linear


@pytest.fixture(scope="module")
def images():
    """Smooth random pictures: their energy lies in the low frequencies, as a photograph's does."""
    coarse = torch.randn(64, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True)
    return (smooth * 0.3 + 0.1).clamp(-1, 1)


@pytest.fixture(scope="module")
def model(images):
    torch.manual_seed(0)
    model = build_autoencoder(widths=(32, 64, 128, 128), latent_channels=16, groups=8, size=32).eval()
    start_linear(model, images)
    return model


@torch.no_grad()
def encoded(model, images):
    return model.encode(images).latent_dist


def projected(images, count):
    """`images` through the best linear projection of 8x8 patches onto `count` components."""
    patches = F.unfold(images, 8, stride=8).transpose(1, 2).flatten(0, 1)
    mean = patches.mean(0)
    basis = torch.linalg.svd(patches - mean, full_matrices=False).Vh[:count]
    return (patches - mean) @ basis.T @ basis + mean, patches


def test_latents_span_the_principal_components(model, images):
    """The best linear map from the latents back to the patches leaves no more than the components themselves do."""
    rebuilt, patches = projected(images, 16)
    latents = encoded(model, images).mean.permute(0, 2, 3, 1).flatten(0, 2)
    design = torch.cat([latents, torch.ones(len(latents), 1)], 1)
    fitted = design @ torch.linalg.lstsq(design, patches).solution
    best, ours = (rebuilt - patches).square().mean(), (fitted - patches).square().mean()
    assert ours < best + 0.02 * patches.var()


def test_latents_are_of_unit_size_coarse_ones_larger(model, images):
    deviation = encoded(model, images).mean.std((0, 2, 3))
    assert 0.5 < deviation.mean() < 2
    assert deviation[0] > deviation[-1]


def test_the_posterior_starts_narrow(model, images):
    assert encoded(model, images).logvar.unique().tolist() == [-8.0]


@torch.no_grad()
def test_decoding_starts_far_better_than_chance(model, images):
    decoded = model.decode(encoded(model, images).mean).sample
    assert (decoded - images).square().mean() < 0.2 * images.var()


@torch.no_grad()
def test_both_halves_are_nearly_linear_at_the_start(model, images):
    half = encoded(model, images * 0.5).mean - encoded(model, images * 0).mean
    whole = encoded(model, images).mean - encoded(model, images * 0).mean
    assert (2 * half - whole).square().mean() < 0.01 * whole.square().mean()


@pytest.mark.parametrize(("widths", "groups"), [((16, 16, 32), 4), ((16, 32, 32), 8), ((32,), 4)])
def test_shapes_that_cannot_start_linear_say_what_would(images, widths, groups):
    model = build_autoencoder(widths=widths, latent_channels=4, groups=groups, size=32)
    with pytest.raises(ConfigError) as caught:
        start_linear(model, images)
    assert caught.value.hint


def test_residual_branches_are_silent_but_can_learn(model, images):
    pairs = [module for module in model.modules() if hasattr(module, "conv2")]
    assert pairs
    assert all(module.conv2.weight.abs().max() == 0 for module in pairs)
    loss = (model.decode(model.encode(images[:2]).latent_dist.mean).sample - images[:2]).square().mean()
    loss.backward()
    assert all(module.conv2.weight.grad.abs().max() > 0 for module in pairs)
    model.zero_grad(set_to_none=True)
