"""The load test's own arithmetic, and that its nuisance is one."""

import argparse
import importlib.util
import sys
import threading
from pathlib import Path

import pytest

from realgen.core.types import Score
from realgen.scorers import remote
from serving import Brightness, picture, png, running

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


serve, score = _load("serve"), _load("score")


def client(*given):
    return serve.Client(range(2), scores={("a", index): list(scores) for index, scores in enumerate(given)})


@pytest.mark.parametrize(
    ("given", "is_whole"),
    [
        (([Score(0.5)], [Score(0.25)]), True),
        (([Score(0.5 + 5e-6)], [Score(0.25)]), True),
        (([Score(0.5)],), False),
        (([Score(0.5)], [Score(0.25), Score(0.25)]), False),
        (([Score(0.5)], [Score(0.2501)]), False),
        (([Score(0.5)], [Score(None, "late")]), False),
    ],
)
def test_a_score_that_is_missing_doubled_or_wrong_is_found(given, is_whole):
    found = serve.compared([client(*given)], {"a": [Score(0.5), Score(0.25)]}, total=2)
    assert found["is_whole"] is is_whole


def test_latency_is_in_percentiles():
    found = serve.latency([index / 100 for index in range(101)])
    assert found == {"p50_seconds": 0.5, "p95_seconds": 0.95, "max_seconds": 1.0}


def test_ratios_say_how_much_faster_the_first_is():
    assert score.ratios("r", [(1.0, 2.0), (1.0, 3.0), (2.0, 2.0)]) == {"r": 2.0, "least": 1.0, "greatest": 3.0}
    assert score.rates(("a", "b"), [(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)], 8) == {
        "a_images_per_second": 4.0,
        "b_images_per_second": 2.0,
    }


def test_sharing_gives_the_same_scores():
    files = [png(picture(seed)) for seed in range(3)]
    assert score.together([Brightness(), Brightness()], files) == score.apart([Brightness(), Brightness()], files)
    assert score.sharing([Brightness()], files, pairs=2)["shared_over_apart"] > 0


def test_pictures_differ_and_can_be_made_again():
    one, again, other = (serve.picture(index, 8).tobytes() for index in (1, 1, 2))
    assert one == again != other


@pytest.fixture
def attempts(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "exchange", remote.exchange)
    return serve.Attempts()


def test_a_client_beside_a_nuisance_gets_every_score_once(attempts):
    given = argparse.Namespace(call=3, side=8)
    finished = threading.Event()
    with running({"light": Brightness()}) as server:
        nuisance = threading.Thread(target=serve.misbehave, args=(server.port, finished))
        nuisance.start()
        one = serve.Client(range(8))
        one.run(server.url, ["light"], given)
        finished.wait(0.5)
        finished.set()
        nuisance.join()
        assert server.get("/readyz").status_code == 200
    images = [serve.picture(index, 8) for index in range(8)]
    expected = {"light": Brightness()(images, [serve.prompt(index) for index in range(8)])}
    assert serve.compared([one], expected, total=8)["is_whole"]
    assert len(one.seconds) == 3
    assert set(attempts.counted().values()) == {0}


def test_attempts_are_counted_by_what_became_of_them(attempts):
    with running({"light": Brightness(seconds=1.0)}) as server:
        options = {"urls": (server.url,), "scorer": "light", "retries": 0, "timeout": 5, "attempt_timeout": 0.5}
        scorer = remote.build(remote.Options(**options), None)
        assert scorer([picture()] * 3, ["a"] * 3)[0].value is None
        assert attempts.counted()["images_scored_again_at_most"] == 3
        server.batcher.drain()
        scorer([picture()], ["a"])
        assert attempts.counted()["attempts_refused"] == 1
    scorer([picture()], ["a"])
    assert list(attempts.counted().values()) == [3, 1, 1]
