"""A replay as the command line runs it: producer or pipeline, progress bar, summary."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO

import polars as pl
from aiokafka import AIOKafkaProducer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

from stream_app.behaviors import Behaviors
from stream_app.connection import security
from stream_app.replay import Progress as Report
from stream_app.replay import ReplayError, inline, to_kafka
from stream_app.settings import Settings
from stream_app.topics import TopicError, describe


def play_to_kafka(
    frame: pl.DataFrame, settings: Settings, speed: float | None, *, dry_run: bool, console: Console, quiet: bool
) -> dict[str, Any]:
    """Send the log to the input topic; what was done, by name. Raises ReplayError."""
    if dry_run:
        return {"would_send": len(frame), "topic": settings.input_topic, "broker": settings.broker}
    start = perf_counter()
    with _bar(len(frame), console, quiet=quiet) as report:
        sent = asyncio.run(_send(frame, settings, speed, report))
    return {"sent": sent, "topic": settings.input_topic, "seconds": round(perf_counter() - start, 1)}


def play_inline(
    frame: pl.DataFrame,
    settings: Settings,
    behaviors: Behaviors,
    out: Path | None,
    *,
    now_ms: int,
    console: Console,
    quiet: bool,
) -> dict[str, Any]:
    """Run the log through the steps of the worker; what was done, by name. Raises ReplayError."""
    from model.artifact import ArtifactError  # these load torch, which nothing else here needs
    from stream_app.serving import load_engine, new_pipeline

    if out is None:
        raise ReplayError("an inline replay needs --out FILE")
    try:
        pipeline = new_pipeline(load_engine(settings), settings, behaviors)
    except (ArtifactError, ValueError) as error:
        raise ReplayError(str(error)) from None
    start = perf_counter()
    with _opened(out) as file, _bar(len(frame), console, quiet=quiet) as report:
        done = inline(
            frame, pipeline, file,
            topic=settings.input_topic, partitions=settings.partitions, now_ms=now_ms, progress=report,
        )  # fmt: skip
    return {
        "events": done.events,
        "predictions": done.predictions,
        "dead_letters": {str(reason): count for reason, count in done.dead_letters.items()},
        "live_hit_rate": {
            "model": pipeline.scores.model.hit_rate,
            "repeat": pipeline.scores.repeat.hit_rate,
            "popularity": pipeline.scores.popularity.hit_rate,
        },
        "seconds": round(perf_counter() - start, 1),
    }


async def _send(frame: pl.DataFrame, settings: Settings, speed: float | None, report: Report) -> int:
    options = security(settings)
    try:
        counts = await describe(settings.broker, [settings.input_topic], settings.broker_timeout_s, security=options)
    except TopicError as error:
        raise ReplayError(str(error)) from None
    if counts[settings.input_topic] is None:
        raise ReplayError(f"no topic {settings.input_topic} at {settings.broker}; `nextmove topics` creates it")
    producer = AIOKafkaProducer(bootstrap_servers=settings.broker, enable_idempotence=True, **options)
    await producer.start()
    try:
        return await to_kafka(frame, producer, settings.input_topic, speed=speed, progress=report)
    finally:
        await producer.stop()


@contextmanager
def _opened(out: Path) -> Iterator[BinaryIO]:
    if str(out) == "-":
        yield sys.stdout.buffer
        return
    try:
        with out.open("wb") as file:
            yield file
    except OSError as error:
        raise ReplayError(f"{out}: {error.strerror or error}") from None


@contextmanager
def _bar(total: int, console: Console, *, quiet: bool) -> Iterator[Report]:
    with Progress(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console, disable=quiet) as bar:
        task = bar.add_task("replay", total=total)
        yield lambda done: bar.update(task, completed=done)
