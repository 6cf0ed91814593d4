"""Fakes have the content of their photographs, follow from the seed, and are made once a run."""

import numpy as np
import pytest
import torch
from PIL import Image

from realgen.core.errors import DataError
from realgen.core.types import Progress
from realgen.train import fakes
from realgen.train.degradations import through_jpeg
from realgen.train.detectors import Fakes
from realgen.train.facts import describe
from realgen.train.fakes import drawn, kept, redrawn, select
from realgen.train.photographs import Photograph

NAMES = ["rose", "cat", "bus", "dog", "tulip", "horse", "train", "sheep"]


def photographs(count=8, side=32):
    """Each of a brightness of its own, its subject named."""
    rng = np.random.default_rng(0)
    return [
        Photograph(
            f"{index}.jpg",
            np.clip(rng.normal(40 + 20 * index, 5, (side, side, 3)), 0, 255).astype(np.uint8),
            None,
            NAMES[index % len(NAMES)],
            (),
            f"{'coco' if index % 2 else 'voc'}_{index}",
        )
        for index in range(count)
    ]


class Draws:
    """A generator whose pictures are the seed and the text's length in grey, with progress between."""

    def __init__(self, max_text_tokens=None):
        self.max_text_tokens = max_text_tokens
        self.asked = []

    def num_text_tokens(self, text):
        return len(text)

    def can_read(self, text):
        return text.isascii()

    def __call__(self, texts, *, seeds, size=None):
        self.asked.append((list(texts), list(seeds)))
        for text, seed in zip(texts, seeds, strict=True):
            yield Progress(1, 2)
            yield Image.new("RGB", (32, 32), (seed % 256, seed // 256 % 256, len(text)))

    @property
    def texts(self):
        return [text for texts, _ in self.asked for text in texts]

    @property
    def seeds(self):
        return [seed for _, seeds in self.asked for seed in seeds]


class Lossless:
    """A backbone whose autoencoder changes nothing."""

    def latents(self, images):
        self.is_gradient_kept = torch.is_grad_enabled()
        return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])

    def decode(self, x, size):
        assert size == (x.shape[3], x.shape[2])
        return x


def fakes_drawn(generator=None, *, family="drawn", count=6, batch=4, seed=0, pool=None):
    generator = generator or Draws()
    return drawn(family, generator, pool or photographs(), count=count, batch=batch, seed=seed)


# ---- which photographs ----------------------------------------------------------------------------------


def test_photographs_are_chosen_by_side_and_source():
    both = [*photographs(4), *photographs(2, side=48)]
    assert [one.file for one in select(both, side=32, sources=[])] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert [one.file for one in select(both, side=48, sources=["coco"])] == ["1.jpg"]
    assert len(select(both, side=32, sources=["coco", "voc_2"])) == 3
    narrow = Photograph("n.jpg", np.zeros((32, 48, 3), np.uint8), None, "", (), "")
    assert select([narrow, *both], side=32, sources=[])[0].file == "0.jpg"


def test_no_photograph_is_said():
    with pytest.raises(DataError, match="no photograph of 64 x 64 from any source"):
        select(photographs(), side=64, sources=[])
    with pytest.raises(DataError, match="from flowers, food101"):
        select(photographs(), side=32, sources=["flowers", "food101"])


# ---- drawn ----------------------------------------------------------------------------------------------


def test_each_is_drawn_for_a_caption_of_its_partner(monkeypatch):
    seen = []

    def write_caption(photograph, facts, rng):
        seen.append(facts)
        return f"{photograph.cls} {rng.integers(1000)}"

    monkeypatch.setattr(fakes, "write_caption", write_caption)
    generator, pool = Draws(), photographs()
    made = fakes_drawn(generator)
    assert (made.family, made.pixels.shape, made.pixels.dtype) == ("drawn", (6, 32, 32, 3), np.uint8)
    assert len(set(made.partner.tolist())) == 6  # a photograph of its own
    assert [text.split()[0] for text in generator.texts] == [pool[place].cls for place in made.partner]
    assert len({text.split()[1] for text in generator.texts}) > 1
    assert seen == [describe(pool[place]) for place in made.partner]


def test_each_is_the_picture_of_its_seed_as_the_photographs_were_saved():
    generator = Draws()
    made = fakes_drawn(generator)
    for pixels, text, seed in zip(made.pixels, generator.texts, generator.seeds, strict=True):
        flat = np.full((32, 32, 3), (seed % 256, seed // 256 % 256, len(text)), np.uint8)
        assert np.array_equal(pixels, through_jpeg(flat))
    assert len(set(generator.seeds)) == 6


@pytest.mark.parametrize("batch", [1, 4, 6, 100])
def test_the_same_seed_draws_the_same_in_any_batch(batch):
    generator = Draws()
    made, again = fakes_drawn(generator, batch=batch), fakes_drawn(batch=3)
    assert np.array_equal(made.pixels, again.pixels)
    assert np.array_equal(made.partner, again.partner)
    assert all(len(texts) <= batch for texts, _ in generator.asked)


@pytest.mark.parametrize("other", [{"seed": 1}, {"family": "plain"}])
def test_another_seed_and_another_family_draw_others(other):
    one, two = Draws(), Draws()
    fakes_drawn(one)
    fakes_drawn(two, **other)
    assert not set(one.seeds) & set(two.seeds)


def test_there_are_no_more_than_photographs():
    assert sorted(fakes_drawn(count=50).partner.tolist()) == list(range(8))


def test_a_caption_that_is_too_long_gives_way_to_the_subject():
    short = Draws(max_text_tokens=8)
    made = fakes_drawn(short)
    wanted = [photographs()[place].cls for place in made.partner]
    assert [text for text in short.texts if len(text) <= 8] == short.texts == wanted
    roomy = Draws(max_text_tokens=1000)
    fakes_drawn(roomy)
    assert roomy.texts != wanted


# ---- redrawn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_a_lossless_autoencoder_gives_the_photographs_themselves(batch):
    pool, backbone = photographs(), Lossless()
    made = redrawn("redrawn", backbone, pool, count=6, batch=batch, seed=0)
    assert len(set(made.partner.tolist())) == len(made.pixels) == 6
    for pixels, place in zip(made.pixels, made.partner, strict=True):
        assert np.array_equal(pixels, through_jpeg(pool[place].pixels))
    assert not backbone.is_gradient_kept


def test_a_flux_folder_s_autoencoder_redraws(random_flux, float32):
    from diffusers import FluxPipeline

    from realgen.generators._loading import load_pipeline
    from realgen.generators.flux import FluxBackbone

    backbone = FluxBackbone(load_pipeline(FluxPipeline, str(random_flux), float32), max_text_tokens=32)
    one, again = (redrawn("r", backbone, photographs(), count=3, batch=batch, seed=0) for batch in (3, 1))
    assert one.pixels.shape == (3, 32, 32, 3)
    assert np.abs(one.pixels.astype(int) - again.pixels).max() <= 4  # a rounded level, through JPEG
    assert one.pixels.std() > 0


# ---- kept in the run folder -----------------------------------------------------------------------------


class Makes:
    """What makes fakes, and how often it did."""

    def __init__(self):
        self.count = 0

    def __call__(self):
        self.count += 1
        return Fakes("drawn", np.full((2, 4, 4, 3), self.count, np.uint8), np.array([5, 3]))


def test_what_was_made_is_kept(tmp_path):
    make, file = Makes(), tmp_path / "new" / "fakes.npz"
    first = kept(file, "a recipe", make)
    again = kept(file, "a recipe", make)
    assert make.count == 1
    assert again.family == "drawn"
    assert np.array_equal(again.pixels, first.pixels)
    assert again.pixels.dtype == np.uint8
    assert again.partner.tolist() == [5, 3]
    assert [one.name for one in file.parent.iterdir()] == ["fakes.npz"]


def test_another_recipe_s_are_made_anew(tmp_path):
    make, file = Makes(), tmp_path / "fakes.npz"
    kept(file, "a recipe", make)
    assert (kept(file, "another", make).pixels == 2).all()
    assert (kept(file, "another", make).pixels == 2).all()
    assert (kept(file, "a recipe", make).pixels == 3).all()
    assert make.count == 3


def test_a_half_written_file_is_never_read(tmp_path, monkeypatch):
    make, file = Makes(), tmp_path / "fakes.npz"
    whole = np.savez

    def killed(stream, **arrays):
        whole(stream, **arrays)
        stream.truncate(stream.tell() // 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)
    with pytest.raises(KeyboardInterrupt):
        kept(file, "a recipe", make)
    assert not file.exists()
    monkeypatch.undo()
    assert (kept(file, "a recipe", make).pixels == 2).all()
    assert (kept(file, "a recipe", make).pixels == 2).all()
    assert [one.name for one in tmp_path.iterdir()] == ["fakes.npz"]


def test_a_write_that_is_cut_leaves_what_was_kept_before(tmp_path, monkeypatch):
    make, file = Makes(), tmp_path / "fakes.npz"
    kept(file, "a recipe", make)

    def full(stream, **arrays):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        kept(file, "another", make)
    assert (kept(file, "a recipe", make).pixels == 1).all()
