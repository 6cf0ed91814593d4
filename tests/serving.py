"""A real scoring server on a loopback port, around scorers that are simple functions of the pixels."""

import io
import json
import socket
import sys
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2 as httpx
import numpy as np
from PIL import Image

from realgen.apps import _running
from realgen.apps._batching import Batcher, Served
from realgen.apps._metrics import Metrics
from realgen.apps.server import create_app
from realgen.core import wire
from realgen.core.images import ImageBatch
from realgen.core.types import Score, ScorerInfo

INFO = ScorerInfo(0.0, 1.0, is_detector=True, is_held_out=False, licence="CC0-1.0", source="a test")


class Brightness:
    """The mean of the pixels, plus a little of the prompt's length; keeps the sizes of its batches."""

    info = INFO

    def __init__(self, seconds=0.0):
        self.seconds, self.batches = seconds, []

    def __call__(self, images, prompts):
        batch = ImageBatch.of(images)
        self.batches.append(len(batch))
        time.sleep(self.seconds)
        return [
            Score(None, batch.reasons[index])
            if index in batch.reasons
            else Score(float(np.asarray(batch[index], float).mean() / 255 * 0.9 + len(prompts[index]) / 1e4))
            for index in range(len(batch))
        ]


class Redness(Brightness):
    """The share of red."""

    def __call__(self, images, prompts):
        return [Score(float(np.asarray(image, float)[..., 0].mean() / 255)) for image in ImageBatch.of(images)]


class Gate(Brightness):
    """Brightness that waits until it is let through."""

    def __init__(self):
        super().__init__()
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, images, prompts):
        self.entered.set()
        assert self.opened.wait(20)
        return super().__call__(images, prompts)


def picture(seed=0, size=(9, 7)):
    """A noisy image."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def in_process(scorer, images, prompts):
    return [score.value for score in scorer(images, prompts)]


@dataclass
class Running:
    url: str
    server: _running.Server
    batcher: Batcher
    metrics: Metrics

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def post(self, images, prompts=None, scorers=("light",), *, timeout=10, headers=None, **fields):
        """A score call; `images` are files' bytes."""
        prompts = ["a fox"] * len(images) if prompts is None else prompts
        asked = wire.ScoreRequest(scorers=scorers, prompts=tuple(prompts)).model_dump() | fields
        files = [("image", ("a", data, "image/png")) for data in images]
        return self.send({"request": json.dumps(asked)}, files, timeout=timeout, headers=headers)

    def send(self, data, files, *, timeout=10, headers=None):
        with httpx.Client(trust_env=False, verify=False, timeout=timeout, headers=headers) as client:
            return client.post(f"{self.url}/v1/score", data=data, files=files)

    def get(self, path, headers=None):
        with httpx.Client(trust_env=False, verify=False, timeout=10, headers=headers) as client:
            return client.get(self.url + path)

    def raw(self, data):
        """A connection on which `data` has been sent."""
        line = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        line.sendall(data)
        return line


@contextmanager
def running(scorers, *, batch=4, max_queue=64, wait=0.005, port=0, grace=5.0, build=None, model="1", **app):
    """A server of `scorers` (a mapping), which is stopped at the end."""
    metrics = Metrics()
    made = build or (lambda: {name: Served(scorer, f"{name}@{model}") for name, scorer in scorers.items()})
    batcher = Batcher(made, batch=batch, max_queue=max_queue, wait=wait, observe=metrics.scored)
    asgi = create_app(batcher, metrics, limits=app.pop("limits", wire.Limits()), **app)
    listening = _running.listen("127.0.0.1", port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = _running.make_server(asgi, batcher, grace=grace)
    batcher.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started and (batcher.is_ready or build is not None))
    try:
        yield Running(url, server, batcher, metrics)
    finally:
        server.should_exit = True
        batcher.stop()
        thread.join(30)
        assert not thread.is_alive(), "".join(traceback.format_stack(sys._current_frames()[thread.ident]))


def wait_for(condition, seconds=10):
    """Wait until `condition()`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)
