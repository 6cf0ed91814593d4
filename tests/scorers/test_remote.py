import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from realgen.apps import _batching
from realgen.core import wire
from realgen.core.errors import ConfigError, ModelError
from realgen.core.images import ImageBatch
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.scorers import _replicas
from realgen.scorers.remote import Options, build
from serving import Brightness, Gate, Redness, in_process, picture, running, wait_for

IMAGES, PROMPTS = [picture(seed) for seed in range(7)], [f"number {seed}" for seed in range(7)]
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_replicas, "_FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("REALGEN_TOKEN", raising=False)


@pytest.fixture(scope="module")
def good():
    with running({"light": Brightness(), "red": Redness()}) as server:
        yield server


class Faulty(ThreadingHTTPServer):
    """Answers score calls with what `script` says, then passes them on to a good server."""

    daemon_threads = True

    def __init__(self, behind):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.script, self.calls, self.released = behind, [], [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer("GET", None)

    def do_POST(self):
        self.answer("POST", self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, method, body):
        self.server.calls.append((method, time.monotonic()))
        fault = self.server.script.pop(0) if self.server.script else None
        if fault == "drop":
            self.close_connection = True
        elif fault == "hang":
            self.server.released.wait(20)
            self.close_connection = True
        elif fault == "dribble":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not self.server.released.wait(0.05):
                self.wfile.write(b" ")
        elif fault == "dribble head":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not self.server.released.wait(0.05):
                self.wfile.write(b"x")
        elif fault == "half":
            self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"scores": ')
            self.close_connection = True
        elif fault is not None:
            status, sent, headers = fault
            self.write(status, sent, headers)
        else:
            passed = {name: value for name, value in self.headers.items() if name in {"Content-Type", "Authorization"}}
            with httpx.Client(trust_env=False, verify=False) as client:
                found = client.request(method, self.server.behind.url + self.path, content=body, headers=passed)
            self.write(found.status_code, found.content, {})

    def write(self, status, sent, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(sent)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent)


@pytest.fixture
def faulty(good):
    made = []

    def make(behind=good):
        made.append(Faulty(behind))
        return made[-1]

    yield make
    for server in made:
        server.released.set()
        server.shutdown()
        server.server_close()


def remote(*urls, **options):
    return build(Options(urls=urls, scorer=options.pop("scorer", "light"), **{"timeout": 10, **options}), Machine())


def values(scores):
    return [score.value for score in scores]


def expected(images=IMAGES, prompts=PROMPTS):
    return pytest.approx(in_process(Brightness(), images, prompts), abs=1e-9)


@pytest.mark.parametrize("format_", ["png", "webp"])
def test_scores_are_those_of_the_scorer_itself(good, format_):
    scorer = remote(good.url, format=format_)
    assert values(scorer(IMAGES, PROMPTS)) == expected()
    assert scorer.info == Brightness.info
    assert scorer([], []) == []


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16", "1"])
def test_pictures_of_any_mode_score_as_in_process(good, mode):
    image = (
        Image.fromarray(np.arange(63, dtype=np.uint16).reshape(7, 9) * 999)
        if mode == "I;16"
        else picture().convert(mode)
    )
    before = image.tobytes()
    assert values(remote(good.url)([image], ["a"])) == expected([image], ["a"])
    assert image.tobytes() == before


def test_a_broken_picture_is_unscored_here_already(good):
    class Broken(Image.Image):
        def load(self):
            raise OSError("truncated")

    broken = Broken()
    broken._size, broken._mode = (5, 5), "P"
    scores = remote(good.url)([IMAGES[0], broken, IMAGES[1]], PROMPTS[:3])
    assert [score.value is None for score in scores] == [False, True, False]
    assert "truncated" in scores[1].reason


def test_calls_are_cut_to_what_the_server_takes():
    sizes = Brightness()
    limits = wire.Limits(max_images=2, max_body_bytes=3000, max_image_bytes=1500, max_pixels=500)
    with running({"light": sizes}, limits=limits, batch=64) as server:
        large, heavy = picture(size=(26, 20)), picture(size=(24, 20))
        noisy = [picture(seed, (20, 18)) for seed in range(3)]  # about 1100 bytes each: two do not fit one body
        images = [*IMAGES, large, heavy, *noisy]
        scores = remote(server.url)(images, ["a"] * len(images))
    assert values(scores[:7]) == expected(IMAGES, ["a"] * 7)
    assert "26 x 20 is more than the server's 500 pixels" in scores[7].reason
    assert "the server takes 1,500" in scores[8].reason
    assert values(scores[9:]) == expected(noisy, ["a"] * 3)


def test_chunks_go_out_at_once_to_all_replicas():
    gates = Gate(), Gate()
    with (
        running({"light": gates[0]}, batch=1) as one,
        running({"light": gates[1]}, batch=1) as two,
        ThreadPoolExecutor(1) as beside,
    ):
        scorer = remote(one.url, two.url, concurrent=2)
        asked = beside.submit(scorer, IMAGES[:4], PROMPTS[:4])
        try:
            assert all(gate.entered.wait(10) for gate in gates)  # and neither has answered
        finally:
            for gate in gates:
                gate.opened.set()
        assert values(asked.result(10)) == expected(IMAGES[:4], PROMPTS[:4])
        assert [len(gate.batches) for gate in gates] == [1, 1]


def test_an_image_is_encoded_once_for_all_remote_scorers(good, monkeypatch):
    encoded = []
    save = Image.Image.save
    monkeypatch.setattr(
        Image.Image, "save", lambda self, *args, **kwargs: (encoded.append(1), save(self, *args, **kwargs))
    )
    batch = ImageBatch(IMAGES)
    for name in ("light", "red"):
        assert None not in values(remote(good.url, scorer=name)(batch, PROMPTS))
    assert len(encoded) == 7


def test_prompts_that_cannot_travel_are_unscored(good):
    scores = remote(good.url)(IMAGES[:3], ["a", "\ud800", "x" * (wire.MAX_PROMPT + 1)])
    assert [score.value is None for score in scores] == [False, True, True]
    with pytest.raises(ValueError, match="3 images, 1 prompts"):
        remote(good.url)(IMAGES[:3], ["a"])


ANSWER = {"schema_version": 1, "scores": {"light": [{"value": 0.5}]}, "models": {"light": "light@1"}}
NONSENSE = [
    b"",
    b"<html>",
    b"[]",
    b"\x80\x04\x95",
    json.dumps(ANSWER | {"scores": {"light": []}}).encode(),
    json.dumps(ANSWER | {"scores": {"light": [{"value": 0.5}] * 2}}).encode(),
    json.dumps(ANSWER | {"scores": {"light": [{"value": "high"}]}}).encode(),
    json.dumps(ANSWER | {"scores": {"other": [{"value": 0.5}]}, "models": {"other": ""}}).encode(),
    json.dumps(ANSWER | {"models": {"light": "light@2"}}).encode(),
    json.dumps(ANSWER | {"schema_version": 2}).encode(),
    json.dumps(ANSWER | {"more": 1}).encode(),
    b" " * (17 * 2**20),
]


@pytest.mark.parametrize(
    "fault", [*((200, body, {}) for body in NONSENSE), (302, b"", {"Location": "/x"}), (204, b"", {})]
)
def test_nonsense_is_a_failed_attempt_and_asked_again(faulty, fault):
    server = faulty()
    scorer = remote(server.url)
    server.script = [fault, fault]
    assert values(scorer(IMAGES[:1], PROMPTS[:1])) == expected(IMAGES[:1], PROMPTS[:1])
    assert len(server.calls) == 4


def test_nonsense_for_ever_leaves_images_unscored_with_the_reason(faulty):
    server = faulty()
    scorer = remote(server.url, retries=2)
    server.script = [(200, b"<html>", {})] * 9
    scores = scorer(IMAGES[:2], PROMPTS[:2])
    assert values(scores) == [None, None]
    assert "no ScoreResponse" in scores[0].reason
    assert len(server.calls) == 1 + 3


@pytest.mark.parametrize("fault", [(500, b"", {}), (503, b"x", {}), (408, b"", {}), (429, b"", {}), "drop", "half"])
def test_what_may_pass_is_asked_again(faulty, fault):
    server = faulty()
    scorer = remote(server.url)
    server.script = [fault] * 3
    assert values(scorer(IMAGES[:2], PROMPTS[:2])) == expected(IMAGES[:2], PROMPTS[:2])
    assert [method for method, _ in server.calls] == ["GET", *["POST"] * 4]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 422])
def test_a_refusal_is_not_asked_again_and_its_words_are_the_reason(faulty, status):
    server = faulty()
    scorer = remote(server.url)
    server.script = [(status, wire.Failure(error="no, never").model_dump_json().encode(), {})] * 9
    scores = scorer(IMAGES[:2], PROMPTS[:2])
    assert values(scores) == [None, None]
    assert f"status {status}: no, never" in scores[0].reason
    assert len(server.calls) == 2


def test_the_server_is_left_alone_as_long_as_it_asks(faulty):
    server = faulty()
    scorer = remote(server.url)
    server.script = [(429, b"", {"Retry-After": "1"})]
    assert values(scorer(IMAGES[:1], PROMPTS[:1])) == expected(IMAGES[:1], PROMPTS[:1])
    assert 1 <= server.calls[2][1] - server.calls[1][1] < 3


def test_a_wait_longer_than_the_budget_is_not_begun(faulty):
    server = faulty()
    scorer = remote(server.url, timeout=2)
    server.script = [(429, wire.Failure(error="full").model_dump_json().encode(), {"Retry-After": "60"})]
    began = time.monotonic()
    scores = scorer(IMAGES[:1], PROMPTS[:1])
    assert "status 429: full; no time is left" in scores[0].reason
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("fault", ["hang", "dribble", "dribble head"])
def test_the_budget_is_kept_whatever_the_server_does(faulty, fault):
    server = faulty()
    scorer = remote(server.url, timeout=0.6)
    server.script = [fault] * 9
    began = time.monotonic()
    scores = scorer(IMAGES[:3], PROMPTS[:3])
    assert time.monotonic() - began < 2
    assert values(scores) == [None] * 3
    assert all(score.reason for score in scores)


@pytest.mark.parametrize("fault", ["hang", "dribble", "drop", (500, b"", {}), (401, b"", {}), (200, b"?", {})])
def test_another_replica_is_asked_where_one_fails(faulty, good, fault):
    bad = faulty()
    scorer = remote(bad.url, good.url, attempt_timeout=0.4)
    bad.script = [fault] * 99
    for _ in range(3):
        assert values(scorer(IMAGES, PROMPTS)) == expected()


def test_a_dead_replica_is_left_alone(good):
    scorer = remote(DEAD, good.url)
    assert values(scorer(IMAGES, PROMPTS)) == expected()
    assert scorer.info == Brightness.info


def test_a_server_that_comes_back_is_used_again():
    with running({"light": Brightness()}) as first:
        port = first.port
        scorer = remote(first.url, timeout=15, retries=100)
        assert values(scorer(IMAGES[:2], PROMPTS[:2])) == expected(IMAGES[:2], PROMPTS[:2])
    late = []
    asking = threading.Thread(target=lambda: late.extend(scorer(IMAGES, PROMPTS)))
    asking.start()
    time.sleep(0.3)
    assert not late
    with running({"light": Brightness()}, port=port):
        asking.join(15)
        assert values(late) == expected()


def test_a_server_that_comes_back_with_another_model_is_not_believed():
    with running({"light": Brightness()}) as first:
        port = first.port
        scorer = remote(first.url, retries=1)
    with running({"light": Brightness()}, port=port, model="2"):
        scores = scorer(IMAGES[:1], PROMPTS[:1])
    assert scores[0].value is None
    assert "another model by now: light@2, not light@1" in scores[0].reason


def test_a_dead_server_is_an_error_at_the_beginning():
    with pytest.raises(ModelError, match=r"no answer from http://127\.0\.0\.1:9") as caught:
        remote(DEAD, retries=1)
    assert "realgen serve" in caught.value.hint


def test_a_server_that_loads_is_waited_for(monkeypatch):
    monkeypatch.setattr(_batching, "_LOADING_WAIT", 1)
    loaded = threading.Event()

    def load():
        assert loaded.wait(10)
        return {"light": _batching.Served(Brightness(), "light@1")}

    with running({}, build=load) as server:
        threading.Timer(0.3, loaded.set).start()
        assert remote(server.url, timeout=15).info == Brightness.info


def test_an_unknown_scorer_is_an_error_that_names_the_known(good):
    with pytest.raises(ConfigError, match="no scorer 'lihgt'") as caught:
        remote(good.url, scorer="lihgt")
    assert "light, red" in caught.value.hint


def test_the_token_comes_from_the_environment(monkeypatch):
    with running({"light": Brightness()}, token="a-token-of-some-length") as server:
        with pytest.raises(ConfigError, match="401"):
            remote(server.url)
        monkeypatch.setenv("REALGEN_TOKEN", "another-token-of-some-length")
        with pytest.raises(ConfigError, match="401") as caught:
            remote(server.url)
        assert "another" not in str(caught.value) + caught.value.hint
        monkeypatch.setenv("REALGEN_TOKEN", "a-token-of-some-length\n")
        assert values(remote(server.url)(IMAGES[:1], PROMPTS[:1])) == expected(IMAGES[:1], PROMPTS[:1])
        monkeypatch.setenv("REALGEN_TOKEN", "a\nb")
        with pytest.raises(ConfigError, match="characters"):
            remote(server.url)


def test_something_else_on_that_port_is_an_error(faulty):
    server = faulty()
    server.script = [(404, b"<html>not here", {})]
    with pytest.raises(ConfigError, match="404: <html>not here"):
        remote(server.url)


def test_a_full_queue_is_waited_out():
    gate = Gate()
    with running({"light": gate}, max_queue=1, limits=wire.Limits(max_images=1)) as server:
        scorer = remote(server.url, concurrent=3, timeout=20)
        found = []
        asking = threading.Thread(target=lambda: found.extend(scorer(IMAGES[:3], PROMPTS[:3])))
        asking.start()
        wait_for(lambda: 'status="429"' in server.metrics.text().decode())
        gate.opened.set()
        asking.join(15)
        assert values(found) == expected(IMAGES[:3], PROMPTS[:3])


@pytest.mark.parametrize(
    "urls", [[], ["localhost:8600"], ["ftp://host"], ["http://host:port"], ["http://"], [DEAD, DEAD + "/"]]
)
def test_what_is_no_address_is_refused(urls):
    with pytest.raises(ConfigError, match="urls"):
        configure("scorers", "remote", {"urls": urls, "scorer": "light"})


def test_the_full_address_is_understood():
    assert Options(urls=("http://h/v1/score", "http://h/x/"), scorer="a").urls == ("http://h", "http://h/x")
