"""The command line in this process, and a small scorer to stand in for a plug-in."""

import sys
from types import SimpleNamespace

import pytest

from realgen.apps import cli
from realgen.core import plugins
from realgen.core.images import ImageBatch
from realgen.core.spec import Spec
from realgen.core.types import Score, ScorerInfo


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """`realgen WORDS` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["realgen", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def draw(run, random_flux):
    """`realgen generate WORDS` with the random model, which is quick."""
    options = (
        "generator.card=null",
        f"generator.options.model={random_flux}",
        "generator.options.max_text_tokens=32",
        "machine.dtype=float32",
    )

    def call(*words, size="32x32", steps=1):
        return run("generate", *words, *options, "--raw", "--size", size, "--steps", steps)

    return call


class ShadeOptions(Spec):
    """Which channel is looked at."""

    channel: int = 0
    is_held_out: bool = False


class Shade:
    """Scores the mean of one channel in [0, 1]; no opinion of an image of one pixel. Keeps what it was asked."""

    asked: list[tuple[int, list[str]]] = []

    def __init__(self, options):
        self.channel = options.channel
        self.info = ScorerInfo(0, 1, is_detector=True, is_held_out=options.is_held_out, licence="MIT", source="here")

    def __call__(self, images, prompts):
        batch = ImageBatch.of(images)
        self.asked.append((self.channel, list(prompts)))
        return [self._score(batch[i], batch.reasons.get(i)) for i in range(len(batch))]

    def _score(self, image, reason):
        if reason or image.size == (1, 1):
            return Score(None, reason or "too small")
        levels = list(image.getchannel(self.channel).get_flattened_data())
        return Score(sum(levels) / len(levels) / 255)


@pytest.fixture
def shade(monkeypatch):
    """Makes `shade` a plug-in of the room of scorers."""
    plain = plugins.find
    module = SimpleNamespace(Options=ShadeOptions, build=lambda options, machine: Shade(options))
    monkeypatch.setattr(
        plugins, "find", lambda room, name: module if (room, name) == ("scorers", "shade") else plain(room, name)
    )
    monkeypatch.setattr(Shade, "asked", [])
    return Shade
