"""Patches are the pixels themselves, residual and spectrum by an oracle, and a detector's contract holds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import FLOAT32
from realgen.core.errors import ModelError
from realgen.core.spec import Machine
from realgen.scorers.residual import SIDE, Options, Residual, ResidualNet, build, cut, high_pass, log_spectrum, places
from tiny_clip import difficult_pictures

LUMA = (0.299, 0.587, 0.114)
SIZES = [(64, 64), (200, 90), (30, 70), (300, 300)]


def network_of(seed=0):
    """A narrow network whose answers differ from picture to picture."""
    torch.manual_seed(seed)
    network = ResidualNet(width=8).eval()
    with torch.no_grad():
        network.head.weight.mul_(4)
    return network


def noise(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def pictures(sizes=SIZES):
    rng = np.random.default_rng(0)
    return [
        Image.fromarray(rng.normal(120, 10 + 20 * index, (height, width, 3)).clip(0, 255).astype(np.uint8))
        for index, (width, height) in enumerate(sizes)
    ]


def values(scores):
    return [score.value for score in scores]


@pytest.fixture(scope="module")
def scorer():
    return Residual(network_of())


# ---- patches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 65), (128, 100), (257, 64), (700, 1000)])
def test_patches_are_the_picture_s_own_pixels(height, width):
    pixels = noise(height, width)
    patches = cut(pixels)[0]
    corners = [(top, left) for top in places(height) for left in places(width)]
    assert len(patches) == len(corners) <= 16
    for patch, (top, left) in zip(patches, corners, strict=True):
        assert torch.equal(patch, pixels[0, :, top : top + SIDE, left : left + SIDE])


@pytest.mark.parametrize("length", [64, 65, 100, 127, 128, 129, 192, 193, 256, 257, 1000, 8000])
def test_places_reach_from_edge_to_edge(length):
    found = places(length)
    assert found[0] == 0
    assert found[-1] == length - SIDE
    assert len(found) == min(4, -(-length // SIDE))
    gaps = np.diff(found)
    assert length > 256 or (gaps <= SIDE).all()  # a side of up to four patches is seen whole
    assert len(gaps) == 0 or np.ptp(gaps) <= 1


def test_places_by_hand():
    assert places(64) == [0]
    assert places(65) == [0, 1]
    assert places(128) == [0, 64]
    assert places(264) == [0, 67, 133, 200]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (300, 1), (63, 64), (2, 2), (5, 90), (40, 40)])
def test_a_small_picture_is_continued(height, width):
    pixels = noise(height, width)
    patches = cut(pixels)
    assert patches.shape[2:] == (3, SIDE, SIDE)
    assert patches.shape[1] <= 16
    seen, there = set(patches.unique().tolist()), set(pixels.unique().tolist())
    assert seen <= there  # continued by its own pixels
    assert seen == there or max(height, width) > 4 * SIDE


def test_a_row_that_is_missing_is_the_last_but_one():
    pixels = noise(63, 64)
    patches = cut(pixels)
    assert patches.shape[1] == 1
    assert torch.equal(patches[0, 0, :, :63], pixels[0])
    assert torch.equal(patches[0, 0, :, 63], pixels[0, :, 61])


def test_a_mirror_image_of_a_mirror_image():
    row = torch.arange(40.0).expand(1, 3, 40, 40)
    assert cut(row)[0, 0, 0, 0].tolist() == [*range(40), *range(38, 14, -1)]


# ---- what a patch is read as ----------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.0, 0.1, 0.731, 1.0])
def test_a_constant_has_no_residual(level):
    assert high_pass(torch.full((1, 3, SIDE, SIDE), level)).abs().max() < 1e-5


def test_a_ramp_has_no_residual_but_where_the_edge_mirrors_it():
    ramp = torch.linspace(0, 1, SIDE)
    sloped = torch.stack([ramp.expand(SIDE, SIDE), ramp.expand(SIDE, SIDE).T, (ramp[:, None] + ramp) / 2])[None]
    residual = high_pass(sloped)
    assert residual.shape == (1, 5, SIDE, SIDE)
    assert residual[..., 1:-1, 1:-1].abs().max() < 1e-4
    assert residual[0, 0, :, 0].abs().min() > 1e-2


def filtered(plane, kernel):
    """A plane (H, W) weighed by a kernel of three rows and columns, mirrored at the edges: numpy, in float64."""
    height, width = plane.shape
    padded = np.pad(plane, 1, mode="reflect")
    moved = [padded[top : top + height, left : left + width] for top in range(3) for left in range(3)]
    return np.tensordot(np.ravel(kernel), moved, 1)


def test_the_residual_against_nine_shifted_copies():
    patch = noise(SIDE, SIDE)
    planes = patch[0].double().numpy()
    luma = np.tensordot(LUMA, planes, 1)
    across = np.array([[0, 0, 0], [0.5, -1, 0.5], [0, 0, 0]])
    wanted = [plane - filtered(plane, np.outer([1, 2, 1], [1, 2, 1]) / 16) for plane in planes]
    wanted += [filtered(luma, across), filtered(luma, across.T)]
    assert np.abs(high_pass(patch)[0].numpy() - 16 * np.stack(wanted)).max() < 1e-4


def test_autocast_does_not_round_what_the_network_sees():
    """The grain of a photograph is finer than bfloat16's steps."""
    patch = noise(SIDE, SIDE) * 0.02 + 0.7
    with torch.autocast("cpu", torch.bfloat16):
        seen = high_pass(patch), log_spectrum(patch)
    assert torch.equal(seen[0], high_pass(patch))
    assert torch.equal(seen[1], log_spectrum(patch))


def test_the_spectrum_against_numpy():
    patch = noise(SIDE, SIDE, seed=1)
    luma = np.tensordot(LUMA, patch[0].double().numpy(), 1)
    window = np.outer(np.hanning(SIDE), np.hanning(SIDE))
    power = np.abs(np.fft.fft2((luma - luma.mean()) * window) / SIDE) ** 2  # both axes whole, then half of one
    wanted = np.fft.fftshift(np.log(power + 1e-7), axes=0)[:, : SIDE // 2 + 1] / 4 + 2
    found = log_spectrum(patch)
    assert found.shape == (1, 1, SIDE, SIDE // 2 + 1)
    assert np.abs(found[0, 0].numpy() - wanted).max() < 1e-3


@pytest.mark.parametrize(("down", "across"), [(0, 8), (8, 0), (5, 12), (-20, 3)])
def test_a_wave_stands_at_its_frequency(down, across):
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    wave = torch.cos(2 * torch.pi * (down * rows + across * columns) / SIDE) / 2 + 0.5
    found = log_spectrum(wave.expand(1, 3, SIDE, SIDE))[0, 0]
    row, column = divmod(int(found.argmax()), SIDE // 2 + 1)
    if across == 0:
        assert (abs(row - SIDE // 2), column) == (abs(down), 0)
    else:
        assert (row - SIDE // 2, column) == (down, across)


# ---- files ----------------------------------------------------------------------------------------------


def test_a_saved_network_answers_the_same(tmp_path):
    network = network_of()
    network.save_pretrained(tmp_path / "new" / "folder")
    opened = ResidualNet.from_pretrained(tmp_path / "new" / "folder")
    assert opened.width == 8
    assert not opened.training
    patches = noise(SIDE, SIDE)
    assert torch.equal(opened(patches), network(patches))
    scorer = build(Options(model=str(tmp_path / "new" / "folder"), temperature=2.0), FLOAT32)
    assert (scorer.temperature, scorer.batch) == (2.0, FLOAT32.batch)
    assert scorer.info.is_detector
    assert (scorer.info.low, scorer.info.high) == (0, 1)


def cut_short(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def configured(text):
    return lambda folder: (folder / "config.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        lambda folder: (folder / "model.safetensors").unlink(),
        lambda folder: (folder / "config.json").unlink(),
        configured('{"width": 16}'),
        configured('{"width": 4}'),
        configured('{"width": -8}'),
        configured('{"width": Infinity}'),
        configured('{"width": "wide"}'),
        configured('{"hidden_size": 8}'),
        configured("[8]"),
        configured('{"width": '),
    ],
)
def test_another_s_files_and_damaged_ones_are_said(damage, tmp_path):
    network_of().save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match="holds no residual detector") as caught:
        build(Options(model=str(tmp_path)), FLOAT32)
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_no_model_is_said(tmp_path):
    with pytest.raises(ModelError, match="needs a model"):
        build(Options(), FLOAT32)
    with pytest.raises(ModelError, match="holds no residual detector"):
        build(Options(model=str(tmp_path / "nowhere")), FLOAT32)


# ---- scores ---------------------------------------------------------------------------------------------


def test_pictures_of_different_sizes_together_are_one_by_one(scorer):
    images, prompts = pictures(), ["a", "b", "c", "d"]
    together = values(scorer(images, prompts))
    alone = [value for image in images for value in values(scorer([image], ["another"]))]
    assert together == pytest.approx(alone, abs=1e-5)
    assert values(scorer(images[::-1], prompts))[::-1] == pytest.approx(together, abs=1e-5)
    in_twos = Residual(scorer.module, batch=2)
    assert values(in_twos(images, prompts)) == pytest.approx(together, abs=1e-5)
    assert np.ptp(together) > 0.01
    assert scorer([], []) == []


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_differentiable_score_is_the_score(scorer, width, height):
    images = pictures([(width, height)] * 2)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    with torch.no_grad():
        found = scorer.differentiable(pixels)
    assert found.tolist() == pytest.approx(values(scorer(images, ["", ""])), abs=1e-5)


def test_the_score_is_the_mean_of_the_patches_log_odds(scorer):
    image = pictures([(130, 64)])[0]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    with torch.no_grad():
        parts = [scorer.module(pixels[None, :, :, left : left + SIDE]) for left in (0, 33, 66)]
    wanted = torch.sigmoid(torch.cat(parts).mean()).item()
    assert values(scorer([image], [""])) == pytest.approx([wanted], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_divides_the_log_odds(scorer, temperature):
    images = pictures()
    plain = torch.tensor(values(scorer(images, [""] * 4)), dtype=torch.float64).logit()
    scaled = Residual(scorer.module, temperature=temperature)
    assert values(scaled(images, [""] * 4)) == pytest.approx((plain / temperature).sigmoid().tolist(), abs=1e-5)
    pixels = noise(70, 80)
    with torch.no_grad():
        assert torch.equal(scaled.log_odds(pixels), scorer.log_odds(pixels))
        wanted = (scorer.differentiable(pixels).logit() / temperature).sigmoid().item()
        assert scaled.differentiable(pixels).item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (80, 70), (1, 20)])
def test_the_gradient_to_the_pixels_is_that_of_finite_differences(height, width):
    scorer = Residual(network_of().double(), temperature=1.5)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64) * 0.8 + 0.1
    direction = torch.randn(pixels.shape, generator=generator, dtype=torch.float64)
    scores = scorer.differentiable(pixels.requires_grad_())
    assert scores.shape == (2,)
    (gradient,) = torch.autograd.grad(scores.sum(), pixels)
    with torch.no_grad():
        ahead, behind = (scorer.differentiable(pixels + sign * 1e-6 * direction).sum() for sign in (1, -1))
    assert ((ahead - behind) / 2e-6).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-4)
    assert all(row.abs().max() > 1e-6 for row in gradient)


def test_difficult_pictures_are_scored_and_broken_ones_are_not(scorer):
    images, broken = difficult_pictures()
    copies = [image.copy() for image in images]
    before = torch.random.get_rng_state()
    scores = scorer([*images, broken], [""] * (len(images) + 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(0 <= score.value <= 1 for score in scores[:-1])
    assert scores[-1].value is None
    assert scores[-1].reason
    assert all(a.mode == b.mode and a.tobytes() == b.tobytes() for a, b in zip(images, copies, strict=True))
    with pytest.raises(ValueError, match="2 images, 1 prompts"):
        scorer(images[:2], [""])


def test_scoring_leaves_no_gradients(scorer):
    scorer(pictures()[:1], [""])
    assert all(weight.grad is None for weight in scorer.module.parameters())


def test_it_learns_grain_that_a_blur_removes():
    """Native resolution: a blur of one pixel is seen."""
    network = network_of()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(12):
        sharp = torch.cat([noise(SIDE, SIDE, seed=4 * step + place) for place in range(4)])
        soft = F.avg_pool2d(sharp, 3, stride=1, padding=1)
        answers = network(torch.cat([sharp, soft]))
        loss = F.binary_cross_entropy_with_logits(answers, torch.tensor([1.0] * 4 + [0.0] * 4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scorer = Residual(network.eval())
    sharp = noise(100, 100, seed=99)
    with torch.no_grad():
        assert scorer.differentiable(sharp).item() > 0.8
        assert scorer.differentiable(F.avg_pool2d(sharp, 3, stride=1, padding=1)).item() < 0.2


def test_the_machine_says_how_many_pictures_at_once(tmp_path):
    network_of().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == {"width": 8}
    assert build(Options(model=str(tmp_path)), Machine(device="cpu", batch=3)).batch == 3
