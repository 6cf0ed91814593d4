import os
import signal
import subprocess
import sys
import threading

import httpx2 as httpx
import pytest

from realgen.apps import _serve
from realgen.core import wire
from realgen.core.errors import ConfigError, ModelError
from serving import Brightness, picture, png, running

RECIPE = "kind: score\nscorers: {light: {name: remote, options: {urls: [URL], scorer: light, retries: 0}}}\n"
TOKEN = "a-token-of-some-length"


@pytest.fixture
def recipe(tmp_path):
    def write(url):
        file = tmp_path / "recipe.yaml"
        file.write_text(RECIPE.replace("URL", url))
        return str(file)

    return write


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_loopback_needs_no_token(monkeypatch, host):
    monkeypatch.delenv("REALGEN_TOKEN", raising=False)
    assert _serve.token_for(host) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "host.example"])
def test_other_addresses_need_one(monkeypatch, host):
    monkeypatch.delenv("REALGEN_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="REALGEN_TOKEN is not set") as caught:
        _serve.token_for(host)
    assert "openssl" in caught.value.hint
    monkeypatch.setenv("REALGEN_TOKEN", TOKEN + "\n")
    assert _serve.token_for(host) == TOKEN


@pytest.mark.parametrize(
    "token", ["short", "x" * 15, "a token with spaces in it", "ümläüte-are-no-headers", "a" * 20 + "\tb"]
)
def test_a_weak_token_is_refused_and_not_printed(monkeypatch, token):
    monkeypatch.setenv("REALGEN_TOKEN", token)
    with pytest.raises(ConfigError, match="at least 16") as caught:
        _serve.token_for("127.0.0.1")
    assert token not in caught.value.message + caught.value.hint


def test_only_recipes_with_scorers_are_served(tmp_path):
    with pytest.raises(ConfigError, match="has no scorers"):
        _serve.load("tiny", None, ["scorers=null", "reward=null"])
    with pytest.raises(ConfigError, match="has no scorers"):
        _serve.load("flow-tiny", None, [])


def test_a_call_must_fit_the_queue(recipe):
    with pytest.raises(ConfigError, match="--max-images 9 do not fit --queue 8"):
        _serve.serve(recipe=recipe("http://127.0.0.1:9"), max_images=9, queue=8)


def test_what_is_not_installed_is_named(recipe, monkeypatch):
    monkeypatch.setattr(_serve, "_NEEDED", ("uvicorn", "no_such_package"))
    with pytest.raises(ConfigError, match="needs no_such_package") as caught:
        _serve.serve(recipe=recipe("http://127.0.0.1:9"))
    assert "realgen[serve]" in caught.value.hint


def test_a_scorer_that_cannot_be_loaded_ends_the_server_with_its_error(recipe, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelError, match=r"no answer from http://127\.0\.0\.1:9"):
        _serve.serve(recipe=recipe("http://127.0.0.1:9"), port=0)


def test_the_command_serves_and_stops_in_good_order(recipe):
    """A real process, whose scorer is another server's: what it serves is what that one says."""
    command = "import sys; from realgen.apps import _serve; import typer; typer.run(_serve.serve)"
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "REALGEN_TOKEN": ""}
    with running({"light": Brightness()}) as behind:
        arguments = ["--recipe", recipe(behind.url), "--port", "0", "--max-images", "5", "machine.batch=3"]
        process = subprocess.Popen(
            [sys.executable, "-c", command, *arguments], stderr=subprocess.PIPE, text=True, env=environment
        )
        guard = threading.Timer(240, process.kill)
        guard.start()
        try:
            said = process.stderr.readline()
            url = said.split(" on ")[1].split(",")[0]
            assert said == f"realgen: light on {url}, loading\n"
            assert process.stderr.readline() == "realgen: ready\n"
            with httpx.Client(trust_env=False, base_url=url) as client:
                about = wire.ScorersResponse.model_validate_json(client.get("/v1/scorers").content)
                assert (about.batch, about.limits.max_images) == (3, 5)
                assert about.scorers["light"].info == Brightness.info
                asked = wire.ScoreRequest(scorers=("light",), prompts=("a",)).model_dump_json()
                files = [("image", ("a", png(picture())))]
                scores = client.post("/v1/score", data={"request": asked}, files=files).json()["scores"]["light"]
            assert scores[0]["value"] == Brightness()([picture()], ["a"])[0].value
            process.send_signal(signal.SIGTERM)
            assert process.stderr.read() == "realgen: stopped\n"
            assert process.wait(20) == 0
        finally:
            guard.cancel()
            process.kill()
            process.wait()
