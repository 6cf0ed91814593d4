"""Batches of flow matching from an encoder that is an average: every latent can be worked by hand."""

import dataclasses
import math
import re

import numpy as np
import pytest
import torch

from realgen.formulas.flow import shift_of
from realgen.train.flow_data import REWORDED, FlowData
from realgen.train.photographs import Photograph

SIZE, TOKENS = 16, 4


class Encoder:
    """Four tokens a picture, one a quadrant, of its mean red, green and blue in [0, 1]; counts what it was given."""

    def __init__(self):
        self.sizes = []

    def __call__(self, images):
        self.sizes += [image.size for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float() / 255
        half = pixels.shape[1] // 2
        quadrants = [pixels[:, rows, columns] for rows in _sides(half) for columns in _sides(half)]
        return torch.stack([quadrant.mean((1, 2)) for quadrant in quadrants], 1)  # (B, 4, 3)


def _sides(half):
    return slice(None, half), slice(half, None)


def photograph(index, *, category="plants", size=SIZE):
    """Red on the left and black on the right, redder with the index."""
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    pixels[:, : size // 2, 0] = 40 + 30 * index
    return Photograph(f"{index}.png", pixels, category, "rose", ("a rose",), "flowers")


def data_of(photographs=None, *, encode=None, seed=3, weights=None, cache=None, size=SIZE):
    shown = [photograph(i) for i in range(5)] if photographs is None else photographs
    return FlowData(shown, encode or Encoder(), size=size, category_weights=weights or {}, seed=seed, cache=cache)


def clean(batch):
    """The latents under the noise: x - sigma * (noise - data)."""
    return batch.x - batch.sigma.view(-1, 1, 1) * batch.target


@pytest.fixture(scope="module")
def data():
    return data_of()


def same(one, other):
    return one.captions == other.captions and all(torch.equal(a, b) for a, b in zip(one[1:4], other[1:4], strict=True))


def test_the_shapes_of_a_batch(data):
    batch = data.batch(0, count=7, caption_dropout=0)
    assert len(batch.captions) == 7
    assert batch.x.shape == batch.target.shape == (7, TOKENS, 3)
    assert batch.sigma.shape == (7,)
    assert batch.x.dtype == batch.sigma.dtype == batch.target.dtype == torch.float32


def test_a_batch_depends_on_seed_and_index_alone(data):
    first = data.batch(9, count=6, caption_dropout=0.5)
    data.batch(1, count=3, caption_dropout=0)
    torch.manual_seed(99)
    assert same(first, data.batch(9, count=6, caption_dropout=0.5))
    assert same(first, data_of().batch(9, count=6, caption_dropout=0.5))
    assert not torch.equal(first.x, data.batch(10, count=6, caption_dropout=0.5).x)
    assert not torch.equal(first.x, data_of(seed=4).batch(9, count=6, caption_dropout=0.5).x)


def test_drawing_a_batch_leaves_the_global_generator_alone(data):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    data.batch(0, count=4, caption_dropout=0.5)
    data.fixed(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_plain_and_mirrored_latents_are_the_two_sides(data):
    """Red on the left is 40/255 in the two left quadrants; mirrored, in the two right ones."""
    plain, mirrored = data._latents[0, 0, :, 0].float(), data._latents[1, 0, :, 0].float()
    assert plain.tolist() == pytest.approx([40 / 255, 0, 40 / 255, 0], abs=1e-3)
    assert mirrored.tolist() == pytest.approx([0, 40 / 255, 0, 40 / 255], abs=1e-3)
    assert data._latents.shape == (2, 5, TOKENS, 3)
    assert data._latents.dtype == torch.bfloat16


def test_a_batch_holds_both_sides_about_equally_often(data):
    latents = clean(data.batch(0, count=400, caption_dropout=1))
    left = (latents[:, 0, 0] > latents[:, 1, 0]).float().mean().item()
    assert left == pytest.approx(0.5, abs=0.1)


def test_every_photograph_is_encoded_once_a_side_in_chunks():
    encoder = Encoder()
    data_of([photograph(i % 7) for i in range(70)], encode=encoder)
    assert len(encoder.sizes) == 140


def test_photographs_of_another_size_are_resized():
    encoder = Encoder()
    data = data_of([photograph(0), photograph(0, size=32)], encode=encoder)
    assert set(encoder.sizes) == {(SIZE, SIZE)}
    assert (data._latents[0, 0] - data._latents[0, 1]).abs().max() < 0.02


def test_of_an_oblong_photograph_the_middle_is_taken():
    oblong = dataclasses.replace(
        photograph(0), pixels=np.pad(photograph(0).pixels, ((0, 0), (8, 8), (0, 0)), constant_values=255)
    )
    data = data_of([photograph(0), oblong])
    assert torch.equal(data._latents[:, 0], data._latents[:, 1])


def test_weights_are_shares_of_draws():
    """Weight 3 for one plant and 1 (not named) for one person: three quarters are plants."""
    mixed = [photograph(0), photograph(6, category="people")]
    batch = data_of(mixed, weights={"plants": 3.0}).batch(0, count=1200, caption_dropout=1)
    red = clean(batch)[..., 0].amax(1)
    assert (red < 0.5).float().mean().item() == pytest.approx(0.75, abs=0.05)


def test_a_weight_of_zero_is_never_drawn_and_none_is_a_category():
    mixed = [photograph(0), photograph(6, category=None)]
    batch = data_of(mixed, weights={"none": 0.0}).batch(0, count=200, caption_dropout=1)
    assert (clean(batch)[..., 0].amax(1) < 0.5).all()


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_captions_are_all_kept_or_all_dropped(data, rate):
    captions = data.batch(0, count=20, caption_dropout=rate).captions
    assert all((text == "") == (rate == 1.0) for text in captions)


def test_a_caption_belongs_to_its_picture():
    other = Photograph("y.png", photograph(6).pixels, "animals", "cat", ("a cat",), "elsewhere")
    data = data_of([photograph(0), other])
    batch = data.batch(2, count=60, caption_dropout=0)
    cats = clean(batch)[..., 0].amax(1) > 0.5
    assert 10 < cats.sum() < 50
    for text, is_cat in zip(batch.captions, cats.tolist(), strict=True):
        foreign = r"\b(roses?|flower|blossom|bloom)\b" if is_cat else r"\b(cat|animal|pet)\b"
        assert not re.search(foreign, text), text


def test_fixed_is_the_same_at_every_call_and_takes_the_first_in_order(data):
    batch = data.fixed(4)
    data.batch(0, count=2, caption_dropout=0)
    assert same(batch, data.fixed(4))
    assert same(batch, data_of().fixed(4))
    assert (clean(batch) - data._latents[0, :4].float()).abs().max() < 1e-5
    assert all(batch.captions)


def test_noise_is_standard_normal_and_differs_by_sample(data):
    batch = data.batch(0, count=600, caption_dropout=1)
    noise = clean(batch) + batch.target
    assert noise.mean().item() == pytest.approx(0, abs=0.04)
    assert noise.std().item() == pytest.approx(1, abs=0.04)
    assert len({tuple(one) for one in noise[:, 0].tolist()}) == 600


def test_noise_levels_are_uniform_then_shifted_and_spread_over_a_batch(data):
    """Undone, 1 / s = 1 + e^mu (1 / sigma - 1), every fortieth of (0, 1) holds one of a batch of forty."""
    sigma = data.batch(3, count=40, caption_dropout=1).sigma
    mu = shift_of(data.batch(0, count=1, caption_dropout=1).x.shape[1])
    uniform = 1 / (1 + math.exp(mu) * (1 / sigma - 1))
    assert ((sigma > 0) & (sigma < 1)).all()
    assert (uniform * 40).long().sort().values.tolist() == list(range(40))
    assert (uniform * 40).long().tolist() != list(range(40))


# ---- the cache ------------------------------------------------------------------------------------------


def refuse(images):
    raise AssertionError("encoded again")


def test_the_second_start_reads_the_cache(tmp_path):
    file = tmp_path / "latents-train.pt"
    first = data_of(cache=file)
    assert [entry.name for entry in tmp_path.iterdir()] == ["latents-train.pt"]
    again = data_of(encode=refuse, cache=file)
    assert torch.equal(first._latents, again._latents)
    assert same(first.batch(3, count=4, caption_dropout=0.1), again.batch(3, count=4, caption_dropout=0.1))


def test_a_cut_encoding_leaves_no_cache(tmp_path):
    with pytest.raises(AssertionError, match="encoded again"):
        data_of(encode=refuse, cache=tmp_path / "latents.pt")
    assert list(tmp_path.iterdir()) == []


def test_a_half_written_cache_is_not_taken(tmp_path, monkeypatch):
    """A process killed while it writes leaves the staged file alone, and the next start encodes again."""

    def killed(value, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            data_of(cache=tmp_path / "latents.pt")
    assert not (tmp_path / "latents.pt").exists()
    encoder = Encoder()
    data = data_of(encode=encoder, cache=tmp_path / "latents.pt")
    assert len(encoder.sizes) == 10
    assert torch.equal(data._latents, data_of(encode=refuse, cache=tmp_path / "latents.pt")._latents)


def test_without_a_cache_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data_of()
    assert list(tmp_path.iterdir()) == []


def test_features_are_those_of_the_clean_pictures_and_their_mirror():
    shown = [photograph(i) for i in range(5)]
    data = FlowData(shown, Encoder(), size=SIZE, category_weights={}, seed=3, features=Encoder())
    batch = data.batch(0, count=12, caption_dropout=0.0)
    latents = clean(batch)
    red, seen = latents[..., 0], batch.features[..., 0].float()
    assert batch.features.shape == (12, TOKENS, 3)
    assert (red[:, 0] > red[:, 1]).any()
    assert (red[:, 0] < red[:, 1]).any()
    assert torch.equal(red[:, 0] > red[:, 1], seen[:, 0] > seen[:, 1])


def test_some_of_a_batch_keeps_its_order():
    data = data_of()
    batch = data.batch(0, count=6, caption_dropout=0.0)
    some = batch.at([4, 1])
    assert some.captions == [batch.captions[4], batch.captions[1]]
    assert torch.equal(some.x, batch.x[[4, 1]])
    assert torch.equal(some.target, batch.target[[4, 1]])
    assert some.features is None


def test_where_captions_have_changed_a_teacher_reads_those_of_before():
    before = [
        dataclasses.replace(photograph(i), source="congress", category="people", captions=("a portrait of a person",))
        for i in range(2)
    ] + [photograph(2)]
    now = [dataclasses.replace(before[0], captions=("a portrait of a woman",)), *before[1:]]
    data = FlowData(now, Encoder(), size=SIZE, category_weights={}, seed=3, as_before=before)
    batch, plain = data.batch(4, count=200, caption_dropout=0.1), data_of(now).batch(4, count=200, caption_dropout=0.1)
    assert same(batch, plain)
    assert plain.taught is None
    assert all(
        (category == REWORDED) == (a != b)
        for category, a, b in zip(batch.sources, batch.captions, batch.taught, strict=True)
    )
    women = [i for i, caption in enumerate(batch.captions) if re.search(r"\b(woman|lady)\b", caption)]
    assert len(women) > 20
    assert not any(re.search(r"\b(woman|lady)\b", caption) for caption in batch.taught)
    kept = [i for i, caption in enumerate(batch.captions) if caption == batch.taught[i]]
    assert {"", *(c for c in batch.captions if "rose" in c)} <= {batch.captions[i] for i in kept}
    assert not set(women) & set(kept)
    assert batch.taught == data.batch(4, count=200, caption_dropout=0.1).taught


def test_a_batch_knows_the_sources():
    mixed = data_of([photograph(0), dataclasses.replace(photograph(1), source="congress/hi")])
    batch = mixed.batch(0, count=20, caption_dropout=0)
    assert set(batch.sources) == {"flowers", "congress"}
    assert batch.at([3, 5]).sources == [batch.sources[3], batch.sources[5]]
    assert batch.to(torch.device("cpu")).sources == batch.sources
    assert mixed.fixed(2).sources == ["flowers", "congress"]


def test_photographs_are_drawn_by_their_weight():
    data = data_of([photograph(0), dataclasses.replace(photograph(4), weight=3.0)])
    drawn = clean(data.batch(0, count=2000, caption_dropout=0)).amax((1, 2))
    assert (drawn > 0.3).float().mean().item() == pytest.approx(0.75, abs=0.04)


def test_sources_are_drawn_by_their_weight_times_the_categorys():
    shown = [photograph(0), dataclasses.replace(photograph(4), source="congress/hi", category="people")]
    weights = {"category_weights": {"people": 1.5}, "source_weights": {"congress": 2.0}}
    data = FlowData(shown, Encoder(), size=SIZE, seed=3, **weights)
    drawn = clean(data.batch(0, count=2000, caption_dropout=0)).amax((1, 2))
    assert (drawn > 0.3).float().mean().item() == pytest.approx(0.75, abs=0.04)
