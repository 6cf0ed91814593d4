import logging
import time

import httpx2 as httpx
import pytest

from realgen.core.wire import Failure
from realgen.scorers import _replicas
from realgen.scorers._replicas import Replicas, Trouble, exchange


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were slept, on a clock that only sleeping moves."""
    slept = []
    monkeypatch.setattr(_replicas.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(_replicas.time, "sleep", slept.append)
    return slept


def failing(*answers):
    """An attempt that gives `answers` in turn, and the addresses that it was given."""
    asked, rest = [], iter(answers)

    def attempt(url):
        asked.append(url)
        return next(rest, Trouble("again"))

    return attempt, asked


def test_waits_double_with_a_jitter_up_to_a_bound(waits):
    attempt, asked = failing()
    trouble = Replicas(["a"], retries=9).ask(attempt, until=1e9)
    assert trouble.message == "a: again"
    assert asked == ["a"] * 10
    for index, wait in enumerate(waits[1:]):
        longest = min(0.5 * 2**index, 20)
        assert longest / 2 <= wait <= longest
    assert len(set(waits[1:])) == 9


def test_the_first_attempt_never_waits(waits):
    replicas = Replicas(["a"], retries=3)
    replicas.ask(failing()[0], until=1e9)
    before = sum(waits)
    assert replicas.ask(failing("yes")[0], until=1e9) == "yes"
    assert sum(waits) == before


def test_every_replica_is_asked_before_one_is_asked_again(waits):
    attempt, asked = failing()
    Replicas(["a", "b", "c"], retries=1).ask(attempt, until=1e9)
    assert sorted(asked[:3]) == ["a", "b", "c"]
    assert sorted(asked[3:]) == ["a", "b", "c"]
    assert waits[:3] == [0, 0, 0]


def test_replicas_take_turns(waits):
    replicas = Replicas(["a", "b"], retries=0)
    attempt, asked = failing(*"12345678")
    for _ in range(8):
        replicas.ask(attempt, until=1e9)
    assert asked.count("a") == asked.count("b") == 4


def test_the_first_choice_differs_between_clients():
    def first_choice():
        attempt, asked = failing("yes")
        Replicas(["a", "b", "c"], retries=0).ask(attempt, until=1e9)
        return asked[0]

    assert len({first_choice() for _ in range(60)}) == 3


def test_one_that_failed_rests_while_the_other_works(waits):
    replicas = Replicas(["a", "b"], retries=1)
    for _ in range(2):
        replicas.ask(lambda url: Trouble("down", wait=30) if url == "a" else "yes", until=1e9)
    attempt, asked = failing(*"1234")
    for _ in range(4):
        replicas.ask(attempt, until=1e9)
    assert asked == ["b"] * 4
    waits.append(60)
    attempt, asked = failing(*"67")
    for _ in range(2):
        replicas.ask(attempt, until=1e9)
    assert set(asked) == {"a", "b"}


def test_a_final_refusal_is_not_asked_again_but_others_are(waits):
    attempt = lambda url: Trouble("no", is_final=True) if url == "a" else "yes"  # noqa: E731
    for _ in range(4):
        assert Replicas(["a", "b"], retries=5).ask(attempt, until=1e9) == "yes"
    trouble = Replicas(["a"], retries=5).ask(attempt, until=1e9)
    assert trouble == Trouble("a: no", is_final=True)


def test_what_is_asked_for_is_added_to_the_wait(waits):
    Replicas(["a"], retries=1).ask(failing(Trouble("full", wait=7))[0], until=1e9)
    assert 7.25 <= waits[1] <= 7.5


def test_no_wait_goes_beyond_the_budget(waits):
    trouble = Replicas(["a"], retries=99).ask(failing()[0], until=5)
    assert sum(waits) < 5
    assert trouble.message == "a: again; no time is left to ask again"
    assert Replicas(["a"], retries=1).ask(failing("yes")[0], until=0).message.startswith("no server was asked")


def test_troubles_are_not_silent(waits, caplog):
    with caplog.at_level(logging.WARNING, "realgen.remote"):
        Replicas(["a"], retries=1).ask(failing()[0], until=1e9)
    assert [record.getMessage() for record in caplog.records] == ["a: again", "a: again"]


def exchanged(answer, **options):
    with httpx.Client(transport=httpx.MockTransport(answer), verify=False) as client:
        return exchange(client, client.build_request("GET", "http://a"), Failure, until=time.monotonic() + 5, **options)


def test_a_record_is_read():
    assert exchanged(lambda _: httpx.Response(200, json={"error": "none"})) == Failure(error="none")


@pytest.mark.parametrize(
    ("status", "is_final"),
    [(400, True), (401, True), (404, True), (422, True), (408, False), (429, False), (500, False)],
)
def test_statuses_are_told_apart(status, is_final):
    trouble = exchanged(lambda _: httpx.Response(status, json={"error": "no"}, headers={"Retry-After": "3"}))
    assert trouble == Trouble(f"status {status}: no", wait=3, is_final=is_final)


@pytest.mark.parametrize("wished", ["soon", "-3", "1.5", "", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_a_wish_that_is_no_number_of_seconds_is_none(wished):
    assert exchanged(lambda _: httpx.Response(503, headers={"Retry-After": wished})).wait == 0


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.RemoteProtocolError("x")]
)
def test_a_broken_line_is_trouble(error):
    def answer(_):
        raise error

    trouble = exchanged(answer)
    assert trouble.message.startswith(type(error).__name__)
    assert not trouble.is_final


def test_what_cannot_be_unpacked_is_trouble():
    answer = lambda _: httpx.Response(200, content=iter([b"junk"]), headers={"Content-Encoding": "gzip"})  # noqa: E731
    assert "DecodingError" in exchanged(answer).message
