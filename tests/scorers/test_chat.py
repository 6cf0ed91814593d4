import math

import numpy as np
import pytest
from PIL import Image

from chat_server import picture, said, serving, weighed
from realgen.core.errors import ConfigError, ModelError
from realgen.core.types import Score
from realgen.hub import servers
from realgen.scorers._answers import Written
from realgen.scorers._chat import Chat, Server

WORDS = ["real", "Real", "fake", "Fake"]
GREY = Image.new("RGB", (4, 3), (9, 9, 9))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(servers, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def brightness(image, body):
    return said(f"{np.asarray(image).mean():.0f}")


@pytest.fixture
def server():
    with serving(brightness) as running:
        yield running


def chat(server, **settings):
    max_pixels = settings.pop("max_pixels", None)
    return Chat(Server(base_url=server.url, **settings), "seer", max_pixels=max_pixels)


def test_each_image_is_sent_whole_and_answers_keep_their_order(server):
    images = [Image.new("RGB", (5 + i, 4), (i, i, i)) for i in range(12)]
    answers = chat(server, concurrent=3).write(images, "what is it?", max_tokens=7)
    assert answers == [Written(str(i)) for i in range(12)]
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body["model"] == "seer"
    assert body["messages"][0]["content"][1] == {"type": "text", "text": "what is it?"}
    assert (body["max_tokens"], body["temperature"]) == (7, 0)
    assert "logprobs" not in body
    sent = {picture(body).size for _, _, body in server.asked}
    assert sent == {image.size for image in images}
    assert chat(server).write([], "?", max_tokens=1) == []


def test_pixels_arrive_unchanged(server):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8))
    chat(server).write([noise], "?", max_tokens=1)
    assert np.array_equal(np.asarray(picture(server.asked[0][2])), np.asarray(noise))


@pytest.mark.parametrize(("size", "expected"), [((200, 100), (79, 39)), ((56, 56), (56, 56)), ((3000, 2), (2168, 1))])
def test_a_larger_image_is_sent_smaller_where_that_is_asked_for(server, size, expected):
    chat(server, max_pixels=56 * 56).write([Image.new("RGB", size)], "?", max_tokens=1)
    sent = picture(server.asked[0][2]).size
    assert sent == expected
    assert sent[0] * sent[1] <= 56 * 56


def test_a_thinking_model_is_limited_with_its_thoughts_and_samples_as_it_likes(server):
    chat(server, thinking=True).write([GREY], "?", max_tokens=99)
    body = server.asked[0][2]
    assert body["max_completion_tokens"] == 99
    assert not body.keys() & {"max_tokens", "temperature"}


def test_the_log_probabilities_of_the_first_token_are_read(server):
    logprobs = {"real": -0.3, "Real": -2.0, "fake": -3.0, "Fake": -4.0, "The": -5.0}
    server.answer = lambda *_: weighed(logprobs)
    weights = chat(server, top_logprobs=5).weigh([GREY], "?", words=WORDS)[0]
    assert weights == {word: logprobs[word] for word in WORDS}
    body = server.asked[0][2]
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 5, 1)


def test_a_word_that_is_not_listed_gets_the_least_that_is(server):
    server.answer = lambda *_: weighed({"real": -0.01, "The": -5.0, " fake": -7.0, "Fake": -9999.0, "It": math.nan})
    weights = chat(server).weigh([GREY], "?", words=WORDS)[0]
    assert weights == {"real": -0.01, "Real": -7.0, "fake": -7.0, "Fake": -7.0}


def test_an_answer_that_begins_with_neither_is_no_answer(server):
    server.answer = lambda *_: weighed({"The": -0.1, " real": -3.0, "REAL": -4.0})
    score = chat(server).weigh([GREY], "?", words=WORDS)[0]
    assert score.value is None
    assert "none of real, Real, fake, Fake" in score.reason
    assert "REAL" in score.reason


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [{"token": "real"}]},
        {"content": [{"token": "real", "logprob": "very", "top_logprobs": []}]},
        {"content": [{"token": "real", "logprob": None, "top_logprobs": []}]},
        {"content": [{"token": "real", "logprob": -1, "top_logprobs": ["real"]}]},
        {"content": [{"token": "real", "logprob": -1, "top_logprobs": 3}]},
        "nonsense",
    ],
)
def test_a_server_without_log_probabilities_is_said_to_be_so(server, logprobs):
    answer = said("real")
    answer["choices"][0]["logprobs"] = logprobs
    server.answer = lambda *_: answer
    score = chat(server).weigh([GREY], "?", words=WORDS)[0]
    assert "no log-probabilities" in score.reason
    server.answer = lambda *_: said("real")
    assert chat(server).weigh([GREY], "?", words=WORDS) == [score]


NONSENSE = ["<html>", "{}", "[1]", "", '{"choices": []}', '{"choices": [{"message": null}]}', "[" * 100_000, "\ud800"]


@pytest.mark.parametrize("body", NONSENSE, ids=range(len(NONSENSE)))
def test_something_else_than_a_completion_leaves_the_image_without_an_answer(server, body):
    server.answer = lambda *_: body.encode("utf-8", "replace").decode()
    for answer in (chat(server).write([GREY], "?", max_tokens=9), chat(server).weigh([GREY], "?", words=WORDS)):
        assert "something else than a chat completion" in answer[0].reason


@pytest.mark.parametrize(
    ("content", "finish", "expected"), [(None, "stop", ("", True)), ("so", "length", ("so", False))]
)
def test_words_and_whether_the_model_ended_them(server, content, finish, expected):
    server.answer = lambda *_: said(content, finish)
    assert chat(server).write([GREY], "?", max_tokens=9) == [Written(*expected)]


def test_a_busy_server_is_asked_again(server):
    server.script = [429, 503, 408]
    assert chat(server).write([GREY], "?", max_tokens=9) == [Written("9")]
    assert len(server.asked) == 4


def test_retries_have_an_end_and_the_other_images_an_answer(server):
    server.script = [500] * 3
    failed, fine = chat(server, retries=2, concurrent=1).write([GREY, GREY], "?", max_tokens=9)
    assert failed == Score(None, reason=f"no answer from {server.url} in 3 attempts: status 500")
    assert fine == Written("9")


def test_the_server_says_how_long_to_wait(server, monkeypatch):
    waits = []
    monkeypatch.setattr(servers.time, "sleep", waits.append)
    server.script, server.headers = [429, 503], {"Retry-After": "7"}
    chat(server).write([GREY], "?", max_tokens=9)
    server.script, server.headers = [429, 429], {"Retry-After": "9999"}
    chat(server).write([GREY], "?", max_tokens=9)
    server.script, server.headers = [429], {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    chat(server).write([GREY], "?", max_tokens=9)
    assert [wait for wait in waits if wait] == [7, 7, 20, 20, 0.001]


def test_a_slow_server_leaves_the_image_without_an_answer(server):
    server.delay = 0.5
    score = chat(server, timeout=0.05, retries=1).write([GREY], "?", max_tokens=9)[0]
    assert "in 2 attempts" in score.reason
    assert "timed out" in score.reason


def test_an_image_that_is_refused_says_why_and_is_not_sent_again(server):
    server.script = [400]
    server.answer = lambda *_: '{"error": "the picture\\n is too large"}'
    assert "status 400" in chat(server).write([GREY], "?", max_tokens=9)[0].reason
    assert len(server.asked) == 1


@pytest.mark.parametrize(("status", "message"), [(401, "refused the key"), (403, "key"), (404, "no model 'seer'")])
def test_what_would_fail_for_every_image_is_an_error(server, status, message):
    server.script = [status]
    with pytest.raises(ModelError, match=message) as caught:
        chat(server).write([GREY], "?", max_tokens=9)
    assert "key_variable" in caught.value.hint or status == 404


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(ModelError, match=r"no answer from http://127\.0\.0\.1:9/v1 in 2 attempts") as caught:
        Chat(Server(base_url="http://127.0.0.1:9/v1", retries=1), "seer").write([GREY] * 3, "?", max_tokens=9)
    assert "base_url" in caught.value.hint


def test_the_key_comes_from_the_variable_that_is_named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("SEER_KEY", "secret\n")
    chat(server, key_variable="SEER_KEY").write([GREY], "?", max_tokens=9)
    chat(server).write([GREY], "?", max_tokens=9)
    assert server.asked[0][1]["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.asked[1][1]


@pytest.mark.parametrize(
    ("key", "message"), [(None, "holds no API key"), (" ", "no API key"), ("se\ncret", "characters")]
)
def test_a_key_that_is_missing_or_broken_is_said_before_anything_is_drawn(server, monkeypatch, key, message):
    monkeypatch.delenv("SEER_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SEER_KEY", key)
    with pytest.raises(ConfigError, match=message) as caught:
        chat(server, key_variable="SEER_KEY")
    assert "SEER_KEY" in caught.value.message
    assert "cret" not in caught.value.message + caught.value.hint
    assert server.asked == []


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host/v1", "http://host:port/v1", "http:///v1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match="it "):
        Server(base_url=address)


def test_settings_are_checked():
    assert Server(base_url="http://h/v1/chat/completions").base_url == "http://h/v1"
    for wrong in ({"key_variable": "sk-secret"}, {"top_logprobs": 2}, {"timeout": 0}, {"retries": -1}, {"key": "x"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Server(base_url="http://h/v1", **wrong)
