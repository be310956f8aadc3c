"""A worker's parts, put together: engine, pipeline, agent and metrics around a Faust app and its table."""

from __future__ import annotations

import asyncio
from typing import Any

import click
import faust

from model.artifact import ArtifactError
from model.engine import Engine
from stream_app import behaviors, topics, web
from stream_app.agent import PredictionAgent
from stream_app.events import EventDecoder
from stream_app.metrics import WorkerMetrics
from stream_app.observations import BatchReport
from stream_app.pipeline import HistoryCache, Pipeline
from stream_app.settings import Settings
from stream_app.tables import HistoryTable


class Worker:
    """Everything behind the agent; built by `prepare`, before anything consumes."""

    engine: Engine
    pipeline: Pipeline
    agent: PredictionAgent
    metrics: WorkerMetrics

    def __init__(self, app: faust.App, settings: Settings, table: HistoryTable) -> None:
        self._app = app
        self._settings = settings
        self._table = table
        self._last_ms: dict[int, int] = {}  # by partition: timestamp of the last record done

    def prepare(self, *_: Any, **__: Any) -> None:
        """Load the model and look at the broker's topics. What is wrong becomes one line, and the worker does not start."""
        settings = self._settings
        if settings.model is None:
            raise click.ClickException("no model: pass --model DIR or set NEXTMOVE_MODEL; `nextmove train` makes one")
        try:
            asyncio.run(topics.check(settings.broker, settings.topics, settings.broker_timeout_s))
            self.engine = Engine.load(settings.model, device=settings.device, top_k=settings.top_k)
            self._decoder = self._new_decoder()
        except (ArtifactError, behaviors.BehaviorError, topics.TopicError) as error:
            raise click.ClickException(str(error)) from None
        self.pipeline = self._new_pipeline()
        self.metrics = WorkerMetrics(
            model_version=self.engine.version, device=self.engine.device, chunk_records=settings.chunk_records
        )
        self.agent = PredictionAgent(self._app, settings, self.pipeline, self._table, self.observe)

    def observe(self, report: BatchReport) -> None:
        """Take note of a finished chunk."""
        self._last_ms[report.partition] = report.last_timestamp_ms
        self.metrics.observe(report)

    def refresh_metrics(self) -> None:
        """Set the metrics that are read off at a scrape."""
        self.metrics.refresh(
            scores=self.pipeline.scores,
            unknown_fields=self._decoder.unknown_fields,
            lags=web.lags(self._app, self._settings, self._last_ms),
        )

    async def forget_partitions(self, *_: Any, **__: Any) -> None:
        """Partitions are moving: what is decoded in memory may soon be somebody else's to change."""
        self.pipeline.cache.clear()
        self._last_ms.clear()

    def _new_decoder(self) -> EventDecoder:
        settings = self._settings
        return EventDecoder(
            behaviors.load(settings.behaviors),
            max_bytes=settings.max_event_bytes,
            max_future_ms=int(settings.max_future_s * 1000),
        )

    def _new_pipeline(self) -> Pipeline:
        settings = self._settings
        return Pipeline(
            self.engine,
            self._decoder,
            HistoryCache(self._table.read, settings.cached_users),
            source=f"nextmove/{settings.app_id}",
            margin=settings.chunk_records_per_user,
            lateness_ms=int(settings.lateness_s * 1000),
        )
