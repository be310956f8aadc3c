"""The life of a batch, as seven numbered steps.

1. Intake    Faust hands over one chunk of records, all of one partition            (`intake.py`)
2. Decode    each record becomes an event, or a dead letter with a reason            (`events.py`)
3. Fold      events go into their users' histories                                   (`history.py`)
4. Infer     all windows of the chunk go to the model together, on the device thread (`model/engine.py`)
5. Score     each event is scored against what was expected of its user              (`scoring.py`)
6. Emit      predictions, changelog and dead letters are produced; each delivery is awaited
7. Ack       only then is the chunk acknowledged, and its offset committed

While one chunk is in steps 4 to 7, the next is taken through 1 to 3 and waits: one on the device, one prepared. A step
that fails ends the worker, and the chunk comes again; the fold is idempotent, and prediction ids are the record's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import monotonic
from typing import cast

import faust
from aiokafka.errors import MessageSizeTooLargeError
from faust.exceptions import ProducerSendError
from faust.types import TP, EventT, StreamT
from faust.types.tuples import RecordMetadata

from stream_app.dead_letters import dead_letter, without_value
from stream_app.events import Reason, Record, Rejected
from stream_app.intake import Chunk, ChunkOrder
from stream_app.observations import BatchReport, Observer
from stream_app.pipeline import Batch, Outputs, Pipeline
from stream_app.predictions import Message
from stream_app.settings import Settings
from stream_app.tables import HistoryTable

COMMIT_ATTEMPTS = 20  # each waits for a commit already under way, or for 50 ms


class CommitFailed(Exception):
    """The offset of a delivered chunk could not be committed, though the partition is still ours."""


class PredictionAgent:
    """Takes chunks through the seven steps."""

    def __init__(
        self, app: faust.App, settings: Settings, pipeline: Pipeline, table: HistoryTable, observe: Observer
    ) -> None:
        self._app = app
        self._settings = settings
        self._pipeline = pipeline
        self._table = table
        self._observe = observe
        self.order = ChunkOrder()
        self._device = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._started: float | None = None  # monotonic seconds; when the chunk in work was taken up

    @property
    def working_s(self) -> float:
        """For how long the chunk in work has been so, in seconds; 0 when idle."""
        return 0.0 if self._started is None else monotonic() - self._started

    async def run(self, stream: StreamT[list[Record]]) -> None:
        """Work on the chunks of `stream` until it ends; the first failure of any step ends it."""
        async with asyncio.TaskGroup() as group:
            in_flight: Awaitable[None] | None = None
            events: AsyncIterable[EventT[list[Record]]] = stream.noack().events()  # type: ignore[attr-defined]  # Stream's
            async for event in events:  # 1. Intake
                records = cast(Chunk, event.value)
                self.order.take(event.message.tp, records)
                report = BatchReport(event.message.partition, records=len(records))
                batch = self._prepare(records, report)
                if in_flight is not None:
                    await in_flight
                in_flight = group.create_task(self._finish(event, records, batch, report))

    def _prepare(self, records: list[Record], report: BatchReport) -> Batch:
        with report.stage("decode"):  # 2. Decode
            events, batch = self._pipeline.decode(records)
        with report.stage("fold"):  # 3. Fold
            return self._pipeline.fold(events, batch)

    async def _finish(
        self, event: EventT[list[Record]], records: list[Record], batch: Batch, report: BatchReport
    ) -> None:
        self._started = monotonic()
        loop = asyncio.get_running_loop()
        with report.stage("infer"):  # 4. Infer
            forecasts = await loop.run_in_executor(self._device, self._pipeline.infer, batch.windows)
        with report.stage("score"):  # 5. Score
            self._pipeline.score(batch, forecasts)
            outputs = self._pipeline.conclude(batch, forecasts)
        with report.stage("emit"):  # 6. Emit
            outputs = await self._deliver(event.message.partition, outputs)
        with report.stage("ack"):  # 7. Ack
            event.ack()
            await self._commit(event.message.tp, event.message.offset + 1)
        self._pipeline.cache.trim()
        self._started = None
        self._observe(report.done(batch, outputs, records))

    async def _deliver(self, partition: int, outputs: Outputs) -> Outputs:
        """Produce all outputs and wait until the broker has every one; what it has then, refused predictions as letters."""
        sent = [await self._send(self._settings.output_topic, partition, m) for _, m in outputs.predictions]
        changelog = await self._table.write_changelog(partition, outputs.states)
        delivered = await asyncio.gather(*changelog)
        predictions, letters = [], list(outputs.dead_letters)
        for (record, message), future in zip(outputs.predictions, sent, strict=True):
            if await _accepted(future):
                predictions.append((record, message))
            else:
                rejected = Rejected(Reason.EMIT, "the prediction is larger than the broker takes")
                letters.append((dead_letter(record, rejected), rejected.reason))
        await self._deliver_letters(partition, (message for message, _ in letters))
        self._table.apply(outputs.states, delivered)
        return replace(outputs, predictions=predictions, dead_letters=letters)

    async def _deliver_letters(self, partition: int, letters: Iterable[Message]) -> None:
        """A letter that the broker finds too large goes without its value, which stays where it came from."""
        topic = self._settings.dead_letter_topic
        sent = [(letter, await self._send(topic, partition, letter)) for letter in letters]
        for letter, future in sent:
            if not await _accepted(future):
                retried = await self._send(topic, partition, without_value(letter))
                if not await _accepted(retried):
                    raise ProducerSendError(f"{topic} refuses a dead letter even without its value")

    async def _send(self, topic: str, partition: int, message: Message) -> Awaitable[RecordMetadata] | None:
        """A future of delivery; None if the record is too large to be sent at all."""
        try:
            return await self._app.producer.send(topic, message.key, message.value, partition, None, message.headers)
        except ProducerSendError as error:
            if isinstance(error.__cause__, MessageSizeTooLargeError):
                return None
            raise

    async def _commit(self, tp: TP, offset: int) -> None:
        """Commit before the next chunk of this partition becomes durable. Raises CommitFailed."""
        consumer, committed = self._app.consumer, self._app.monitor.tp_committed_offsets
        for _ in range(COMMIT_ATTEMPTS):
            await consumer.commit({tp})
            if committed.get(tp, -1) >= offset or tp not in consumer.assignment():
                return  # a partition that went elsewhere is repeated there
            await asyncio.sleep(0.05)
        raise CommitFailed(f"offset {offset} of {tp.topic}-{tp.partition} could not be committed")


async def _accepted(sent: Awaitable[RecordMetadata] | None) -> bool:
    """True once the broker has the record, False if it is too large for it; other failures raise."""
    if sent is None:
        return False
    try:
        await sent
    except MessageSizeTooLargeError:
        return False
    return True
