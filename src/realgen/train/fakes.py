"""Generated pictures with the content of photographs: what a detector learns from.

Drawn for a photograph's caption, or the photograph itself through an autoencoder; saved and read as the photographs
were, so that neither format nor compression tells them apart. Knows no particular generator.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from realgen.core.errors import DataError
from realgen.core.protocols import FlowBackbone, Generator
from realgen.core.types import Progress
from realgen.formulas.pixels import to_images
from realgen.train.captions import write_caption
from realgen.train.degradations import through_jpeg
from realgen.train.detectors import Fakes
from realgen.train.facts import describe
from realgen.train.photographs import Photograph


def select(photographs: Sequence[Photograph], *, side: int, sources: Sequence[str]) -> list[Photograph]:
    """Square photographs of `side` pixels whose source begins with one of `sources` (all where it is empty)."""
    chosen = [
        photograph
        for photograph in photographs
        if photograph.pixels.shape[:2] == (side, side) and (not sources or photograph.source.startswith(tuple(sources)))
    ]
    if not chosen:
        raise DataError(
            f"no photograph of {side} x {side} from {', '.join(sources) or 'any source'}", hint="mend sources"
        )
    return chosen


def drawn(
    family: str, generator: Generator, photographs: Sequence[Photograph], *, count: int, batch: int, seed: int
) -> Fakes:
    """`count` pictures, each for a caption of a photograph of its own; all follow from `seed`."""
    rng = np.random.default_rng((seed, *family.encode()))
    places, captions, seeds = asked(generator, photographs, rng, count=count)
    pixels = []
    for start in range(0, len(places), batch):
        chunk = slice(start, start + batch)
        images = generator(captions[chunk], seeds=seeds[chunk])
        pixels += [through_jpeg(np.asarray(image)) for image in images if not isinstance(image, Progress)]
    return Fakes(family, np.stack(pixels), places)


def asked(
    generator: Generator | FlowBackbone, photographs: Sequence[Photograph], rng: np.random.Generator, *, count: int
) -> tuple[np.ndarray, list[str], list[int]]:
    """Places of `count` photographs, a caption of each (its class, where the generator cannot read it) and a seed."""
    places = rng.permutation(len(photographs))[:count]
    captions = [_caption(generator, photographs[place], rng) for place in places]
    return places, captions, [int(value) for value in rng.integers(2**31, size=len(places))]


def _caption(generator: Generator | FlowBackbone, photograph: Photograph, rng: np.random.Generator) -> str:
    caption, limit = write_caption(photograph, describe(photograph), rng), generator.max_text_tokens
    return photograph.cls if limit is not None and generator.num_text_tokens(caption) > limit else caption


def redrawn(
    family: str, backbone: FlowBackbone, photographs: Sequence[Photograph], *, count: int, batch: int, seed: int
) -> Fakes:
    """`count` photographs through the backbone's autoencoder."""
    rng = np.random.default_rng((seed, *family.encode()))
    places = rng.permutation(len(photographs))[:count]
    pixels = []
    for start in range(0, len(places), batch):
        images = [Image.fromarray(photographs[place].pixels) for place in places[start : start + batch]]
        with torch.no_grad():
            decoded = backbone.decode(backbone.latents(images), images[0].size)
        pixels += [through_jpeg(np.asarray(image)) for image in to_images(decoded)]
    return Fakes(family, np.stack(pixels), places)


def kept(file: Path, key: str, make: Callable[[], Fakes]) -> Fakes:
    """What `file` holds for `key`, or what `make` returns, kept there for the next start of the run."""
    digest = hashlib.sha256(key.encode()).hexdigest()
    if file.is_file():
        with np.load(file) as stored:
            if str(stored["key"]) == digest:
                return Fakes(str(stored["family"]), stored["pixels"], stored["partner"])
    fakes = make()
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}")
    with staged.open("wb") as stream:
        np.savez(stream, key=digest, family=fakes.family, pixels=fakes.pixels, partner=fakes.partner)
    os.replace(staged, file)
    return fakes
