"""Seconds an image of our generator over FluxPipeline's, on one checkpoint, in one run, pair by pair.

Same dtype, threads, text length, steps and size; every prompt is drawn once, so that no cached text helps. Prints a
row a batch size: the median of the paired ratios with their range, and both medians in seconds an image.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL.Image import Image

import realgen

WORDS = ("cat", "dog", "rose", "lake", "house", "kitchen", "man", "woman", "forest", "pizza")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--overrides", nargs="*", default=[], help="KEY=VALUE for the recipe tiny")
    given = parser.parse_args()
    overrides = [f"generator.options.steps={given.steps}", *given.overrides]
    print("batch  ratio (min-max)        ours s/image  FluxPipeline s/image")
    for batch in (1, 8):
        ours, stock = build(batch, overrides)
        pairs = [timed_pair(ours, stock, batch, index) for index in range(-1, given.pairs)][1:]  # the first warms up
        ratios = sorted(one / other for one, other in pairs)
        medians = [statistics.median(times) / batch for times in zip(*pairs, strict=True)]
        print(
            f"{batch:5}  {statistics.median(ratios):.3f} ({ratios[0]:.3f}-{ratios[-1]:.3f})"
            f"    {medians[0]:12.4f}  {medians[1]:20.4f}",
            flush=True,
        )


Draw = Callable[[list[str], list[int]], object]


def build(batch: int, overrides: list[str]) -> tuple[Draw, Draw]:
    """Our generator and the stock pipeline on the same folder, as functions of (texts, seeds)."""
    recipe = realgen.load("tiny", overrides=[f"machine.batch={batch}", *overrides])
    generator = realgen.build_generator(recipe)
    folder = Path(realgen.__file__).parent / "weights/tiny/generator"
    pipeline = FluxPipeline.from_pretrained(folder, dtype=generator.backbone.pipeline.dtype)
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    width, height = generator.size

    def stock(texts: list[str], seeds: list[int]) -> list[Image]:
        drawn: list[Image] = pipeline(
            texts,
            width=width,
            height=height,
            num_inference_steps=generator.steps,
            guidance_scale=generator.guidance,
            max_sequence_length=generator.max_text_tokens,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        ).images
        return drawn

    return lambda texts, seeds: list(generator(texts, seeds=seeds)), stock


def timed_pair(ours: Draw, stock: Draw, batch: int, index: int) -> tuple[float, float]:
    """Seconds of both for one batch of new prompts; who goes first changes from pair to pair."""
    texts = [f"a photo of a {WORDS[i % len(WORDS)]} number {index * batch + i}" for i in range(batch)]
    seeds = list(range(batch))
    order = [("ours", ours), ("stock", stock)]
    seconds: dict[str, float] = {}
    for name, draw in order if index % 2 else order[::-1]:
        began = time.perf_counter()
        draw(texts, seeds)
        seconds[name] = time.perf_counter() - began
    return seconds["ours"], seconds["stock"]


if __name__ == "__main__":
    main()
