"""Asks the servers that models run on: patient with a busy one, many requests at once. Knows no model's answers."""

import contextlib
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2 as httpx

from realgen.core.errors import ConfigError

RETRIED = frozenset({408, 429, *range(500, 600)})
"""Statuses that another attempt may mend."""

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds

Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt failed, whether nobody was there, and how many seconds the server asks to be left alone."""

    message: str
    is_absent: bool = False
    wait: float = 0.0


def check_address(url: str) -> None:
    """Raise ValueError, as pydantic takes it, where `url` is no address of a server."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no address: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ValueError(f"{url!r} must begin with http:// or https:// and a host, such as http://localhost:8000/v1")


def chat_address(url: str) -> str:
    """The address of an OpenAI-compatible server up to its version; ValueError where it is none."""
    check_address(url)
    return url.rstrip("/").removesuffix("/chat/completions")


def bearer(key: str, *, variable: str) -> dict[str, str]:
    """The header that carries an API key, from the environment's `variable`; ConfigError where it cannot be one."""
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{variable} holds characters that no key has", hint=f"set {variable} again")
    return {"Authorization": f"Bearer {key}"}


def open_client(
    headers: Mapping[str, str], *, timeout: float = 5.0, certificates: ssl.SSLContext | None = None
) -> httpx.Client:
    """A client by the proxy, and without `certificates` by those, that the environment names; ConfigError if bad."""
    with _environment():
        return httpx.Client(headers=dict(headers), timeout=timeout, verify=certificates or True)


def load_certificates() -> ssl.SSLContext:
    """What clients trust, to be loaded once for many of them; ConfigError where the environment names bad ones."""
    with _environment():
        return httpx.create_ssl_context()


def post(client: httpx.Client, url: str, body: Mapping[str, Any], *, retries: int) -> httpx.Response | Trouble:
    """The answer to `body` as JSON, or the last trouble where the line broke or the server was busy each time."""
    answer = _attempt(client, url, body)
    for attempt in range(retries):
        if not isinstance(answer, Trouble):
            break
        time.sleep(min(max(answer.wait, _FIRST_WAIT * 2**attempt), _LONGEST_WAIT))
        answer = _attempt(client, url, body)
    return answer


def text_of(response: httpx.Response) -> str:
    """The body as text, whatever it says of its encoding."""
    return response.content.decode("utf-8", "replace")


@contextlib.contextmanager
def asking(ask: Callable[[Item], Answer], items: Sequence[Item], *, concurrent: int) -> Iterator[list[Future[Answer]]]:
    """What `ask` will say of each item, `concurrent` at a time; whoever leaves, by Ctrl-C too, waits for none."""
    futures = [Future[Answer]() for _ in items]
    waiting = queue.SimpleQueue[tuple[Future[Answer], Item]]()
    for pair in zip(futures, items, strict=True):
        waiting.put(pair)

    def work() -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                future, item = waiting.get_nowait()
                try:
                    future.set_result(ask(item))
                except Exception as error:  # noqa: BLE001  raised again by result()
                    future.set_exception(error)

    for _ in range(min(concurrent, len(items))):
        threading.Thread(target=work, daemon=True).start()  # the program's end waits for no daemon
    try:
        yield futures
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                waiting.get_nowait()


def ask_each(ask: Callable[[Item], Answer], items: Sequence[Item], *, concurrent: int) -> list[Answer]:
    """`ask` of each item, `concurrent` at a time, in order; the first error waits for no other."""
    with asking(ask, items, concurrent=concurrent) as futures:
        for future in as_completed(futures):
            future.result()
    return [future.result() for future in futures]


def _attempt(client: httpx.Client, url: str, body: Mapping[str, Any]) -> httpx.Response | Trouble:
    try:
        response = client.post(url, json=body)
    except httpx.RequestError as error:
        is_absent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
        return Trouble(" ".join(str(error).split()) or type(error).__name__, is_absent=is_absent)
    if response.status_code in RETRIED:
        wished = response.headers.get("retry-after", "")
        return Trouble(f"status {response.status_code}", wait=float(wished) if wished.isdecimal() else 0.0)
    return response


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        hint = "correct ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, SSL_CERT_FILE or SSL_CERT_DIR, or unset them"
        raise ConfigError(f"no connection can be made as the environment says: {error}", hint=hint) from error
