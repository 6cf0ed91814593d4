"""Batches for flow matching: latents of captioned photographs, captions, noise and noise levels.

A batch is a function of (seed, index) alone, so that a resumed run sees what an uncut one would. Knows no model:
it is handed the function that turns images into latents.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from realgen.formulas.flow import interpolate, shift_of, shift_sigma
from realgen.train.captions import write_caption
from realgen.train.facts import Facts, describe
from realgen.train.photographs import Photograph
from realgen.train.representation import standardised

REWORDED = "reworded"
Encode = Callable[[Sequence[Image.Image]], Tensor]


class Batch(NamedTuple):
    """One batch of flow matching."""

    captions: Any
    """(B,) texts, or tokens of them."""
    x: Tensor
    """Noisy latents (B, tokens, channels)."""
    sigma: Tensor
    """Their noise levels (B,)."""
    target: Tensor
    """Noise minus data (B, tokens, channels)."""
    features: Tensor | None = None
    """What an image encoder sees of the clean pictures (B, tokens, F), where it was asked."""
    taught: Any = None
    """The captions as a teacher reads them, where they differ."""
    sources: Sequence[str] = ()
    """Of the photographs (B,); REWORDED where a teacher reads another caption."""

    @property
    def clean(self) -> Tensor:
        """The latents without noise (B, tokens, channels), as near as rounding lets them be."""
        return self.x - self.sigma.view(-1, 1, 1) * self.target

    def to(self, device: torch.device) -> "Batch":
        """The same batch there; the copies from pinned memory do not wait."""
        x, sigma, target = (part.to(device, non_blocking=True) for part in (self.x, self.sigma, self.target))
        features = None if self.features is None else self.features.to(device, non_blocking=True)
        return Batch(self.captions, x, sigma, target, features, self.taught, self.sources)

    def reworded(self, captions: Sequence[str]) -> "Batch":
        """With these captions; a teacher reads what stood in their place."""
        before = self.captions if self.taught is None else self.taught
        triples = zip(captions, self.captions, self.sources, strict=True)
        sources = [source if now == was else REWORDED for now, was, source in triples]
        return self._replace(captions=captions, taught=before, sources=sources)

    def at(self, places: Sequence[int]) -> "Batch":
        """The samples at these places."""
        captions = [self.captions[i] for i in places]
        taught = None if self.taught is None else [self.taught[i] for i in places]
        features = None if self.features is None else self.features[places]
        sources = [self.sources[i] for i in places]
        return Batch(captions, self.x[places], self.sigma[places], self.target[places], features, taught, sources)


class FlowData:
    """Photographs of one size with their latents, plain and mirrored, held in memory.

    `encoder` names what `encode` computes with: latents cached under another name are computed again. `as_before` are
    the same photographs with the captions that a model has learned from already, where they have changed since.
    """

    def __init__(
        self,
        photographs: Sequence[Photograph],
        encode: Encode,
        *,
        size: int,
        category_weights: Mapping[str, float],
        source_weights: Mapping[str, float] = MappingProxyType({}),
        seed: int,
        cache: Path | None = None,
        encoder: str = "",
        features: Encode | None = None,
        as_before: Sequence[Photograph] | None = None,
    ) -> None:
        self.photographs, self.as_before = photographs, as_before
        self.seed = seed
        self.facts: list[Facts] = [describe(photograph) for photograph in photographs]
        by_source = [source_weights.get(_source(photograph), 1.0) for photograph in photographs]
        by_category = [category_weights.get(photograph.category or "none", 1.0) for photograph in photographs]
        weights = np.array([photograph.weight for photograph in photographs]) * by_source * by_category
        self._cumulative = np.cumsum(weights / weights.sum())
        self._latents = cached(cache, _key(photographs, size, encoder), lambda: _encode_all(photographs, encode, size))
        """Plain and mirrored: (2, N, tokens, channels), bfloat16."""
        self._shift = shift_of(self._latents.shape[2])
        self._features = None if features is None else standardised(_encode_all(photographs, features, size))

    def batch(self, index: int, *, count: int, caption_dropout: float) -> Batch:
        """Batch number `index`; a share of captions is empty so that guidance can be computed."""
        rng = np.random.default_rng((self.seed, index))
        chosen = np.searchsorted(self._cumulative, rng.random(count), side="right").clip(max=len(self.photographs) - 1)
        mirrored = rng.integers(2, size=count)
        captions = [
            ""
            if rng.random() < caption_dropout
            else write_caption(self.photographs[i], self.facts[i], rng, mirrored=bool(side))
            for i, side in zip(chosen, mirrored, strict=True)
        ]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        batch = self._noised(torch.from_numpy(mirrored), torch.from_numpy(chosen), captions, generator)
        return batch if self.as_before is None else self._reworded(batch, self.as_before, chosen, mirrored, index)

    def _reworded(
        self, batch: Batch, as_before: Sequence[Photograph], chosen: np.ndarray, mirrored: np.ndarray, index: int
    ) -> Batch:
        """For a teacher, captions in the words of before, where a photograph is captioned otherwise now."""
        rng = np.random.default_rng((self.seed, index, 1))
        taught, sources = list(batch.captions), list(batch.sources)
        for place, (i, side) in enumerate(zip(chosen, mirrored, strict=True)):
            if taught[place] and as_before[i].captions != self.photographs[i].captions:
                taught[place] = write_caption(as_before[i], self.facts[i], rng, mirrored=bool(side))
                sources[place] = REWORDED
        return batch._replace(taught=taught, sources=sources)

    def fixed(self, count: int) -> Batch:
        """The first `count` photographs with one caption and noise level each: the same at every call."""
        rng = np.random.default_rng(self.seed)
        captions = [write_caption(self.photographs[i], self.facts[i], rng) for i in range(count)]
        generator = torch.Generator().manual_seed(self.seed)
        return self._noised(torch.zeros(count, dtype=torch.long), torch.arange(count), captions, generator)

    def _noised(self, side: Tensor, chosen: Tensor, captions: list[str], generator: torch.Generator) -> Batch:
        data = self._latents[side, chosen].float()
        noise = torch.randn(data.shape, generator=generator)
        sigma = shift_sigma(_spread(len(data), generator), self._shift)
        features = None if self._features is None else self._features[side, chosen]
        sources = [_source(self.photographs[place]) for place in chosen.tolist()]
        return Batch(captions, interpolate(data, noise, sigma), sigma, noise - data, features, sources=sources)


def _spread(count: int, generator: torch.Generator) -> Tensor:
    """One uniform draw from each of `count` equal parts of (0, 1), in random order: a batch covers every level.

    Shifted as the sampler's levels are, this trains a level as often as it is drawn from. The usual logit-normal
    levels hardly reach noise above 0.95 at so few tokens, and there the layout of a picture is decided.
    """
    draw = torch.rand(count, generator=generator).clamp(1e-3, 1 - 1e-3)
    return (torch.randperm(count, generator=generator) + draw) / count


def _source(photograph: Photograph) -> str:
    """`congress` of `congress/hi`."""
    return photograph.source.split("/", maxsplit=1)[0]


def _key(photographs: Sequence[Photograph], size: int, encoder: str) -> str:
    names = "\n".join(photograph.file for photograph in photographs)
    return hashlib.sha256(f"{size}\n{names}\n{encoder}".encode()).hexdigest()


def digest(module: nn.Module) -> str:
    """Of a module's weights: what was computed with others is no longer true."""
    found = hashlib.sha256()
    for value in module.state_dict().values():
        found.update(value.float().cpu().numpy().tobytes())
    return found.hexdigest()


def cached(file: Path | None, key: str, compute: Callable[[], Tensor]) -> Tensor:
    """What `file` holds for these photographs, or what `compute` returns, kept there for the next start of the run."""
    if file is not None and file.is_file():
        kept = torch.load(file, weights_only=True)
        if kept["key"] == key:
            latents: Tensor = kept["latents"]
            return latents
    computed = compute()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        staged = file.with_suffix(".staged")
        torch.save({"key": key, "latents": computed}, staged)
        os.replace(staged, file)
    return computed


def _encode_all(photographs: Sequence[Photograph], encode: Encode, size: int) -> Tensor:
    sides: list[Tensor] = []
    for mirrored in (False, True):
        chunks = []
        for start in range(0, len(photographs), 64):
            images = [_image(photograph, size, mirrored=mirrored) for photograph in photographs[start : start + 64]]
            with torch.no_grad():
                chunks.append(encode(images).to("cpu", torch.bfloat16))
        sides.append(torch.cat(chunks))
    return torch.stack(sides)


def _image(photograph: Photograph, size: int, *, mirrored: bool) -> Image.Image:
    image = Image.fromarray(photograph.pixels)
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else image
