"""The life of a batch, as seven numbered steps.

1. Intake    Faust hands over one chunk of records, all of one partition            (`intake.py`)
2. Decode    each record becomes an event, or a dead letter with a reason            (`events.py`)
3. Fold      events go into their users' histories                                   (`history.py`)
4. Infer     all windows of the chunks go to the model together, on the device thread (`model/engine.py`)
5. Score     each event is scored against what was expected of its user              (`scoring.py`)
6. Emit      predictions, changelog and dead letters are produced; each delivery is awaited
7. Ack       only then is the chunk acknowledged, and its offset committed

While chunks are in steps 4 to 7, the next are taken through 1 to 3 and wait; then all that wait go on together, one of
each partition. A step that fails ends the worker, and the chunks come again; the fold is idempotent, and a prediction's id
is its record's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from time import monotonic
from typing import NamedTuple, cast

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
from stream_app.predictions import Forecast, Message
from stream_app.settings import Settings
from stream_app.tables import HistoryTable

COMMIT_ATTEMPTS = 20


class CommitFailed(Exception):
    """The offset of a delivered chunk could not be committed, though the partition is still ours."""


class Prepared(NamedTuple):
    """A chunk that is decoded and folded, on its way to the device."""

    event: EventT[list[Record]]
    records: list[Record]
    batch: Batch
    report: BatchReport

    @property
    def tp(self) -> TP:
        """The partition that all its records are of."""
        tp: TP = self.event.message.tp
        return tp


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
        prepared: asyncio.Queue[Prepared] = asyncio.Queue(self._settings.chunks_prepared)
        events: AsyncIterable[EventT[list[Record]]] = stream.noack().events()  # type: ignore[attr-defined]  # Stream's
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._work_on(prepared))
            async for event in events:  # 1. Intake
                records = cast(Chunk, event.value)
                self.order.take(event.message.tp, records)
                await prepared.put(self._prepare(event, records))
            work.cancel()

    def _prepare(self, event: EventT[list[Record]], records: list[Record]) -> Prepared:
        report = BatchReport(event.message.partition, records=len(records))
        with report.stage("decode"):  # 2. Decode
            events, batch = self._pipeline.decode(records)
        with report.stage("fold"):  # 3. Fold
            self._pipeline.fold(events, batch)
        return Prepared(event, records, batch, report)

    async def _work_on(self, prepared: asyncio.Queue[Prepared]) -> None:
        """Finish what is prepared, in order: all that waits goes together, but only one chunk of each partition."""
        held: Prepared | None = None
        while True:
            together = [held or await prepared.get()]
            held = None
            while held is None and not prepared.empty():
                chunk = prepared.get_nowait()
                if chunk.tp in [other.tp for other in together]:
                    held = chunk
                else:
                    together.append(chunk)
            if self._app.flow_control.is_active():
                await self._finish(together)
            else:
                self._drop(together)

    def _drop(self, chunks: list[Prepared]) -> None:
        """Partitions are moving, or the worker ends: what has not begun is for whoever reads these records next."""
        for chunk in chunks:
            self._app.consumer.unacked.discard(chunk.event.message)

    async def _finish(self, together: list[Prepared]) -> None:
        """Steps 4 to 7 for chunks of different partitions; their time is counted once, in the first one's report."""
        self._started = monotonic()
        report = together[0].report
        loop = asyncio.get_running_loop()
        with report.stage("infer"):  # 4. Infer
            windows = self._pipeline.windows(chunk.batch for chunk in together)
            forecasts = iter(await loop.run_in_executor(self._device, self._pipeline.infer, windows))
        with report.stage("score"):  # 5. Score
            outputs = [self._conclude(chunk.batch, forecasts) for chunk in together]
        with report.stage("emit"):  # 6. Emit
            outputs = await asyncio.gather(
                *(self._deliver(chunk.tp.partition, output) for chunk, output in zip(together, outputs, strict=True))
            )
        with report.stage("ack"):  # 7. Ack
            for chunk in together:
                chunk.event.ack()
            await self._commit({chunk.tp: chunk.event.message.offset + 1 for chunk in together})
        self._pipeline.cache.trim()
        self._started = None
        for chunk, output in zip(together, outputs, strict=True):
            self._observe(chunk.report.done(chunk.batch, output, chunk.records))

    def _conclude(self, batch: Batch, forecasts: Iterator[Forecast | Rejected]) -> Outputs:
        """The outputs of a chunk, whose forecasts come next."""
        own = list(islice(forecasts, len(batch.requests)))
        self._pipeline.score(batch, own)
        return self._pipeline.conclude(batch, own)

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

    async def _commit(self, offsets: Mapping[TP, int]) -> None:
        """Commit before the next chunk of any of these partitions becomes durable. Raises CommitFailed."""
        consumer, committed = self._app.consumer, self._app.monitor.tp_committed_offsets
        left = dict(offsets)
        for attempt in range(COMMIT_ATTEMPTS):
            done = await consumer.commit(set(left))
            if not self._app.flow_control.is_active():
                return  # partitions are moving: Faust commits what is acknowledged, and nothing else begins before
            noted = {tp for tp, offset in left.items() if committed.get(tp, -1) >= offset}
            if noted and not done:  # Faust notes a commit that the broker refused like any other
                break
            left = {tp: offset for tp, offset in left.items() if tp not in noted and tp in consumer.assignment()}
            if not left:
                return
            await asyncio.sleep(0 if attempt < 2 else 0.05)  # what Faust had left over goes with the first attempt
        places = ", ".join(f"{offset} of {tp.topic}-{tp.partition}" for tp, offset in left.items())
        raise CommitFailed(f"offset {places} could not be committed")


async def _accepted(sent: Awaitable[RecordMetadata] | None) -> bool:
    """True once the broker has the record, False if it is too large for it; other failures raise."""
    if sent is None:
        return False
    try:
        await sent
    except MessageSizeTooLargeError:
        return False
    return True
