"""What the server counts, in Prometheus' text format. Each server has its own registry."""

import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realgen.core.types import Score

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_REFUSALS = frozenset(range(400, 600))
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("realgen_requests", "Score calls by status.", ["status"], registry=registry)
        self.rejected = Counter("realgen_rejected", "Score calls refused, by status.", ["status"], registry=registry)
        self.images = Counter("realgen_images", "Images taken into the queue.", registry=registry)
        self.scores = Counter("realgen_scores", "Scores by outcome.", ["scorer", "outcome"], registry=registry)
        self.seconds = Histogram(
            "realgen_request_seconds", "Latency of answered score calls.", buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram(
            "realgen_batch_images",
            "Images in a batch of a scorer.",
            ["scorer"],
            buckets=_BATCHES,
            registry=registry,
        )
        self.depth = Gauge("realgen_queue_depth", "Images that wait or are in work.", registry=registry)

    def scored(self, scorer: str, scores: Sequence[Score]) -> None:
        """A scorer has answered a batch."""
        self.batches.labels(scorer).observe(len(scores))
        num_scored = sum(score.value is not None for score in scores)
        self.scores.labels(scorer, "scored").inc(num_scored)
        self.scores.labels(scorer, "unscored").inc(len(scores) - num_scored)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class Metered:
    """ASGI: counts and times the calls of one path."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, path: str) -> None:
        self._app, self._metrics, self._path = app, metrics, path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look at the status that comes back."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, watched)

    def _count(self, status: int, seconds: float) -> None:
        self._metrics.requests.labels(str(status)).inc()
        if status in _REFUSALS:
            self._metrics.rejected.labels(str(status)).inc()
        else:
            self._metrics.seconds.observe(seconds)
