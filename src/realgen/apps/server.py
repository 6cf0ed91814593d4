"""The scoring server's web application: who may ask, what is taken, what is answered. Knows no models.

POST /v1/score, GET /v1/scorers, /healthz, /readyz, /metrics; docs/server.md describes the wire for a stranger.
"""

import asyncio
import hmac
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import FastAPI, Request, Response
from PIL.Image import Image
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse

from realgen import __version__
from realgen.apps._batching import Answer, Batcher
from realgen.apps._metrics import CONTENT_TYPE, Metered, Metrics
from realgen.apps._receiving import Body, Call, Memory, decode_all
from realgen.apps._refusal import RefusalError, Refused
from realgen.core import wire
from realgen.core.types import Score

_SCORE = "/v1/score"
_GONE = 499  # the client closed the line: nobody reads this


class ScoreServer:
    """What the routes do.

    `token` is what callers must bear, where it is not empty; `body_seconds` is how long a call may take to arrive.
    """

    def __init__(
        self, batcher: Batcher, metrics: Metrics, *, limits: wire.Limits, token: str = "", body_seconds: float = 30.0
    ) -> None:
        self._batcher, self._metrics, self._limits = batcher, metrics, limits
        self._token, self._seconds = token.encode(), body_seconds
        self._memory = Memory(4 * limits.max_body_bytes)

    def authorize(self, request: Request) -> None:
        """A RefusalError where the bearer token is not ours."""
        if not self._token:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_ours = hmac.compare_digest(given.strip().encode(), self._token)
        if scheme.lower() != "bearer" or not is_ours:
            raise RefusalError(
                401, "wrong or no token", hint="send Authorization: Bearer, with the server's REALGEN_TOKEN"
            )

    async def score(self, request: Request) -> Response:
        """POST /v1/score."""
        body = Body(request, limits=self._limits, memory=self._memory)
        try:
            self.authorize(request)
            self._batcher.check()
            call = await body.read(seconds=self._seconds)
            self._check_names(call.asked.scorers)
            with self._batcher.places(len(call.files)):
                self._metrics.images.inc(len(call.files))
                found = await asyncio.to_thread(decode_all, call.files, max_pixels=self._limits.max_pixels)
                answer = await self._scored(call, found, request)
        except RefusalError as refusal:
            return Refused(refusal, is_body_read=body.is_read)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            body.release()
        return _as_json(self._response(call, found, answer))

    async def scorers(self, request: Request) -> Response:
        """GET /v1/scorers."""
        self.authorize(request)
        if not self._batcher.served:
            self._batcher.check(0)
        served = {
            name: wire.ServedScorer.of(served.scorer.info, model=served.model)
            for name, served in self._batcher.served.items()
        }
        return _as_json(
            wire.ScorersResponse(realgen=__version__, scorers=served, limits=self._limits, batch=self._batcher.batch)
        )

    async def ready(self, _request: Request) -> Response:
        """GET /readyz: whether a call would be taken, were there a place in the queue."""
        self._batcher.check(0)
        return PlainTextResponse("ready\n")

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        self.authorize(request)
        self._metrics.depth.set(self._batcher.depth)
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    def _check_names(self, names: Sequence[str]) -> None:
        if unknown := [name for name in names if name not in self._batcher.served]:
            known = ", ".join(sorted(self._batcher.served))
            raise RefusalError(404, f"no scorer {unknown[0][:40]!r} here", hint=f"known: {known}")

    async def _scored(self, call: Call, found: Sequence[Image | str], request: Request) -> Answer:
        readable = [index for index, image in enumerate(found) if not isinstance(image, str)]
        if not readable:
            return {name: [] for name in call.asked.scorers}
        answer = self._batcher.submit(
            [image for image in found if not isinstance(image, str)],
            [call.asked.prompts[index] for index in readable],
            call.asked.scorers,
        )
        return await _unless_gone(answer, request)

    def _response(self, call: Call, found: Sequence[Image | str], answer: Answer) -> wire.ScoreResponse:
        names = call.asked.scorers
        return wire.ScoreResponse(
            scores={name: _in_place(found, answer[name]) for name in names},
            models={name: self._batcher.served[name].model for name in names},
        )


def create_app(
    batcher: Batcher, metrics: Metrics, *, limits: wire.Limits, token: str = "", body_seconds: float = 30.0
) -> FastAPI:
    """The application around a batcher that somebody else starts and stops."""
    server = ScoreServer(batcher, metrics, limits=limits, token=token, body_seconds=body_seconds)
    app = FastAPI(title="realgen", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route(_SCORE, server.score, methods=["POST"])
    app.add_api_route("/v1/scorers", server.scorers)
    app.add_api_route("/readyz", server.ready)
    app.add_api_route("/healthz", _healthy)
    app.add_api_route("/metrics", server.metrics)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(HTTPException, _unknown)
    app.add_middleware(Metered, metrics=metrics, path=_SCORE)
    return app


async def _healthy() -> Response:
    """GET /healthz: whether the process answers at all."""
    return PlainTextResponse("ok\n")


async def _refused(_request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, RefusalError)
    return Refused(refusal)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = wire.Failure(error=f"{request.method} {request.url.path[:80]}: {error.detail}", hint="see docs/server.md")
    return JSONResponse(said.model_dump(), status_code=error.status_code, headers={"Connection": "close"})


def _as_json(record: wire.ScoreResponse | wire.ScorersResponse) -> Response:
    return Response(record.model_dump_json(), media_type="application/json")


def _in_place(found: Sequence[Image | str], scores: Sequence[Score]) -> tuple[wire.WireScore, ...]:
    """A score for every image: the next of `scores`, or why the image cannot be read."""
    rest = iter(scores)
    return tuple(wire.WireScore.of(Score(None, image) if isinstance(image, str) else next(rest)) for image in found)


async def _unless_gone(answer: "Future[Answer]", request: Request) -> Answer:
    """The answer; ClientDisconnect, and the work taken back where it has not begun, when the caller hangs up first."""
    scored, gone = asyncio.wrap_future(answer), asyncio.ensure_future(request.receive())
    first: set[asyncio.Future[Any]] = {scored, gone}
    try:
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if not scored.done():
            raise ClientDisconnect
        return scored.result()
    finally:
        scored.cancel()
        gone.cancel()
