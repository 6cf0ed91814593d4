import concurrent.futures
import contextlib
import io
import json
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from realgen.core import wire
from realgen.core.types import Score
from serving import Brightness, Gate, Redness, in_process, picture, png, running, wait_for

SMALL = wire.Limits(max_images=3, max_image_bytes=2000, max_body_bytes=6000, max_pixels=400)
TOKEN = "a-token-of-some-length"
HEAD = (
    "POST /v1/score HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=xx\r\nContent-Length: {}\r\n"
)


@pytest.fixture(scope="module")
def plain():
    with running({"light": Brightness(), "red": Redness()}) as server:
        yield server


@pytest.fixture(scope="module")
def small():
    with running({"light": Brightness()}, limits=SMALL, body_seconds=0.5) as server:
        yield server


def values(response, scorer="light"):
    assert response.status_code == 200, response.text
    return [score.value for score in wire.ScoreResponse.model_validate_json(response.content).scores[scorer]]


def failure(response, status):
    assert response.status_code == status, response.text
    return wire.Failure.model_validate_json(response.content)


def test_several_scorers_answer_in_one_call_as_they_do_in_process(plain):
    images, prompts = [picture(seed) for seed in range(5)], [f"{'word ' * seed}" for seed in range(5)]
    response = plain.post([png(image) for image in images], prompts, ["red", "light"])
    assert values(response, "light") == pytest.approx(in_process(Brightness(), images, prompts), abs=1e-9)
    assert values(response, "red") == pytest.approx(in_process(Redness(), images, prompts), abs=1e-9)
    assert response.json()["models"] == {"red": "red@1", "light": "light@1"}


def test_jpeg_and_webp_are_read_as_they_are(plain):
    for kind in ("JPEG", "WEBP"):
        file = io.BytesIO()
        picture().save(file, kind)
        read = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
        assert values(plain.post([file.getvalue()])) == pytest.approx(in_process(Brightness(), [read], ["a fox"]))


def test_what_cannot_be_read_is_unscored_and_costs_nobody_else_a_score(plain):
    good = png(picture())
    response = plain.post([good, good[:60], b"", b"GIF89a", good])
    assert [value is None for value in values(response)] == [False, True, True, True, False]
    reasons = [score["reason"] for score in response.json()["scores"]["light"]]
    assert "empty" in reasons[2]
    assert all(reasons[1:4])
    assert values(plain.post([b"nothing at all"])) == [None]


def test_scorers_are_described(plain):
    about = wire.ScorersResponse.model_validate_json(plain.get("/v1/scorers").content)
    assert sorted(about.scorers) == ["light", "red"]
    assert about.scorers["light"].info == Brightness.info
    assert about.scorers["light"].model == "light@1"
    assert about.batch == 4
    assert about.limits == wire.Limits()


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("multipart/form-data", b"garbage", 422),
        ("multipart/form-data; boundary=", b"garbage", 422),
        ("multipart/form-data; boundary=xx", b"garbage", 422),
        ("multipart/form-data; boundary=xx", b"--xx\r\n\r\nnameless\r\n--xx--\r\n", 422),
        ("multipart/form-data; boundary=xx", bytes(range(256)) * 30, 422),
        ("multipart/form-data; boundary=xx", b"--xx\r\nContent-Disposition: form-data; name=image\r\n\r\n", 422),
        ("multipart/form-data; boundary=xx", b"", 422),
        ("application/x-www-form-urlencoded", b"request={}", 415),
        ("application/octet-stream", b"\x80\x04\x95", 415),
    ],
)
def test_garbage_is_refused_in_words(plain, content_type, body, status):
    with httpx.Client(trust_env=False, verify=False) as client:
        response = client.post(f"{plain.url}/v1/score", content=body, headers={"Content-Type": content_type})
    assert failure(response, status).error
    assert plain.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    ("request_part", "words"),
    [
        ("not json", "JSON"),
        ("[]", "object"),
        ('{"scorers": ["light"], "prompts": ["a"], "schema_version": 2}', "schema_version"),
        ('{"scorers": ["light"], "prompts": ["a"], "pickle": "x"}', "pickle"),
        ('{"scorers": ["light", "light"], "prompts": ["a"]}', "twice"),
        ('{"scorers": [], "prompts": ["a"]}', "scorers"),
        ('{"scorers": ["light"], "prompts": ["a", "b"]}', "2 prompts for 1 images"),
        ('{"scorers": ["light"], "prompts": [1]}', "string"),
        (json.dumps({"scorers": ["light"], "prompts": ["a" * 20_001]}), "20000"),
    ],
)
def test_a_request_that_says_the_wrong_thing_is_refused(plain, request_part, words):
    said = failure(plain.send({"request": request_part}, [("image", ("a", png(picture())))]), 422)
    assert words in said.error


def test_parts_that_are_not_known_are_refused(plain):
    asked = wire.ScoreRequest(scorers=("light",), prompts=("a",)).model_dump_json()
    image = ("image", ("a", png(picture())))
    assert "picture" in failure(plain.send({"request": asked}, [("picture", image[1])]), 422).error
    assert failure(plain.send({"request": asked, "image": "x"}, [image]), 422)
    assert failure(plain.send({}, [image]), 422)
    assert values(plain.send(None, [("request", ("r.json", asked)), image]))


def test_an_unknown_scorer_is_named_with_those_that_there_are(plain):
    said = failure(plain.post([png(picture())], scorers=["lihgt"]), 404)
    assert "lihgt" in said.error
    assert "light, red" in said.hint


def test_an_unknown_path_is_refused_in_words(plain):
    assert "/v2/score" in failure(plain.get("/v2/score"), 404).error
    assert "/v1/score" in failure(plain.get("/v1/score"), 405).error
    assert plain.get("/docs").status_code == 404


def test_limits_are_kept(small):
    dot = png(picture(size=(2, 2)))
    assert "more than 3 images" in failure(small.post([dot] * 4), 413).error
    assert "more than 3 images" in failure(small.post([dot] * 3, ["a"] * 4), 413).error
    assert "Maximum number of files" in failure(small.post([dot] * 9), 422).error
    assert "image 1: 2,001 bytes" in failure(small.post([dot, b"x" * 2001]), 413).error
    flat = io.BytesIO()
    Image.new("RGB", (21, 20)).save(flat, "PNG")
    assert "image 1: 420 pixels, at most 400" in failure(small.post([dot, flat.getvalue()]), 422).error
    assert (
        values(small.post([dot] * 3))
        == [pytest.approx(in_process(Brightness(), [picture(size=(2, 2))], ["a fox"])[0])] * 3
    )


def test_a_long_body_is_refused_and_the_answer_arrives_while_it_is_sent(small):
    said = failure(small.post([b"x" * 8_000_000]), 413)
    assert "at most 6,000" in said.error


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_of_10_gb_is_refused_before_it_is_sent(small, expect):
    began = time.monotonic()
    with small.raw((HEAD.format(10**10) + expect + "\r\n").encode()) as line:
        answer = b""
        while not answer.endswith(b"}") and (more := line.recv(4096)):  # head and body may come one by one
            answer += more
    assert b" 413 " in answer
    assert b"10,000,000,000 bytes" in answer
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "head", ["Transfer-Encoding: chunked\r\n", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", ""]
)
def test_a_body_without_a_length_is_refused(small, head):
    text = f"POST /v1/score HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=xx\r\n{head}\r\n"
    with small.raw(text.encode()) as line:
        assert b" 411 " in line.recv(4096)


def test_a_slow_body_is_given_up_and_blocks_nobody(small):
    slow = [small.raw((HEAD.format(500) + "\r\n--xx").encode()) for _ in range(30)]
    assert values(small.post([png(picture())]))
    for line in slow:
        with line:
            assert b" 408 " in line.recv(4096)


def test_callers_need_the_token():
    with running({"light": Brightness()}, token=TOKEN) as server:
        image = png(picture())
        for headers in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer é"},
        ):
            encoded = {name: value.encode("latin-1") for name, value in headers.items()}
            response = server.post([image], headers=encoded)
            assert "token" in failure(response, 401).error
            assert response.headers["www-authenticate"] == "Bearer"
            assert server.get("/v1/scorers", encoded).status_code == 401
            assert server.get("/metrics", encoded).status_code == 401
        bearing = {"Authorization": f"Bearer {TOKEN}"}
        assert values(server.post([image], headers=bearing))
        assert server.get("/v1/scorers", bearing).status_code == 200
        assert server.get("/healthz").status_code == server.get("/readyz").status_code == 200


@contextlib.contextmanager
def one_in_work(**options):
    """A server whose scorer holds one image back, with the call that waits for it."""
    gate = Gate()
    with concurrent.futures.ThreadPoolExecutor(8) as pool, running({"light": gate}, **options) as server:
        try:
            held = pool.submit(server.post, [png(picture(1))])
            assert gate.entered.wait(10)
            yield server, gate, held, pool
        finally:
            gate.opened.set()


def test_a_full_queue_is_said_and_when_to_come_again():
    with one_in_work(max_queue=3) as (server, gate, held, pool):
        second = pool.submit(server.post, [png(picture())] * 2)
        wait_for(lambda: server.batcher.depth == 3)
        response = server.post([png(picture())])
        assert "the queue is full: 3 of 3" in failure(response, 429).error
        assert int(response.headers["retry-after"]) >= 1
        assert server.get("/readyz").status_code == 200
        gate.opened.set()
        assert len(values(held.result())) == 1
        assert len(values(second.result())) == 2
        assert values(server.post([png(picture())]))


def test_images_of_several_callers_meet_in_one_batch():
    with one_in_work(batch=6) as (server, gate, held, pool):
        images = [picture(seed) for seed in range(6)]
        calls = [pool.submit(server.post, [png(image)], [f"prompt {index}"]) for index, image in enumerate(images)]
        wait_for(lambda: server.batcher.depth == 7)
        time.sleep(0.1)  # decoding takes a moment after the places are taken
        gate.opened.set()
        found = [values(call.result())[0] for call in calls]
        assert gate.batches == [1, 6]
        assert found == pytest.approx(in_process(Brightness(), images, [f"prompt {index}" for index in range(6)]))
        assert held.result().status_code == 200


def test_a_scorer_that_raises_costs_only_what_it_cannot_score():
    class Picky(Brightness):
        def __call__(self, images, prompts):
            if any("bad" in prompt for prompt in prompts):
                raise RuntimeError("no\nmemory")
            return super().__call__(images, prompts)

    with running({"light": Picky(), "red": Redness()}) as server:
        response = server.post([png(picture(seed)) for seed in range(3)], ["good", "bad", "good"], ["light", "red"])
        assert [value is None for value in values(response)] == [False, True, False]
        assert response.json()["scores"]["light"][1]["reason"] == "the scorer raised RuntimeError: no memory"
        assert None not in values(response, "red")
        assert values(server.post([png(picture())]))


@pytest.mark.parametrize("answers", [[], [Score(0.5)] * 3, ["half"], None, [Score("half")]])
def test_a_scorer_that_answers_nonsense_leaves_images_unscored(answers):
    class Nonsense(Brightness):
        def __call__(self, images, prompts):
            return answers

    with running({"light": Nonsense()}) as server:
        response = server.post([png(picture())])
        assert values(response) == [None]
        assert response.json()["scores"]["light"][0]["reason"].startswith("the scorer ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_json_cannot_say_is_unscored(value):
    class Wild(Brightness):
        def __call__(self, images, prompts):
            return [Score(value) for _ in prompts]

    with running({"light": Wild()}) as server:
        assert values(server.post([png(picture())])) == [None]


def test_stopping_finishes_what_was_accepted_and_takes_nothing_new():
    with one_in_work() as (server, gate, held, pool):
        waiting = pool.submit(server.post, [png(picture(2))] * 3)
        wait_for(lambda: server.batcher.depth == 4)
        half_sent = server.raw((HEAD.format(50) + "\r\n--xx").encode())
        server.server.drain()
        for response in (server.post([png(picture())]), server.get("/readyz")):
            assert "stopping" in failure(response, 503).error
            assert "retry-after" in response.headers
        assert server.get("/healthz").status_code == 200
        gate.opened.set()
        assert len(values(held.result())) == 1
        assert len(values(waiting.result())) == 3
        half_sent.close()
        wait_for(lambda: not server.server.servers[0].is_serving())


def test_loading_is_not_ready_and_says_so():
    loading = threading.Event()

    def build():
        from realgen.apps._batching import Served

        assert loading.wait(10)
        return {"light": Served(Brightness(), "light@1")}

    with running({}, build=build) as server:
        assert server.get("/healthz").status_code == 200
        for response in (server.get("/readyz"), server.get("/v1/scorers"), server.post([png(picture())])):
            assert "loading" in failure(response, 503).error
            assert response.headers["retry-after"] == "5"
        loading.set()
        wait_for(lambda: server.get("/readyz").status_code == 200)
        assert values(server.post([png(picture())]))


def test_nobody_scores_for_a_caller_who_has_gone():
    with one_in_work(batch=1) as (server, gate, held, _):
        with pytest.raises(httpx.ReadTimeout):
            server.post([png(picture())] * 2, timeout=0.3)
        wait_for(lambda: server.batcher.depth == 1)
        gate.opened.set()
        assert values(held.result())
        assert values(server.post([png(picture())]))
        assert gate.batches == [1, 1]


def test_many_long_bodies_cannot_fill_the_memory():
    limits = wire.Limits(max_body_bytes=50_000, max_image_bytes=50_000)
    with running({"light": Brightness()}, limits=limits, body_seconds=10) as server:
        lines = []
        for _ in range(4):
            body = b'--xx\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + b"x" * 49_000
            lines.append(server.raw((HEAD.format(49_999) + "\r\n").encode() + body))
        time.sleep(0.2)
        response = server.post([b"x" * 40_000])
        assert "bytes are under way" in failure(response, 429).error
        for line in lines:
            line.close()
        wait_for(lambda: server.post([png(picture())]).status_code == 200)


def test_metrics_count(plain):
    def read(name):
        text = plain.get("/metrics").text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = ("realgen_images_total", 'realgen_requests_total{status="200"}', 'realgen_rejected_total{status="404"}')
    names += ('realgen_scores_total{outcome="scored",scorer="red"}', "realgen_request_seconds_count")
    before = [read(name) for name in names]
    plain.post([png(picture())] * 3, scorers=["red"])
    plain.post([png(picture())], scorers=["blue"])
    assert [after - one for after, one in zip([read(name) for name in names], before, strict=True)] == [3, 1, 1, 3, 1]
    assert read("realgen_queue_depth") == 0
    assert plain.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_curl_example_of_the_docs_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs/server.md").read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "curl" in block)
    for name in ("one.png", "two.jpg"):
        picture().save(tmp_path / name)
    with running({"semantic": Brightness(), "residual": Redness()}, token=TOKEN) as server:
        command = example.replace("http://127.0.0.1:8600", server.url)
        environment = {"PATH": "/usr/bin:/bin", "REALGEN_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
    answer = wire.ScoreResponse.model_validate_json(done.stdout.splitlines()[-1])
    assert {name: len(scores) for name, scores in answer.scores.items()} == {"semantic": 2, "residual": 2}
