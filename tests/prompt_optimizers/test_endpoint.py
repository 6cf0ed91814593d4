import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from realgen.core.errors import ConfigError, ModelError
from realgen.core.plugins import configure
from realgen.core.spec import Machine
from realgen.hub import servers
from realgen.prompt_optimizers.endpoint import Options, build


class Server(ThreadingHTTPServer):
    """Answers with the statuses in `script`, then with 200; keeps what it was asked."""

    script: list[int]
    asked: list[tuple[str, dict[str, str], dict[str, Any]]]
    body: str | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, dict(self.headers), asked))
        status = self.server.script.pop(0) if self.server.script else 200
        prompt = asked["messages"][-1]["content"]
        content = f"Sure, here it is: {prompt}, soft light, seed {asked['seed']}."
        answer = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        payload = (self.server.body or json.dumps(answer)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(servers, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("REALGEN_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    running = Server(("127.0.0.1", 0), Handler)
    running.script, running.asked, running.body = [], [], None
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def test_each_prompt_is_asked_with_its_own_seed_and_answers_keep_their_order(server: Server) -> None:
    rewrites = build(Options(base_url=server.url, model="m"), Machine())(["a fox", "a sea", "a city"], seeds=[3, 4, 5])
    assert [rewrite.text for rewrite in rewrites] == [
        "a fox, soft light, seed 3.",
        "a sea, soft light, seed 4.",
        "a city, soft light, seed 5.",
    ]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["model"] == "m"
    assert body["messages"][0]["role"] == "system"
    assert "Authorization" not in headers


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("REALGEN_API_KEY", "secret\n")
    build(Options(base_url=server.url, model="m"), Machine())(["a fox"], seeds=[0])
    assert server.asked[0][1]["Authorization"] == "Bearer secret"
    monkeypatch.setenv("REALGEN_API_KEY", "sec\nret")
    with pytest.raises(ConfigError, match="characters") as caught:
        build(Options(base_url=server.url, model="m"), Machine())(["a fox"], seeds=[0])
    assert "ret" not in str(caught.value).replace("characters", "")


def test_a_busy_server_is_asked_again(server: Server) -> None:
    server.script = [429, 503, 408]
    rewrites = build(Options(base_url=server.url, model="m", retries=3), Machine())(["a fox"], seeds=[1])
    assert rewrites[0].text == "a fox, soft light, seed 1."
    assert len(server.asked) == 4


def test_retries_have_an_end(server: Server) -> None:
    server.script = [500] * 9
    with pytest.raises(ModelError, match="in 3 attempts: status 500"):
        build(Options(base_url=server.url, model="m", retries=2), Machine())(["a fox"], seeds=[1])
    assert len(server.asked) == 3


@pytest.mark.parametrize(("status", "message"), [(401, "refused the key"), (404, "status 404"), (400, "status 400")])
def test_a_refusal_is_not_retried(server: Server, status: int, message: str) -> None:
    server.script = [status]
    with pytest.raises(ModelError, match=message):
        build(Options(base_url=server.url, model="m"), Machine())(["a fox"], seeds=[1])
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", ["<html>", "{}", '{"choices": []}', "[1]", '{"choices": [{"message": null}]}'])
def test_something_else_than_a_chat_completion_is_said_to_be_so(server: Server, body: str) -> None:
    server.body = body
    with pytest.raises(ModelError, match="something else"):
        build(Options(base_url=server.url, model="m"), Machine())(["a fox"], seeds=[1])


def test_an_answer_without_words_keeps_the_prompt(server: Server) -> None:
    server.body = '{"choices": [{"message": {"content": null}}]}'
    rewrite = build(Options(base_url=server.url, model="m"), Machine())(["a fox"], seeds=[1])[0]
    assert rewrite.text == "a fox"
    assert "empty" in rewrite.reason


def test_a_dead_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelError, match=r"no answer from http://127\.0\.0\.1:9/v1") as caught:
        build(Options(base_url="http://127.0.0.1:9/v1", model="m", retries=1), Machine())(["a fox"], seeds=[1])
    assert "base_url" in caught.value.hint


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host/v1", "http://host:port/v1", "http:///v1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        configure("prompt_optimizers", "endpoint", {"base_url": address, "model": "m"})


def test_the_full_address_is_understood() -> None:
    assert Options(base_url="http://h/v1/chat/completions", model="m").base_url == "http://h/v1"


def test_an_answer_nested_without_end_is_no_chat_completion(server: Server) -> None:
    server.body = "[" * 200_000
    with pytest.raises(ModelError, match="something else than a chat completion"):
        build(Options(base_url=server.url, model="m"), Machine())(["a cat on a wall"], seeds=[0])
