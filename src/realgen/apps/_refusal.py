"""A call that is not answered: its status, its words, when to come again, and the answer that says so."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from realgen.core import wire
from realgen.core.errors import RealGenError

_LINGER_SECONDS, _LINGER_BYTES = 2.0, 64 * 2**20


class RefusalError(RealGenError):
    """What the server says no to: an HTTP status with what happened, a hint, and seconds to wait where that helps."""

    def __init__(self, status: int, message: str, *, hint: str = "", retry_after: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.retry_after = retry_after


class Refused(JSONResponse):
    """A RefusalError as an answer. Where the body was not read to its end, the connection is closed after it.

    What the client is still sending is read away for a moment before that: closed at once, the line would break while
    it writes, and it might never see the answer.
    """

    def __init__(self, refusal: RefusalError, *, is_body_read: bool = True) -> None:
        headers = {} if is_body_read else {"Connection": "close"}
        if refusal.retry_after is not None:
            headers["Retry-After"] = str(refusal.retry_after)
        if refusal.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        said = wire.Failure(error=refusal.message, hint=refusal.hint)
        super().__init__(said.model_dump(), status_code=refusal.status, headers=headers)
        self._is_body_read = is_body_read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, then read what is left."""
        asks_for_leave = any(name == b"expect" for name, _ in scope["headers"])  # it sends nothing before an answer
        if self._is_body_read or asks_for_leave:
            await super().__call__(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        await _read_away(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _read_away(receive: Receive) -> None:
    left = _LINGER_BYTES
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
