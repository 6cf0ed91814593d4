"""Several servers that serve the same: which to ask next, how long to wait, what an answer means. Knows no images.

A server that failed is left alone for a while, longer each time, so that another one is asked at once.
"""

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import httpx2 as httpx
from pydantic import ValidationError

from realgen.core.spec import Spec
from realgen.core.wire import Failure
from realgen.hub.servers import RETRIED

RecordType = TypeVar("RecordType", bound=Spec)
Answered = TypeVar("Answered")

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 20.0  # seconds
_CONNECT_SECONDS = 5.0
_LONGEST_ANSWER = 16 * 2**20  # bytes
_log = logging.getLogger("realgen.remote")


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an attempt failed, how many seconds the server asks to be left alone, and whether asking again is useless."""

    message: str
    wait: float = 0.0
    is_final: bool = False


class Replicas:
    """The servers, with what is known of their health. Used by several threads at once."""

    def __init__(self, urls: Sequence[str], *, retries: int) -> None:
        self._retries = retries
        self._random = random.Random()  # spreads waits and first choices; no score depends on it
        self._lock = threading.Lock()
        self._asked = itertools.count()
        self._health = {url: _Health() for url in self._random.sample(list(urls), len(urls))}

    def ask(self, attempt: Callable[[str], Answered | Trouble], *, until: float) -> Answered | Trouble:
        """The first answer of `attempt(url)` before `until` (monotonic), or the last trouble.

        Every server is asked up to `retries` times again: the one with the least rest to come first, in turns.
        """
        failures = dict.fromkeys(self._health, 0)
        said, is_final = "no server was asked", False
        while failures:
            url, wait = self._next(failures)
            if time.monotonic() + wait >= until:
                return Trouble(f"{said}; no time is left to ask again")
            time.sleep(wait)
            result = attempt(url)
            self._learn(url, result)
            if not isinstance(result, Trouble):
                return result
            said, is_final = f"{url}: {result.message}", result.is_final
            _log.warning(said)
            failures[url] += 1
            if is_final or failures[url] > self._retries:
                del failures[url]
        return Trouble(said, is_final=is_final)

    def _next(self, failures: dict[str, int]) -> tuple[str, float]:
        """The server to ask, and seconds to wait first: none for one that has not failed yet in this call."""
        with self._lock:
            now = time.monotonic()
            rests = {url: max(self._health[url].free_at - now, 0.0) for url in failures}
            url = min(failures, key=lambda url: (rests[url], self._health[url].last_asked))
            self._health[url].last_asked = next(self._asked)
        return url, rests[url] if failures[url] else 0.0

    def _learn(self, url: str, result: object) -> None:
        with self._lock:
            health = self._health[url]
            if not isinstance(result, Trouble):
                health.num_failures, health.free_at = 0, 0.0
                return
            backoff = min(_FIRST_WAIT * 2**health.num_failures, _LONGEST_WAIT)
            health.num_failures = min(health.num_failures + 1, 16)
            health.free_at = time.monotonic() + result.wait + backoff * self._random.uniform(0.5, 1.0)


@dataclass(slots=True)
class _Health:
    num_failures: int = 0
    """Failures in a row, of all calls."""

    free_at: float = 0.0
    """When it may be asked again (monotonic)."""

    last_asked: int = -1


def exchange(
    client: httpx.Client, request: httpx.Request, record: type[RecordType], *, until: float
) -> RecordType | Trouble:
    """The record that a server answers with by `until` (monotonic), or what stood in its way."""
    left = max(until - time.monotonic(), 0.001)
    timeout = httpx.Timeout(left, connect=min(left, _CONNECT_SECONDS))
    request.extensions["timeout"] = timeout.as_dict()
    try:
        response = client.send(request, stream=True)
        try:
            return _read(response, record, until=until)
        finally:
            response.close()
    except httpx.RequestError as error:
        return Trouble(" ".join(f"{type(error).__name__} {error}".split()))


def _read(response: httpx.Response, record: type[RecordType], *, until: float) -> RecordType | Trouble:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > _LONGEST_ANSWER:
            return Trouble(f"an answer of more than {_LONGEST_ANSWER:,} bytes")
        if time.monotonic() > until:
            return Trouble("the answer did not end in time")
    status = response.status_code
    if status == 200:
        try:
            return record.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            return Trouble(f"an answer that is no {record.__name__}: {where or 'value'}: {first['msg'][:200]}")
    wished = response.headers.get("retry-after", "")
    return Trouble(
        f"status {status}: {_said(content)}",
        wait=float(wished) if wished.isdecimal() else 0.0,
        is_final=400 <= status < 500 and status not in RETRIED,
    )


def _said(content: bytearray) -> str:
    try:
        return Failure.model_validate_json(content).error[:200]
    except ValidationError:
        return " ".join(content[:200].decode("utf-8", "replace").split())
