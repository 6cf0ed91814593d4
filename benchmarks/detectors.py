"""What detectors are worth, and whether they can be fooled by blur, noise, JPEG or a resize.

    python benchmarks/detectors.py DATA [--recipe score] [--ai FOLDER --real FOLDER] [--images 200] [--out FILE]

DATA holds photographs with a test split; a picture is drawn by the embedded generator for the caption of each of
`images` of them (seeds 1,000,000 and up, which no training uses), and each goes through the autoencoder. FOLDER of
--ai and --real hold larger pictures of other generators and photographs beside them. All are JPEG of one quality.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import realgen
from realgen.core.protocols import Scorer
from realgen.formulas import stats
from realgen.generators.flux import FluxBackbone
from realgen.train import fakes
from realgen.train.degradations import KINDS, STRENGTHS, degrade
from realgen.train.photographs import Photograph, find_manifest, read_photographs
from realgen.wiring import use

FAMILIES = {
    "SD 1.5 and Turbo": ("sd 1.5", "sd15", "sd-turbo", "lcm", "sd_cpp"),
    "SDXL and finetunes": ("sdxl", "xl_", "xl2", "juggernaut", "prometheus", "tempest", "playground", "vega", "xlby"),
    "SD 3 and 3.5": (
        "stable-diffusion-3",
        "sd3",
    ),
    "FLUX.1 and kin": ("flux", "flex", "chroma", "krea"),
    "Kandinsky, Cascade": ("kandinsky", "cascade"),
    "PixArt, Sana, Lumina": ("pixart", "sana", "lumina"),
    "Hunyuan, CogView": ("hunyuan", "cogview", "hy-img"),
    "Qwen, Z-Image, HiDream": ("qwen", "z-image", "zimage", "hidream"),
    "Wan, Cosmos": ("wan-ai", "cosmos"),
}
"""Part of a generator's name, in small letters, to its family; the first that fits; "other" for the rest."""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--recipe", default="score")
    parser.add_argument("--ai", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_intermixed_args()
    recipe = realgen.load(given.recipe, overrides=given.overrides)
    detectors = {name: scorer for name, scorer in use.build_scorers(recipe).items() if scorer.info.is_detector}
    test = [one for one in read_photographs(given.data, split="test") if one.pixels.shape[:2] == (128, 128)]
    drawn, redrawn = fakes_of(test, given.images)
    wild = wild_pictures(given.ai, given.real) if given.ai and given.real else {}
    report = {
        name: {
            **of_own(detector, test, drawn, redrawn),
            "wild": of_wild(detector, wild),
            "degraded": of_degraded(detector, drawn),
        }
        for name, detector in detectors.items()
    }
    text = json.dumps(report, indent=2)
    print(text)
    if given.out:
        given.out.write_text(text + "\n", encoding="utf-8")


def fakes_of(test: Sequence[Photograph], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of the embedded generator for captions of `test`, and `test` through its autoencoder."""
    generator = realgen.build_generator(realgen.load("tiny"))
    assert isinstance(generator.backbone, FluxBackbone)  # type: ignore[attr-defined]
    drawn = fakes.drawn("test", generator, test, count=count, batch=8, seed=1_000_000)
    redrawn = fakes.redrawn("test", generator.backbone, test, count=count, batch=8, seed=1_000_000)  # type: ignore[attr-defined]
    return drawn.pixels, redrawn.pixels


def of_own(detector: Scorer, test: Sequence[Photograph], drawn: np.ndarray, redrawn: np.ndarray) -> dict[str, object]:
    """AUROC against the embedded generator's pictures, overall and by photo source, and the calibration error."""
    real, fake, rebuilt = (p_real(detector, pixels) for pixels in ([one.pixels for one in test], drawn, redrawn))
    sources = sorted({one.source.split("/")[0] for one in test})
    chosen = {source: [one.source.split("/")[0] == source for one in test] for source in sources}
    even = real[torch.linspace(0, len(real) - 1, len(fake)).long()]
    return {
        "auroc_drawn": stats.auroc_interval(real, fake),
        "auroc_redrawn": stats.auroc_interval(real, rebuilt),
        "auroc_drawn_by_source": {
            source: stats.auroc_interval(real[torch.tensor(mask)], fake) for source, mask in chosen.items()
        },
        "calibration_error": stats.calibration_error(
            torch.cat([even, fake]), torch.cat([torch.ones(len(even)), torch.zeros(len(fake))])
        ),
        "mean_p_real": {
            "photographs": float(real.mean()),
            "drawn": float(fake.mean()),
            "redrawn": float(rebuilt.mean()),
        },
    }


def of_degraded(detector: Scorer, pixels: np.ndarray) -> dict[str, dict[str, object]]:
    """By kind and strength: mean change of P(real), paired 95 % interval, and the share that gains more than 0.1."""
    clean, rng = p_real(detector, pixels), np.random.default_rng(0)
    table: dict[str, dict[str, object]] = {}
    for kind in KINDS:
        for strength in STRENGTHS:
            change = p_real(detector, [degrade(one, kind, strength, rng) for one in pixels]) - clean
            interval = stats.bootstrap(change, generator=torch.Generator().manual_seed(0))
            gaining = int((change > 0.1).sum()) / len(change)  # a float32 mean of ten in 200 would be above 5 %
            passes = interval.high <= 0.02 and gaining <= 0.05
            table[f"{kind} {strength:g}"] = {"change": interval, "gaining": gaining, "passes": passes}
    return table


def wild_pictures(ai: Path, real: Path) -> dict[str, list[np.ndarray]]:
    """Pictures of other generators by family, and `photographs`."""
    found: dict[str, list[np.ndarray]] = {"photographs": [_pixels(real, row) for row in _rows(real)]}
    for row in _rows(ai):
        name = str(row["generator"]).lower()
        family = next((one for one, parts in FAMILIES.items() if any(part in name for part in parts)), "other")
        found.setdefault(family, []).append(_pixels(ai, row))
    return found


def of_wild(detector: Scorer, wild: Mapping[str, Sequence[np.ndarray]]) -> dict[str, object]:
    """AUROC of photographs against each family of other generators."""
    if not wild:
        return {}
    scores = {family: p_real(detector, pixels) for family, pixels in wild.items()}
    real = scores.pop("photographs")
    table: dict[str, object] = {
        f"{family} ({len(values)})": stats.auroc_interval(real, values) for family, values in sorted(scores.items())
    }
    return {"all": stats.auroc_interval(real, torch.cat(list(scores.values()))), **table}


def p_real(detector: Scorer, pixels: Sequence[np.ndarray]) -> Tensor:
    """The detector's P(real) of pictures (N,)."""
    scores = detector([Image.fromarray(one) for one in pixels], [""] * len(pixels))
    return torch.tensor([float("nan") if score.value is None else score.value for score in scores])


def _rows(folder: Path) -> list[dict[str, object]]:
    return [
        json.loads(line) for line in (find_manifest(folder) / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def _pixels(folder: Path, row: Mapping[str, object]) -> np.ndarray:
    with Image.open(find_manifest(folder) / str(row["file"])) as image:
        return np.array(image.convert("RGB"))


if __name__ == "__main__":
    main()
