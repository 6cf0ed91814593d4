"""uvicorn around the application: connections that dawdle are closed, and a signal lets accepted work finish."""

import asyncio
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from realgen.apps._batching import Batcher
from realgen.core.errors import InputError

_HEAD_SECONDS = 10.0  # to send a request's head
_CLOSING_SECONDS = 5  # for the last answers to be read
_MAX_CONNECTIONS = 512


class PatientProtocol(H11Protocol):
    """HTTP/1.1 where a connection that does not finish the head of a request in time is closed."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait on where the head is not complete; the time does not begin anew with every byte."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Server(uvicorn.Server):
    """uvicorn that drains: after a first signal new work gets 503 and accepted work is finished, for `grace` seconds.

    A second signal does not wait.
    """

    def __init__(
        self, config: uvicorn.Config, batcher: Batcher, *, grace: float, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(config)
        self._batcher, self._grace, self._on_ready = batcher, grace, on_ready
        self._until: float | None = None
        self._was_ready = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second."""
        del frame
        if self._until is None:
            self.drain()
        else:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT

    def drain(self) -> None:
        """Take no new work and stop when what was accepted is done."""
        self._until = time.monotonic() + self._grace
        self._batcher.drain()

    async def on_tick(self, counter: int) -> bool:
        """Look whether it is time to stop."""
        if self._batcher.is_ready and not self._was_ready:
            self._was_ready = True
            self._on_ready()
        is_drained = self._until is not None and (self._batcher.depth == 0 or time.monotonic() > self._until)
        if is_drained or not self._batcher.is_alive:  # never set to False: a signal may have come in between
            self.should_exit = True
        return await super().on_tick(counter)


def make_server(
    app: Any, batcher: Batcher, *, grace: float = 60.0, on_ready: Callable[[], None] = lambda: None
) -> Server:
    """A server for `app`, to be run on a socket of ours."""
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        lifespan="off",
        log_level="error",  # a stranger's garbage is no line in the log
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    return Server(config, batcher, grace=grace, on_ready=on_ready)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; InputError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot listen on {host}:{port}: {said}", hint="choose another --host or --port") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name other than localhost counts as reachable."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
