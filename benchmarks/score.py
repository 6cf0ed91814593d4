"""Images a second: scorers that share decoding and preprocessing against each for itself, and the server against both.

All in one run, pair by pair, as ratios: a figure above 1 says how much faster the first is. Prints JSON. Any recipe
with scorers will do; --random makes one of small untrained classifiers that read the same pixels.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import httpx2 as httpx

from realgen.core import config, wire
from realgen.core.images import ImageBatch, decode
from realgen.core.protocols import Scorer
from realgen.core.recipes import GenerateRecipe, ScoreRecipe
from realgen.core.types import Score
from realgen.wiring import use
from serve import Served, picture, prompt, random_recipe

Work = Callable[[], object]


def main() -> None:
    """Measure and print."""
    given = parsed()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recipe = str(random_recipe(folder, num=given.random)) if given.random else given.recipe
        loaded = config.load(recipe, overrides=given.overrides)
        assert isinstance(loaded, ScoreRecipe | GenerateRecipe)
        scorers = use.build_scorers(loaded)
        files = [encoded(index, given.side) for index in range(given.images)]
        print(json.dumps({"images": given.images, "side": given.side, "scorers": list(scorers)}), flush=True)
        for num in range(1, len(scorers) + 1):
            chosen = list(scorers.values())[:num]
            print(json.dumps({"scorers": num, **sharing(chosen, files, pairs=given.pairs)}), flush=True)
        server = stack.enter_context(Served(recipe, given.overrides))
        for callers in (1, given.callers):
            found = serving(server.url, scorers, files, callers=callers, given=given)
            print(json.dumps({"callers": callers, **found}), flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="score", help="a shipped recipe or a path")
    parser.add_argument("--random", type=int, default=0, help="score with so many small untrained classifiers instead")
    parser.add_argument("--images", type=int, default=64, help="images a measurement")
    parser.add_argument("--side", type=int, default=512, help="pixels")
    parser.add_argument("--callers", type=int, default=8, help="callers at once, in the second row of the server")
    parser.add_argument("--call", type=int, default=8, help="images a call")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("overrides", nargs="*", default=[], help="KEY=VALUE for the recipe")
    return parser.parse_args()


def encoded(index: int, side: int) -> bytes:
    """Image `index` as a PNG file."""
    file = BytesIO()
    picture(index, side).save(file, "PNG", compress_level=1)
    return file.getvalue()


def together(scorers: Sequence[Scorer], files: Sequence[bytes]) -> list[list[Score]]:
    """All scorers on one batch: each picture is decoded once, and prepared once for equal preprocessing."""
    batch = ImageBatch([decode(file) for file in files])
    return [scorer(batch, [prompt(index) for index in range(len(files))]) for scorer in scorers]


def apart(scorers: Sequence[Scorer], files: Sequence[bytes]) -> list[list[Score]]:
    """Each scorer decodes and prepares for itself."""
    return [together([scorer], files)[0] for scorer in scorers]


def sharing(scorers: Sequence[Scorer], files: Sequence[bytes], *, pairs: int) -> dict[str, object]:
    """How much faster shared decoding is."""
    assert together(scorers, files) == apart(scorers, files)
    seconds = timed_pairs(lambda: together(scorers, files), lambda: apart(scorers, files), pairs=pairs)
    return {**ratios("shared_over_apart", seconds), **rates(("shared", "apart"), seconds, len(files))}


def serving(
    url: str, scorers: dict[str, Scorer], files: Sequence[bytes], *, callers: int, given: argparse.Namespace
) -> dict[str, object]:
    """How much faster the server is than the same scorers in process, with so many callers at once."""
    chunks = [files[start : start + given.call] for start in range(0, len(files), given.call)]
    with (
        httpx.Client(base_url=url, trust_env=False, verify=False, timeout=600) as client,
        ThreadPoolExecutor(callers) as pool,
    ):

        def remote() -> None:
            list(pool.map(lambda chunk: call(client, list(scorers), chunk), chunks))

        def local() -> None:
            for chunk in chunks:
                together(list(scorers.values()), chunk)

        seconds = timed_pairs(remote, local, pairs=given.pairs)
    return {**ratios("server_over_in_process", seconds), **rates(("server", "in_process"), seconds, len(files))}


def call(client: httpx.Client, names: Sequence[str], files: Sequence[bytes]) -> wire.ScoreResponse:
    """One call of the server with all scorers."""
    prompts = tuple(prompt(index) for index in range(len(files)))
    asked = wire.ScoreRequest(scorers=tuple(names), prompts=prompts).model_dump_json()
    parts = [(wire.IMAGE_PART, ("a", file, "image/png")) for file in files]
    response = client.post("/v1/score", data={wire.REQUEST_PART: asked}, files=parts)
    if response.status_code != 200:
        sys.exit(response.text)
    return wire.ScoreResponse.model_validate_json(response.content)


def timed_pairs(first: Work, second: Work, *, pairs: int) -> list[tuple[float, float]]:
    """Seconds of both, pair by pair after one that warms up; who goes first changes."""
    found = []
    for index in range(pairs + 1):
        seconds: dict[Work, float] = {}
        for work in (first, second) if index % 2 else (second, first):
            began = time.perf_counter()
            work()
            seconds[work] = time.perf_counter() - began
        found.append((seconds[first], seconds[second]))
    return found[1:]


def ratios(name: str, seconds: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median and range of the second's time over the first's."""
    found = sorted(second / first for first, second in seconds)
    return {name: round(statistics.median(found), 3), "least": round(found[0], 3), "greatest": round(found[-1], 3)}


def rates(names: tuple[str, str], seconds: Sequence[tuple[float, float]], num: int) -> dict[str, float]:
    """Images a second of both, from the medians."""
    medians = [statistics.median(times) for times in zip(*seconds, strict=True)]
    return {f"{name}_images_per_second": round(num / median, 1) for name, median in zip(names, medians, strict=True)}


if __name__ == "__main__":
    os.environ["NO_PROXY"] = "127.0.0.1"
    main()
