"""A worker's parts, put together: engine, pipeline, agent and metrics around a Faust app and its table."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from threading import Timer
from time import time
from typing import Any

import click
import faust
from faust.types import TP

from model.artifact import ArtifactError
from model.engine import Engine
from model.hiding import Hidden
from stream_app import behaviors, garbage, topics, web
from stream_app.agent import PredictionAgent
from stream_app.banned_items import BannedItemsWatch
from stream_app.connection import security
from stream_app.metrics import WorkerMetrics
from stream_app.model_watch import ModelWatch
from stream_app.observations import BatchReport
from stream_app.pipeline import Pipeline
from stream_app.serving import load_engine, load_successor, new_pipeline
from stream_app.settings import Settings
from stream_app.tables import HistoryTable

log = logging.getLogger("nextmove")


class App(faust.App):
    """A Faust app that ends when it is told to, or when its agent failed, even if its broker never answers again."""

    shutdown_s: float  # seconds
    fetch_interval_s: float  # least time between two fetches
    before_fetch: Callable[[], Awaitable[None]]  # awaited before each fetch, see `consumer.py`

    async def on_stop(self) -> None:
        """Faust's hook; what it waits for has no time limit of its own."""
        timer = Timer(self.shutdown_s, os._exit, (1,))
        timer.daemon = True
        timer.start()
        await super().on_stop()


class Worker:
    """Everything behind the agent; built by `prepare`, before anything consumes."""

    pipeline: Pipeline
    agent: PredictionAgent
    watch: ModelWatch
    metrics: WorkerMetrics

    def __init__(self, app: App, settings: Settings, table: HistoryTable) -> None:
        self._app = app
        self._settings = settings
        self._table = table
        self._last_ms: dict[int, int] = {}  # by partition: timestamp of the last record done
        self._garbage = garbage.Collector()
        self._hidden = Hidden()
        self._bans: BannedItemsWatch | None = None

    def prepare(self, *_: Any, **__: Any) -> None:
        """Look at the broker and load the model. What is wrong becomes one line, and the worker does not start."""
        settings = self._settings
        try:
            self._check_port()
            asyncio.run(self._check_topics())
            if settings.banned_items is not None:
                self._bans = BannedItemsWatch(settings.banned_items, self.ban)  # before it is read
            engine = load_engine(settings)
            self._hidden = engine.hidden
            self.pipeline = new_pipeline(
                engine,
                settings,
                behaviors.load(settings.behaviors),
                self._table.read,
                self._table.users,
                most_scored=settings.scored_per_chunk,
            )
        except (ArtifactError, behaviors.BehaviorError, topics.TopicError, ValueError) as error:
            raise click.ClickException(str(error)) from None
        self.metrics = WorkerMetrics(
            model_version=engine.version, device=engine.device, chunk_records=settings.chunk_records
        )
        self.agent = PredictionAgent(self._app, settings, self.pipeline, self._table, self.observe)
        self.watch = self._watch(engine)
        self._say_banned(engine.hide(self._hidden))
        self._app.before_fetch = self.agent.wants_more
        garbage.take_over()

    def observe(self, report: BatchReport) -> None:
        """Take note of a finished chunk."""
        self._last_ms[report.partition] = report.last_timestamp_ms
        self.metrics.observe(report)
        if report.dead_letters:
            counts = ", ".join(f"{count} {reason}" for reason, count in report.dead_letters.items())
            log.warning("dead letters of partition %d: %s", report.partition, counts)

    def refresh_metrics(self) -> None:
        """Set the metrics that are read off at a scrape."""
        self.metrics.show_model(self.watch.at_work.version, self.watch.at_work.device)
        self.metrics.refresh(
            scores=self.pipeline.scores,
            unknown_fields=self.pipeline.unknown_fields,
            lags=web.lags(self._app, self._settings, self._last_ms),
            kept=self.watch.at_work.kept,
        )

    async def watch_model(self) -> None:
        """Look for another model every `model_check_s`, for as long as the worker runs."""
        if self._settings.model is not None and self._settings.model_check_s:
            await self.watch.run(self._settings.model_check_s)

    async def watch_banned_items(self) -> None:
        """Look whether the list of banned items has changed, as often."""
        if self._bans is not None and self._settings.model_check_s:
            await self._bans.run(self._settings.model_check_s)

    def ban(self, items: frozenset[str]) -> None:
        """From the next batch on these items are not listed, instead of those before."""
        self._hidden = self._hidden._replace(banned=items)
        self._say_banned(self.watch.at_work.hide(self._hidden))

    async def _take(self, engine: Engine) -> None:
        """Another model takes over, and lists as little."""
        engine.hide(self._hidden)
        await self.agent.swap(engine)
        engine.hide(self._hidden)  # the list may have changed meanwhile

    def _say_banned(self, unknown: int) -> None:
        if self._settings.banned_items is not None:
            log.info("%d banned items, %d of them unknown to the model", len(self._hidden.banned), unknown)

    async def collect_garbage(self) -> None:
        """To be called every `garbage.INTERVAL_S`."""
        self._garbage.collect()

    async def meet_partitions(self, _: Any, assigned: set[TP], *__: Any, **___: Any) -> None:
        """Partitions are ours: until a record of one is done, its lag is counted from now."""
        now_ms = int(time() * 1000)
        self._last_ms = {tp.partition: now_ms for tp in assigned if tp.topic == self._settings.input_topic}

    async def forget_partitions(self, *_: Any, **__: Any) -> None:
        """Partitions are moving: what is decoded in memory may soon be somebody else's to change."""
        self.pipeline.forget()
        self.agent.forget_partitions()
        self._last_ms.clear()
        self._app.consumer.scheduler.forget()  # type: ignore[attr-defined]  # ours, by the options

    def _watch(self, engine: Engine) -> ModelWatch:
        settings = self._settings
        return ModelWatch(
            settings.model or Path(),
            engine,
            load=lambda directory: load_successor(directory, settings),
            take=self._take,
            tell=lambda swap, at_work: self.metrics.observe_swap(swap, at_work.version, at_work.device),
        )

    async def _check_topics(self) -> None:
        settings = self._settings
        await topics.check(settings.broker, settings.topics, settings.broker_timeout_s, security=security(settings))

    def _check_port(self) -> None:
        host, port = self._settings.web_host, self._settings.web_port
        try:
            socket.create_server((host, port)).close()
        except OSError as error:
            raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}; set --port") from None
