import contextlib
import signal
import socket
import threading
import time

import pytest

from realgen.apps import _running
from realgen.core.errors import InputError
from serving import Brightness, Gate, picture, png, running, wait_for


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: here\r\n"])
def test_a_connection_that_does_not_finish_its_head_is_closed(monkeypatch, begun):
    monkeypatch.setattr(_running, "_HEAD_SECONDS", 0.3)
    with running({"light": Brightness()}) as server, server.raw(begun) as line:
        began = time.monotonic()
        for byte in b"X-Slow: 1":
            try:
                line.sendall(bytes([byte]) if begun else b"")
            except OSError:
                break
            time.sleep(0.05)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(100) == b""
        assert time.monotonic() - began < 3


def test_a_connection_that_waits_for_its_scores_is_kept(monkeypatch):
    monkeypatch.setattr(_running, "_HEAD_SECONDS", 0.2)
    with running({"light": Brightness(seconds=0.8)}) as server:
        assert server.post([png(picture())]).status_code == 200


def test_many_connections_that_say_nothing_block_nobody():
    with running({"light": Brightness()}) as server:
        lines = [server.raw(b"") for _ in range(100)]
        assert server.post([png(picture())]).status_code == 200
        for line in lines:
            line.close()


@pytest.mark.parametrize("garbage", [b"\x00\x01\x02\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00", b"A" * 100_000])
def test_what_is_no_http_is_answered_or_closed_and_harms_nobody(monkeypatch, garbage):
    monkeypatch.setattr(_running, "_HEAD_SECONDS", 0.2)
    with running({"light": Brightness()}) as server:
        with server.raw(garbage) as line, contextlib.suppress(ConnectionResetError):
            assert line.recv(4096)[:12] in (b"", b"HTTP/1.1 400")
        assert server.post([png(picture())]).status_code == 200


def test_a_second_signal_does_not_wait():
    gate = Gate()
    with running({"light": gate}) as server:
        caller = threading.Thread(target=server.raw, args=(b"",), daemon=True)
        caller.start()
        with server.batcher.places(1):
            server.server.handle_exit(signal.SIGTERM, None)
            time.sleep(0.3)
            assert not server.server.should_exit
            server.server.handle_exit(signal.SIGTERM, None)
            assert server.server.should_exit
        gate.opened.set()


def test_work_that_does_not_end_is_not_waited_for_for_ever():
    with running({"light": Brightness()}, grace=0.2) as server, server.batcher.places(1):
        server.server.drain()
        wait_for(lambda: server.server.should_exit)


def test_a_server_without_its_thread_stops():
    with running({"light": Brightness()}) as server:
        server.batcher.stop()
        wait_for(lambda: server.server.should_exit)


def test_readiness_is_told_once():
    told = []
    with running({"light": Brightness()}) as server:
        server.server._on_ready, server.server._was_ready = lambda: told.append(1), False
        time.sleep(0.4)
    assert told == [1]


def test_a_port_that_is_taken_is_said():
    with _running.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            _running.listen("127.0.0.1", port)
        assert "--port" in caught.value.hint
    with pytest.raises(InputError, match="no such host"):
        _running.listen("no such host", 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_is_an_address_too():
    try:
        listening = _running.listen("::1", 0)
    except InputError:
        pytest.skip("no IPv6 loopback here")
    with listening:
        assert listening.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "is_it"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.4", False),
        ("my.machine", False),
        ("localhost.evil.org", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(host, is_it):
    assert _running.is_loopback(host) is is_it
