"""Asking servers: what the environment says wrongly is one line, and nobody waits for what nobody wants any more."""

import threading
import time

import httpx2 as httpx
import pytest

from realgen.core.errors import ConfigError
from realgen.hub.servers import ask_each, chat_address, load_certificates, open_client, text_of


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("ALL_PROXY", "socks://127.0.0.1:9"),
        ("ALL_PROXY", "http://127.0.0.1:port"),
        ("SSL_CERT_FILE", "/nowhere.pem"),
    ],
)
def test_a_proxy_or_certificates_that_cannot_be_used_are_named(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match="as the environment says") as caught:
        open_client({})
    assert variable in caught.value.hint


def test_certificates_of_the_environment_are_read_once(monkeypatch):
    certificates = load_certificates()
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    open_client({}, certificates=certificates).close()
    with pytest.raises(ConfigError):
        load_certificates()


@pytest.mark.parametrize("charset", ["rot13", "nonsense", "utf-8", "utf-16"])
def test_a_body_is_text_whatever_it_says_it_is(charset):
    response = httpx.Response(404, headers={"content-type": f"text/html; charset={charset}"}, content=b"\xffno page")
    assert text_of(response) == "\ufffdno page"


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host/v1", "http://host:port/v1", "http:///v1", ""])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(ValueError, match=r"address|begin with"):
        chat_address(address)


def test_answers_keep_the_order_of_what_was_asked():
    def ask(number):
        time.sleep(0.01 * (5 - number))
        return number * number

    assert ask_each(ask, range(5), concurrent=3) == [0, 1, 4, 9, 16]
    assert ask_each(ask, [], concurrent=3) == []


def test_no_more_are_asked_at_once_than_may_be():
    under_way, most, lock = [], [], threading.Lock()

    def ask(number):
        with lock:
            under_way.append(number)
            most.append(len(under_way))
        time.sleep(0.005)
        with lock:
            under_way.remove(number)

    ask_each(ask, range(12), concurrent=3)
    assert 1 < max(most) <= 3


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_waits_for_no_other_and_ends_what_was_not_begun(kind, monkeypatch):
    asked, released = [], threading.Event()

    def ask(number):
        asked.append(number)
        if number == 0:
            raise ValueError("no")
        released.wait(30)

    if kind is KeyboardInterrupt:
        monkeypatch.setattr("realgen.hub.servers.as_completed", _interrupted)
    began = time.monotonic()
    with pytest.raises(kind):
        ask_each(ask, range(100), concurrent=2)
    assert time.monotonic() - began < 10
    num_asked = len(asked)
    released.set()
    time.sleep(0.05)
    assert len(asked) == num_asked < 5


def _interrupted(futures):
    time.sleep(0.05)
    raise KeyboardInterrupt
