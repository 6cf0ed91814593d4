import asyncio
import json

import pytest

from realgen.apps import _refusal
from realgen.apps._refusal import RefusalError, Refused


def answered(refusal, *, incoming=(), headers=(), **options):
    """What was sent, and how many messages of the body were read."""
    sent, rest = [], list(incoming)

    async def receive():
        if not rest:
            await asyncio.sleep(60)
        return rest.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(Refused(refusal, **options)({"type": "http", "headers": list(headers)}, receive, send))
    return sent, len(incoming) - len(rest)


def chunk(*, more=True, num=10):
    return {"type": "http.request", "body": b"x" * num, "more_body": more}


def test_an_answer_has_a_status_and_words():
    sent, _ = answered(RefusalError(429, "full", hint="wait", retry_after=7))
    assert sent[0]["status"] == 429
    assert (b"retry-after", b"7") in sent[0]["headers"]
    assert json.loads(sent[1]["body"]) == {"error": "full", "hint": "wait"}
    assert b"connection" not in dict(sent[0]["headers"])


def test_a_missing_token_is_asked_for():
    sent, _ = answered(RefusalError(401, "who?"))
    assert (b"www-authenticate", b"Bearer") in sent[0]["headers"]


def test_what_is_still_coming_is_read_away_after_the_answer():
    incoming = [chunk(), chunk(), chunk(more=False), chunk()]
    sent, num_read = answered(RefusalError(413, "long"), incoming=incoming, is_body_read=False)
    assert (b"connection", b"close") in sent[0]["headers"]
    assert [message.get("more_body") for message in sent[1:]] == [True, False]
    assert num_read == 3


def test_a_client_that_waits_for_leave_is_not_given_it():
    sent, num_read = answered(
        RefusalError(413, "long"), incoming=[chunk()], headers=[(b"expect", b"100-continue")], is_body_read=False
    )
    assert num_read == 0
    assert json.loads(sent[1]["body"])["error"] == "long"


@pytest.mark.parametrize("incoming", [[chunk()] * 99, [{"type": "http.disconnect"}], []])
def test_reading_away_has_an_end(monkeypatch, incoming):
    monkeypatch.setattr(_refusal, "_LINGER_BYTES", 55)
    monkeypatch.setattr(_refusal, "_LINGER_SECONDS", 0.05)
    sent, num_read = answered(RefusalError(413, "long"), incoming=incoming, is_body_read=False)
    assert num_read <= 6
    assert sent[-1]["more_body"] is False
