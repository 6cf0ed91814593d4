"""Captions of official portraits say "a person"; here they learn to say "a man" or "a woman" where that is seen.

Two linear readers look through a frozen image network. The first learns from portraits whose captions say who is on
them, and reads official ones, whole and cut to the head; the second learns from those official portraits of which the
first is sure, and answers. Where it is unsure, the caption stays as it was. Both are then drawn as often, however
many there are of each. It says how somebody looks, in a word of a caption: nobody is recognised, and nothing is known
of who anybody is.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from realgen.train.captions import said_of
from realgen.train.photographs import Photograph
from realgen.train.vocabulary import vocabulary

SURE = (0.25, 0.75)
"""Below and above which the first reader's answers teach the second."""
SAID = (0.05, 0.8)
"""Probability of a woman below which the caption says a man, above which it says a woman."""
SIDE = 160
WHOLE = (0.0, 0.0, 1.0, 1.0)
HEAD = (0.22, 0.04, 0.78, 0.66)
"""Where the head is in an official portrait: left, top, right and bottom as shares of the sides."""

Box = tuple[float, float, float, float]
Eye = Callable[[Tensor], list[Tensor]]
"""Pixels (B, 3, H, W) in [0, 1] to maps, finest first."""


def said_who(photographs: Sequence[Photograph], eye: Eye) -> list[Photograph]:
    """The same photographs; the captions of official portraits say man or woman where `eye` leaves little doubt."""
    known = [p for p in photographs if not _official(p) and said_of(p) in ("man", "woman")]
    asked = [place for place, p in enumerate(photographs) if _official(p) and said_of(p) == "person"]
    named = list(photographs)
    if not asked or len({said_of(p) for p in known}) < 2:
        return named
    portraits = [photographs[place] for place in asked]
    whole = _seen(portraits, eye)
    first = _reader(_seen(known, eye), torch.tensor([float(said_of(p) == "woman") for p in known]))
    guessed = ((first(whole) + first(_seen(portraits, eye, HEAD))) / 2).sigmoid()
    sure = (guessed < SURE[0]) | (guessed > SURE[1])
    if len(guessed[sure].round().unique()) < 2:
        return named
    woman = _reader(whole[sure], guessed[sure].round())(whole).sigmoid()
    said = ["man" if chance < SAID[0] else "woman" if chance > SAID[1] else "person" for chance in woman.tolist()]
    most = max(said.count("man"), said.count("woman"))
    for place, portrait, who in zip(asked, portraits, said, strict=True):
        captions = tuple(caption.replace("a person", f"a {who}") for caption in portrait.captions)
        weight = 1.0 if who == "person" else most / said.count(who)
        named[place] = replace(portrait, captions=captions, weight=weight)
    return named


def _official(photograph: Photograph) -> bool:
    return vocabulary().source(photograph.source).heads == "official"


def _seen(photographs: Sequence[Photograph], eye: Eye, box: Box = WHOLE) -> Tensor:
    """What the eye sees of them (N, F): its two coarsest maps, the last in quarters too."""
    rows = []
    for start in range(0, len(photographs), 32):
        cut = np.stack([_cut(photograph, box) for photograph in photographs[start : start + 32]])
        pixels = torch.from_numpy(cut).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            rows.append(_pooled(eye(pixels)))
    return torch.cat(rows)


def _cut(photograph: Photograph, box: Box) -> np.ndarray:
    image = Image.fromarray(photograph.pixels)
    width, height = image.size
    corners = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
    cut: np.ndarray = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=corners))
    return cut


def _pooled(maps: Sequence[Tensor]) -> Tensor:
    parts = [maps[-2].mean((2, 3)), maps[-1].mean((2, 3)), F.adaptive_avg_pool2d(maps[-1], 2).flatten(1)]
    return torch.cat([F.normalize(part.float(), dim=1) for part in parts], 1)


def _reader(seen: Tensor, woman: Tensor) -> Callable[[Tensor], Tensor]:
    """Logistic regression: features (N, F) to log-odds (N,). Both answers weigh the same, however many there are."""
    mean, deviation = seen.mean(0), seen.std(0) + 1e-6
    linear = nn.Linear(seen.shape[1], 1)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    inputs, share = (seen - mean) / deviation, woman.mean()
    weight = torch.where(woman > 0.5, 0.5 / share, 0.5 / (1 - share))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = F.binary_cross_entropy_with_logits(linear(inputs)[:, 0], woman, weight=weight)
        loss = fit + linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        factor, offset = linear.weight[0] / deviation, linear.bias
    return lambda features: (features - mean) @ factor + offset.detach()
