"""A log played again: into Kafka in event-time order, or through the very same steps without a broker.

Both ways give the same predictions for the same model and log: the inline way places keys with the partitioner of
aiokafka's producer, so that a record has the same topic, partition and offset as it would have on a fresh topic.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic
from typing import BinaryIO, NamedTuple

import polars as pl
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from stream_app.event_logs import to_records
from stream_app.events import Reason
from stream_app.pipeline import Pipeline
from stream_app.predictions import Header

SENT_TOGETHER = 500  # records between two looks at the clock and at the deliveries
INLINE_BATCH = 512
NEVER_AGAIN = 2**63  # above every offset: no record of an inline replay comes twice

Progress = Callable[[int], None]  # events done so far
Throttle = Callable[[int], Awaitable[None]]  # told the events sent so far; returns when more may be sent


class ReplayError(Exception):
    """The replay cannot go on; one line for a person."""


class LogRecord(NamedTuple):
    """An event of a log in the place that it would have in Kafka."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...] = ()


@dataclass(slots=True)
class InlineSummary:
    """What an inline replay did."""

    events: int = 0
    predictions: int = 0
    dead_letters: Counter[Reason] = field(default_factory=Counter)


class Pace:
    """Event time against wall time: at speed 60 an hour of the log takes a minute; None is as fast as can be."""

    def __init__(self, first_ms: int, speed: float | None) -> None:
        self._first_ms = first_ms
        self._speed = speed
        self._start = monotonic()

    def wait_s(self, time_ms: int) -> float:
        """Seconds until the event of `time_ms` is due; 0 if it is."""
        if self._speed is None:
            return 0.0
        due = (time_ms - self._first_ms) / 1000 / self._speed
        return max(0.0, due - (monotonic() - self._start))


async def to_kafka(
    frame: pl.DataFrame,
    producer: AIOKafkaProducer,
    topic: str,
    *,
    speed: float | None = None,
    progress: Progress = lambda _: None,
    throttle: Throttle | None = None,
) -> int:
    """Send a table of events to `topic` in event-time order; the number sent, each one delivered. Raises ReplayError.

    `speed` is event time over wall time, None for as fast as the broker takes them. Records carry the time of sending:
    with the events' own, a broker would drop an old log by its retention at once.
    """
    if frame.is_empty():
        return 0
    pace = Pace(frame["timestamp"][0], speed)
    pending: list[asyncio.Future[object]] = []
    sent = 0
    try:
        for time_ms, (key, value) in zip(frame["timestamp"], to_records(frame), strict=True):
            wait_s = pace.wait_s(time_ms)
            if wait_s > 0 or len(pending) >= SENT_TOGETHER:
                await asyncio.gather(*pending)
                pending.clear()
                progress(sent)
                if throttle is not None:
                    await throttle(sent)
                await asyncio.sleep(wait_s)
            pending.append(await producer.send(topic, value, key=key))
            sent += 1
        await asyncio.gather(*pending)
    except KafkaError as error:
        raise ReplayError(f"after {sent} events the broker failed: {type(error).__name__}: {error}") from None
    progress(sent)
    return sent


def inline(
    frame: pl.DataFrame,
    pipeline: Pipeline,
    out: BinaryIO,
    *,
    topic: str,
    partitions: int,
    now_ms: int,
    progress: Progress = lambda _: None,
) -> InlineSummary:
    """Run a table of events through the steps of the worker; predictions go to `out` as JSON lines, in log order."""
    summary = InlineSummary()
    records = place(to_records(frame), topic, partitions, now_ms)
    while batch_records := list(islice(records, INLINE_BATCH)):
        events, batch = pipeline.decode(batch_records)
        pipeline.fold(events, batch, NEVER_AGAIN)
        forecasts = pipeline.infer(pipeline.windows([batch]))
        pipeline.score(batch, forecasts)
        outputs = pipeline.conclude(batch, forecasts)
        out.writelines((message.value or b"null") + b"\n" for _, message in outputs.predictions)
        summary.events += len(batch_records)
        summary.predictions += len(outputs.predictions)
        summary.dead_letters.update(reason for _, reason in outputs.dead_letters)
        progress(summary.events)
    return summary


def place(records: Iterable[tuple[bytes, bytes]], topic: str, partitions: int, now_ms: int) -> Iterator[LogRecord]:
    """Give each (key, value) the partition and offset that a producer would find for it on a fresh topic."""
    choose, numbers = DefaultPartitioner(), list(range(partitions))
    next_offset = [0] * partitions
    for key, value in records:
        partition = choose(key, numbers, numbers)
        yield LogRecord(topic, partition, next_offset[partition], now_ms, key, value)
        next_offset[partition] += 1
