"""A generator on held-out prompts with fixed seeds: means of every score. Knows no model and no scorer."""

import math
from collections.abc import Sequence

from PIL import Image

from realgen import reward
from realgen.core.protocols import Generator
from realgen.core.spec import RewardSpec
from realgen.core.types import Progress, Score
from realgen.formulas.pixels import sharpness, to_pixels
from realgen.train.scoring import ScoreImages
from realgen.train.world import World


class Evaluation:
    """Held-out prompts, image i drawn with seed i, shared out among the processes."""

    def __init__(
        self,
        generator: Generator,
        score: ScoreImages,
        prompts: Sequence[tuple[str, str]],
        *,
        batch: int,
        num_previews: int,
    ) -> None:
        """`prompts` are (prompt, text) pairs."""
        self.generator, self.score, self.prompts = generator, score, prompts
        self.batch, self.num_previews = batch, num_previews
        self.pictures: list[Image.Image] = []
        """The first pictures of the last evaluation, in the main process."""

    def figures(self, world: World, spec: RewardSpec) -> dict[str, float]:
        """Means over the prompts: `eval_NAME` of every scorer, `eval_total` of the reward, `eval_sharpness`."""
        own = range(len(self.prompts)) if world.is_sharded else range(world.rank, len(self.prompts), world.size)
        images = self._draw(own)
        found = []
        for start in range(0, len(images), self.batch):
            chunk = [self.prompts[place][0] for place in own[start : start + self.batch]]
            found += self.score(images[start : start + self.batch], chunk)
        sharp = [sharpness(to_pixels([image])).item() for image in images]
        keep = [image if place < self.num_previews else None for place, image in zip(own, images, strict=True)]
        rows = list(zip(own, found, sharp, keep, strict=True))
        rows = sorted(rows if world.is_sharded else world.gather(rows), key=lambda row: row[0])
        self.pictures = [row[3] for row in rows if row[3] is not None]
        return _means([row[1] for row in rows], spec) | {"eval_sharpness": _mean([row[2] for row in rows])}

    def _draw(self, places: Sequence[int]) -> list[Image.Image]:
        images: list[Image.Image] = []
        for start in range(0, len(places), self.batch):
            chunk = places[start : start + self.batch]
            drawn = self.generator([self.prompts[place][1] for place in chunk], seeds=list(chunk))
            images += [item for item in drawn if not isinstance(item, Progress)]
        return images


def _means(scores: Sequence[dict[str, Score]], spec: RewardSpec) -> dict[str, float]:
    parts = reward.parts(scores, spec)
    totals = reward.totals(parts, spec.weights)
    known = [total for total in totals if math.isfinite(total)]
    figures = {"eval_unscored": float(sum(map(bool, parts.reasons))), "eval_violated": float(sum(parts.violated))}
    if known:  # an image outside of a bound counts as the worst of those within
        least = min(known)
        figures["eval_total"] = _mean([max(total, least) for total in totals if not math.isnan(total)])
    for name in scores[0]:
        known = [value for one in scores if (value := one[name].value) is not None]
        if known:
            figures[f"eval_{name}"] = _mean(known)
    return figures


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
