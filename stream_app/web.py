"""What a worker answers over HTTP: /metrics for Prometheus, /healthz and /readyz for whoever keeps it running.

Faust's web server carries it. All that Faust itself would serve there, table data included, is switched off in `faust_options.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import time
from typing import Any, Protocol, cast

import faust
import orjson
from aiohttp import web
from faust.exceptions import ConsumerNotStarted
from faust.types import TP
from prometheus_client.aiohttp import make_aiohttp_handler

from stream_app.agent import PredictionAgent
from stream_app.metrics import WorkerMetrics
from stream_app.settings import Settings

Handler = Callable[[Any, Any], Awaitable[web.StreamResponse]]


class Shown(Protocol):
    """What the pages need of a worker."""

    agent: PredictionAgent
    metrics: WorkerMetrics

    def refresh_metrics(self) -> None:
        """Set the metrics that are read off at a scrape."""


def add_pages(app: faust.App, settings: Settings, worker: Shown) -> None:
    """Register the three pages."""
    page = cast(Callable[..., Callable[[Handler], Handler]], app.page)  # a plain aiohttp handler is as good as a view

    @page("/metrics", name="metrics")
    async def show_metrics(self: Any, request: Any) -> web.StreamResponse:
        worker.refresh_metrics()
        return await make_aiohttp_handler(worker.metrics.registry)(request)

    @page("/healthz", name="healthz")
    async def is_healthy(self: Any, request: Any) -> web.StreamResponse:
        working_s = worker.agent.working_s
        return _answer(working_s <= settings.stall_s, {"chunk_in_work_s": round(working_s, 3)})

    @page("/readyz", name="readyz")
    async def is_ready(self: Any, request: Any) -> web.StreamResponse:
        checks = readiness(app, settings)
        return _answer(all(checks.values()), checks)


def readiness(app: faust.App, settings: Settings) -> dict[str, bool]:
    """What a worker must have before it predicts; the model is loaded before anything else starts."""
    return {
        "model_loaded": True,
        "partitions_assigned": any(tp.topic == settings.input_topic for tp in _assigned(app)),
        "recovered": app.tables.actives_ready and not app.rebalancing,
    }


def lags(app: faust.App, settings: Settings, last_ms: dict[int, int]) -> dict[int, tuple[int, float]]:
    """Per partition: records not yet committed, and the age in seconds of the newest committed one while there are any.

    `last_ms` holds the timestamp of the last record done, by partition.
    """
    committed = app.consumer._committed_offset  # type: ignore[attr-defined]  # noqa: SLF001  # known before any commit
    found: dict[int, tuple[int, float]] = {}
    for tp in _assigned(app):
        end = app.consumer.highwater(tp)
        if tp.topic == settings.input_topic and end is not None:
            records = max(0, end - (committed.get(TP(tp.topic, tp.partition)) or 0))
            age_s = max(0.0, time() - last_ms[tp.partition] / 1000) if records and tp.partition in last_ms else 0.0
            found[tp.partition] = (records, age_s)
    return found


def _assigned(app: faust.App) -> set[TP]:
    try:
        return app.consumer.assignment()
    except ConsumerNotStarted:  # the web server is up before
        return set()


def _answer(ok: bool, details: dict[str, Any]) -> web.Response:
    body = orjson.dumps({"ok": ok, **details})
    return web.Response(body=body, status=200 if ok else 503, content_type="application/json")
