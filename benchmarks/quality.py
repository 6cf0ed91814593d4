"""What the embedded generator is worth: does it draw what was asked for, how varied, how far from photographs.

    python benchmarks/quality.py DATA [--prompts plain] [--prompts long] ... [--images 100] [--out FILE] [KEY=VALUE ...]

The classifier is benchmarks/yardstick, frozen before the first evaluation. Prompts are those of benchmarks/prompts,
seeds 0 to images - 1, default steps, nothing selected, as they stand unless prompt_optimizer='{name: NAME}' is given.
"""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
import yaml
from PIL import Image
from torch import Tensor
from transformers import ResNetForImageClassification

import realgen
from realgen import pipeline
from realgen.core.protocols import Generator, PromptOptimizer
from realgen.core.types import Progress, Request
from realgen.formulas import stats
from realgen.train.classifier import prepare
from realgen.train.photographs import Photograph, read_photographs

PROMPTS = Path(__file__).parent / "prompts"
YARDSTICK = Path(__file__).parent / "yardstick"
GROUP = 8
"""Pictures whose variety is compared."""


class Yardstick:
    """The frozen classifier: images to predicted categories and pooled features."""

    def __init__(self, folder: Path) -> None:
        self.model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.categories: list[str] = [self.model.config.id2label[i] for i in range(self.model.config.num_labels)]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> tuple[list[str], Tensor]:
        """Category of each image, and features (N, 256)."""
        features = [self.model.resnet(chunk).pooler_output.flatten(1) for chunk in prepare(images).split(128)]
        joined = torch.cat(features)
        return [self.categories[i] for i in self.model.classifier(joined).argmax(1).tolist()], joined


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("overrides", nargs="*")
    lists = ["plain", "long", "unheld"]
    parser.add_argument("--prompts", action="append", choices=lists, help="one of its lists; default all")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--out", type=Path)
    given = parser.parse_intermixed_args()
    yardstick = Yardstick(YARDSTICK)
    test, train = (read_photographs(given.data, split=split) for split in ("test", "train"))
    real = features_by_category(yardstick, test)
    report = {"photographs": of_photographs(yardstick, test, train) | {"variety": of_subjects(test, real)}}
    recipe = realgen.load("tiny", overrides=given.overrides)
    generator, optimizer = realgen.build_generator(recipe), realgen.build_optimizer(recipe)
    for name in given.prompts or lists:
        prompts = yaml.safe_load((PROMPTS / f"{name}.yaml").read_text(encoding="utf-8"))
        report[name] = of_prompts(yardstick, Drawer(generator, optimizer), prompts, given.images, real)
        print(name, json.dumps(report[name]), flush=True)
    text = json.dumps(report, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def of_photographs(yardstick: Yardstick, test: Sequence[Photograph], train: Sequence[Photograph]) -> dict[str, object]:
    """The classifier's own accuracy on test photographs, and their distance to training photographs: the floor."""
    known = [photograph for photograph in test if photograph.category in yardstick.categories]
    found, features = yardstick([Image.fromarray(photograph.pixels) for photograph in known])
    right = sum(one == photograph.category for one, photograph in zip(found, known, strict=True))
    sample = [photograph for photograph in train if photograph.category in yardstick.categories][: len(known)]
    _, others = yardstick([Image.fromarray(photograph.pixels) for photograph in sample])
    return {"accuracy": stats.proportion(right, len(known)), "distance": _distance(others, features)}


def features_by_category(yardstick: Yardstick, photographs: Sequence[Photograph]) -> dict[str, Tensor]:
    """Features (N, 256) of the photographs of each category."""
    return {
        category: yardstick([Image.fromarray(one.pixels) for one in photographs if one.category == category])[1]
        for category in yardstick.categories
    }


def of_subjects(photographs: Sequence[Photograph], real: Mapping[str, Tensor]) -> dict[str, float]:
    """Variety of eight photographs of one source and class over their category's: what one prompt may have.

    `real` holds the features (N, 256) of the photographs of each category, in their order.
    """
    found = {}
    for category, features in real.items():
        ones = [one for one in photographs if one.category == category]
        names = [f"{one.source.partition('/')[0]} {one.cls}" for one in ones]
        photographic = _variety(features)
        for name, count in sorted(Counter(names).items()):
            if count >= GROUP:
                own = features[[one == name for one in names]]
                found[f"{category}: {name}"] = round(_variety(own) / photographic, 3)
    return found


class Drawer:
    """Pictures of prompts, which an optimiser may rewrite first."""

    def __init__(self, generator: Generator, optimizer: PromptOptimizer | None) -> None:
        self.generator, self.optimizer = generator, optimizer

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        """One picture a prompt."""
        requests = [Request(prompt=prompt, seed=seed) for prompt, seed in zip(prompts, seeds, strict=True)]
        rewrites = pipeline.rewrite(requests, self.generator, optimizer=self.optimizer)
        texts = [rewrite.text for rewrite in rewrites]
        return [item for item in self.generator(texts, seeds=seeds) if not isinstance(item, Progress)]


def of_prompts(
    yardstick: Yardstick, draw: Drawer, prompts: Mapping[str, list[str]], count: int, real: Mapping[str, Tensor]
) -> dict[str, object]:
    """Share of pictures that show their category, variety over the photographs', distance to test photographs.

    Variety is that of eight seeds of one prompt, the mean of a category's prompts; and that of eight pictures of its
    prompts in turn. `real` holds the features (N, 256) of the test photographs of each category.
    """
    right, variety, by_prompt, over_prompts, pooled = {}, {}, {}, {}, []
    for category in yardstick.categories:
        texts = [prompts[category][i % len(prompts[category])] for i in range(count)]
        found, features = yardstick(draw(texts, range(count)))
        right[category] = sum(one == category for one in found)
        pooled.append(features)
        _, groups = yardstick([image for text in prompts[category] for image in draw([text] * GROUP, range(GROUP))])
        photographic = _variety(real[category])
        distances = _group_distances(groups)
        by_prompt[category] = {
            text: round(distance / photographic, 3) for text, distance in zip(prompts[category], distances, strict=True)
        }
        variety[category] = round(fmean(distances) / photographic, 3)
        over_prompts[category] = round(_variety(features) / photographic, 3)
    return {
        "right": stats.proportion(sum(right.values()), count * len(right)),
        "right_by_category": {category: stats.proportion(hits, count) for category, hits in right.items()},
        "variety": {"mean": _mean(variety), **variety},
        "variety_by_prompt": by_prompt,
        "variety_over_prompts": {"mean": _mean(over_prompts), **over_prompts},
        "distance": _distance(torch.cat(pooled), torch.cat(list(real.values()))),
    }


def _variety(features: Tensor) -> float:
    """Mean pairwise distance within groups of eight (N, 256), the rest left out."""
    return fmean(_group_distances(features))


def _group_distances(features: Tensor) -> list[float]:
    groups = features[: len(features) // GROUP * GROUP].split(GROUP)
    return [stats.mean_pairwise_distance(group) for group in groups]


def _mean(by_category: Mapping[str, float]) -> float:
    return round(fmean(by_category.values()), 3)


def _distance(x: Tensor, y: Tensor) -> stats.Interval:
    return stats.kernel_distance_interval(x, y, generator=torch.Generator().manual_seed(0))


if __name__ == "__main__":
    main()
