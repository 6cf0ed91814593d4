"""Load test: many clients against a real `realgen serve`, which is killed and restarted once while one misbehaves.

Each image must have exactly one score at its client, equal to the in-process one within 1e-5. Prints JSON: latency of
a call (waits and retries included), images a second, and how many images were sent again after the line broke (those
that the killed server had scored already were scored twice, and counted once). Any recipe with scorers will do;
--random makes one of small untrained classifiers.
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx2 as httpx
import numpy as np
from PIL import Image

from realgen.core import config
from realgen.core.recipes import GenerateRecipe, ScoreRecipe
from realgen.core.spec import Machine
from realgen.core.types import Score
from realgen.scorers import remote
from realgen.scorers._replicas import Trouble
from realgen.wiring import use

TOLERANCE = 1e-5


def main() -> None:
    """Run and print; exit code 1 where a score is missing, doubled or wrong."""
    given = parsed()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        recipe = str(random_recipe(folder, num=2)) if given.random else given.recipe
        names, expected = in_process(recipe, given)
        server = stack.enter_context(Served(recipe, given.overrides))
        attempts = Attempts()
        result = {**load(server, names, expected, given), **attempts.counted()}
    print(json.dumps(result, indent=1))
    sys.exit(0 if result["is_whole"] else 1)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="score", help="a shipped recipe or a path")
    parser.add_argument("--random", action="store_true", help="score with two small untrained classifiers instead")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--images", type=int, default=200, help="images a client")
    parser.add_argument("--call", type=int, default=10, help="images a call")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument(
        "--kill-at", type=float, default=0.4, help="share of the images after which the server is killed"
    )
    parser.add_argument("overrides", nargs="*", default=[], help="KEY=VALUE for the recipe")
    given = parser.parse_args()
    given.overrides = ["machine.dtype=float32", *given.overrides]
    return given


def random_recipe(folder: Path, *, num: int) -> Path:
    """A recipe of `num` untrained classifiers that read the same pixels."""
    from untrained import save_classifier

    lines = ["kind: score", "scorers:"]
    for index in range(num):
        place = save_classifier(folder / f"classifier-{index}", seed=index)
        options = f"{{model: {place}, real_label: real}}"
        lines.append(f"  classifier_{index}: {{name: image_classifier, options: {options}}}")
    recipe = folder / "recipe.yaml"
    recipe.write_text("\n".join(lines) + "\n")
    return recipe


def picture(index: int, side: int) -> Image.Image:
    """Image `index`: noise on a slope, of every brightness."""
    generator = np.random.default_rng(index)
    slope = np.linspace(0, 255, side)[:, None, None] * generator.random(3)
    noise = generator.normal(0, 20, (side, side, 3))
    return Image.fromarray((slope + noise).clip(0, 255).astype(np.uint8))


def in_process(recipe: str, given: argparse.Namespace) -> tuple[list[str], dict[str, list[Score]]]:
    """The scorers' names, and their scores of all images without a server."""
    loaded = config.load(recipe, overrides=given.overrides)
    assert isinstance(loaded, ScoreRecipe | GenerateRecipe)
    scorers = use.build_scorers(loaded)
    if not scorers:
        sys.exit(f"the recipe {recipe} has no scorers: give --recipe or --random")
    total = given.clients * given.images
    expected: dict[str, list[Score]] = {name: [] for name in scorers}
    for start in range(0, total, 64):
        indices = range(start, min(start + 64, total))
        images = [picture(index, given.side) for index in indices]
        for name, scorer in scorers.items():
            expected[name] += scorer(images, [prompt(index) for index in indices])
    return list(scorers), expected


def prompt(index: int) -> str:
    """The prompt of image `index`."""
    return f"picture number {index}"


class Served:
    """`realgen serve` as a process of its own on a fixed port; killed and started again at will."""

    def __init__(self, recipe: str, overrides: Sequence[str], *options: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        program = [sys.executable, "-m", "realgen.apps.cli", "serve", *overrides]
        self._command = [*program, "--recipe", recipe, "--port", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)

    def start(self) -> None:
        """Start, and wait until it takes calls."""
        environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
        self._process = subprocess.Popen(self._command, env=environment)
        while self._status("/readyz") != 200:
            assert self._process.poll() is None, "the server ended"
            time.sleep(0.1)

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _status(self, path: str) -> int:
        try:
            with httpx.Client(trust_env=False, verify=False) as client:
                return client.get(self.url + path, timeout=5).status_code
        except httpx.TransportError:
            return 0


@dataclass
class Client:
    """One client's images, and every score that it was given for them."""

    indices: range
    scores: dict[tuple[str, int], list[Score]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def run(self, url: str, names: Sequence[str], given: argparse.Namespace) -> None:
        """Have all images scored, call by call."""
        machine = Machine()
        options = {"urls": (url,), "timeout": 900, "attempt_timeout": 120, "retries": 100}
        scorers = {name: remote.build(remote.Options(scorer=name, **options), machine) for name in names}
        for start in range(0, len(self.indices), given.call):
            part = self.indices[start : start + given.call]
            images = [picture(index, given.side) for index in part]
            for name, scorer in scorers.items():
                began = time.perf_counter()
                found = scorer(images, [prompt(index) for index in part])
                self.seconds.append(time.perf_counter() - began)
                for index, score in zip(part, found, strict=True):
                    self.scores.setdefault((name, index), []).append(score)


def load(
    server: Served, names: Sequence[str], expected: dict[str, list[Score]], given: argparse.Namespace
) -> dict[str, object]:
    """Let all clients loose, kill the server on the way, and compare."""
    os.environ["NO_PROXY"] = "127.0.0.1"
    clients = [Client(range(n * given.images, (n + 1) * given.images)) for n in range(given.clients)]
    total = given.clients * given.images * len(names)
    finished = threading.Event()
    nuisance = threading.Thread(target=misbehave, args=(server.port, finished), daemon=True)
    began = time.perf_counter()
    with ThreadPoolExecutor(given.clients) as pool:
        running = [pool.submit(client.run, server.url, names, given) for client in clients]
        nuisance.start()
        while sum(len(client.scores) for client in clients) < given.kill_at * total:
            time.sleep(0.05)
            assert not any(one.done() and one.exception() for one in running), [one.exception() for one in running]
        server.kill()
        killed = time.perf_counter()
        server.start()
        restart = time.perf_counter() - killed
        for one in running:
            one.result()
    seconds = time.perf_counter() - began
    finished.set()
    nuisance.join()
    return {
        "images": given.clients * given.images,
        "scorers": len(names),
        "clients": given.clients,
        "images_a_call": given.call,
        "seconds": round(seconds, 2),
        "seconds_without_a_server": round(restart, 2),
        "images_per_second": round(total / len(names) / seconds, 1),
        **latency([time for client in clients for time in client.seconds]),
        **compared(clients, expected, total),
    }


def latency(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of a call."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50_seconds": round(cuts[49], 3), "p95_seconds": round(cuts[94], 3), "max_seconds": round(max(seconds), 3)}


def compared(clients: Sequence[Client], expected: dict[str, list[Score]], total: int) -> dict[str, object]:
    """Whether every image has one score at its client, and the in-process one."""
    given = [(name, index, scores) for client in clients for (name, index), scores in client.scores.items()]
    num_doubled = sum(len(scores) != 1 for _, _, scores in given)
    pairs = [(scores[0].value, expected[name][index].value) for name, index, scores in given]
    num_unscored = sum(one is None and other is not None for one, other in pairs)
    differences = [abs(one - other) for one, other in pairs if one is not None and other is not None]
    largest = max(differences, default=0.0)
    is_whole = len(given) == total and not num_doubled and not num_unscored and largest <= TOLERANCE
    return {
        "scores": len(given),
        "doubled": num_doubled,
        "unscored": num_unscored,
        "largest_difference": largest,
        "is_whole": is_whole,
    }


def misbehave(port: int, finished: threading.Event) -> None:
    """Garbage, half-open connections, bodies that are too long or never come, until `finished`."""
    head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: "
    nuisances = [
        b"",
        b"\x00\xff\x16\x03\x01 garbage\r\n\r\n",
        b"GET /v1/scorers HTTP/1.1\r\nHost",
        head + b"10000000000\r\n\r\n" + b"x" * 100_000,
        head + b"5000000\r\n\r\n--b\r\n",
        head + b"20\r\n\r\n" + b"\x80\x04\x95" * 10,
        head.removesuffix(b"Content-Length: ") + b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n",
    ]
    lines: list[socket.socket] = []
    while not finished.is_set():
        for nuisance in nuisances:
            with contextlib.suppress(OSError):  # while the server is down, and where it hangs up
                lines.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                lines[-1].sendall(nuisance)
            finished.wait(0.02)
        while len(lines) > 50:
            lines.pop(0).close()
    for line in lines:
        line.close()


class Attempts:
    """Counts the clients' attempts that failed.

    Where the line broke, the server may have scored the images already, and they are scored again; a refusal (503 while
    it loads, 429) and a server that is not there cost nothing.
    """

    def __init__(self) -> None:
        self.num_images_again, self.num_refused, self.num_unreached = 0, 0, 0
        self._lock = threading.Lock()
        self._exchange = remote.exchange
        remote.exchange = self._counted  # type: ignore[assignment]
        logging.getLogger("realgen.remote").setLevel(logging.ERROR)

    def counted(self) -> dict[str, int]:
        """The figures."""
        return {
            "images_scored_again_at_most": self.num_images_again,
            "attempts_refused": self.num_refused,
            "attempts_without_a_server": self.num_unreached,
        }

    def _counted(self, client: httpx.Client, request: httpx.Request, record: Any, *, until: float) -> Any:
        num_images = request.read().count(b'name="image"')
        answer = self._exchange(client, request, record, until=until)
        if isinstance(answer, Trouble):
            with self._lock:
                if answer.message.startswith(("ConnectError", "ConnectTimeout")):
                    self.num_unreached += 1
                elif answer.message.startswith("status "):
                    self.num_refused += 1
                else:
                    self.num_images_again += num_images
        return answer


if __name__ == "__main__":
    main()
