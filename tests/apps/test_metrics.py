import asyncio

import pytest

from realgen.apps._metrics import Metered, Metrics
from realgen.core.types import Score


def value(metrics, line):
    found = [text for text in metrics.text().decode().splitlines() if text.startswith(line + " ")]
    return float(found[0].split()[-1]) if found else None


def call(metrics, status, path="/v1/score", kind="http"):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Metered(app, metrics=metrics, path="/v1/score")({"type": kind, "path": path}, None, send))
    return sent


def test_scores_are_counted_by_outcome():
    metrics = Metrics()
    metrics.scored("a", [Score(0.5), Score(None, "no"), Score(0.0)])
    assert value(metrics, 'realgen_scores_total{outcome="scored",scorer="a"}') == 2
    assert value(metrics, 'realgen_scores_total{outcome="unscored",scorer="a"}') == 1
    assert value(metrics, 'realgen_batch_images_count{scorer="a"}') == 1
    assert value(metrics, 'realgen_batch_images_sum{scorer="a"}') == 3


@pytest.mark.parametrize(("status", "rejected"), [(200, None), (429, 1), (413, 1), (500, 1)])
def test_calls_are_counted_by_status(status, rejected):
    metrics = Metrics()
    sent = call(metrics, status)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert value(metrics, f'realgen_requests_total{{status="{status}"}}') == 1
    assert value(metrics, f'realgen_rejected_total{{status="{status}"}}') == rejected
    assert value(metrics, "realgen_request_seconds_count") == (0 if rejected else 1)


def test_other_paths_are_passed_on_uncounted():
    metrics = Metrics()
    assert call(metrics, 200, path="/healthz")
    assert call(metrics, 200, kind="websocket")
    assert value(metrics, 'realgen_requests_total{status="200"}') is None


def test_each_server_counts_for_itself():
    one, two = Metrics(), Metrics()
    one.images.inc(3)
    assert value(one, "realgen_images_total") == 3
    assert value(two, "realgen_images_total") == 0
