"""How messages leave the worker: whole batches handed to aiokafka's producer, each one awaited.

Sent one by one a record costs about 10 µs, most of it for a future of its own; in a batch that the producer is given as a
whole (its public `create_batch` and `send_batch`) it costs about 1 µs, and one future tells of all. What goes to one
partition goes in order: a batch is sent when the one before it is with the broker, as aiokafka would do by itself.

A producer of aiokafka has one request under way to a broker, and sends nothing there before it is answered. Several side by
side, each with partitions of its own, keep broker and worker at work together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from time import time
from types import TracebackType
from typing import Any, Self, cast

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, ProducerClosed, RecordListTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import RecordMetadata

from stream_app.connection import security
from stream_app.predictions import Header
from stream_app.settings import Settings

Sendable = tuple[bytes | None, bytes | None, list[Header]]  # key, value, headers: a Message, or one as plain

REQUEST_TIMEOUT_S = 60.0  # for a batch with all its retries; a rebalance would not wait for longer
STOP_S = 5.0  # for what is still under way at the end


class Parcel:
    """Messages for one partition, in order, packed for the broker as they are added; they need not be kept."""

    def __init__(self, new_batch: Callable[[], BatchBuilder], *, lingers: bool) -> None:
        """Its last batch `lingers` with the producer, in case that others have more for the partition."""
        self._new_batch = new_batch
        self._lingers = lingers
        self._batches: list[BatchBuilder] = []

    def add(self, messages: Sequence[Sendable]) -> None:
        """Pack into batches of at most `batch_bytes`; a larger message stands alone."""
        now_ms = int(time() * 1000)
        start = 0
        while start < len(messages):
            if not self._batches or self._batches[-1].closed():
                self._batches.append(self._new_batch())
            start += _append(self._batches[-1], messages[start:] if start else messages, now_ms)

    def batches(self) -> list[BatchBuilder]:
        """What was packed; nothing may be added any more."""
        if self._batches and not self._lingers:
            self._batches[-1].close()  # nobody adds to it: it need not linger
        return self._batches


class Deliveries:
    """Producers of our own, between `async with` and its end; Faust's knows neither batches nor idempotence."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lanes: list[Lane] = []
        self._lane_of: dict[tuple[str, int], Lane] = {}

    async def __aenter__(self) -> Self:
        try:
            for _ in range(self._settings.producers):
                lane = Lane(self._settings)
                await lane.start()
                self._lanes.append(lane)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(lane.stop() for lane in self._lanes))

    def parcel(self, messages: Sequence[Sendable] = ()) -> Parcel:
        """Packs `messages`, and what is added."""
        return self._lanes[0].parcel(messages)

    async def deliver(self, topic: str, partition: int, parcel: Parcel) -> list[int | None]:
        """The offset of each message once the broker has them all; None for one that is too large for it.

        Raises KafkaError where the broker cannot be reached in time, or refuses for another reason.
        """
        lane = self._lane_of.setdefault((topic, partition), self._lanes[len(self._lane_of) % len(self._lanes)])
        return await lane.deliver(topic, partition, parcel)


class Lane:
    """One producer, which is renewed when it is out of step."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._renewing = asyncio.Lock()
        self._entering: set[asyncio.Future[Any]] = set()
        self._retiring: dict[asyncio.Task[None], AIOKafkaProducer] = {}
        self._producer: AIOKafkaProducer
        self._stopped = False

    async def start(self) -> None:
        """Meet the broker. Raises KafkaError if that is not to be found."""
        self._producer = await self._started()

    async def stop(self) -> None:
        """Once what it was given is delivered, or some `STOP_S` later; what has not entered by then gets ProducerClosed."""
        self._stopped = True
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S), self._renewing:
                if self._entering:
                    await asyncio.wait(self._entering)
        for entering in self._entering:
            entering.cancel()
        await asyncio.gather(_stop(self._producer), *(_within_limit(*one) for one in self._retiring.items()))

    def parcel(self, messages: Sequence[Sendable]) -> Parcel:
        """As `Deliveries.parcel`."""
        parcel = Parcel(self._producer.create_batch, lingers=self._settings.linger_ms > 0)
        parcel.add(messages)
        return parcel

    async def deliver(self, topic: str, partition: int, parcel: Parcel) -> list[int | None]:
        """As `Deliveries.deliver`."""
        offsets: list[int | None] = []
        for batch in parcel.batches():
            offsets.extend(await self._deliver(topic, partition, batch))
        return offsets

    async def _deliver(self, topic: str, partition: int, batch: BatchBuilder) -> list[int | None]:
        """Send a batch; one that is refused for its size goes again in halves, until what is too large stands alone."""
        count = batch.record_count()
        if batch.size() <= self._settings.max_request_bytes:
            first = await self._send(topic, partition, batch)
            if first is not None:
                return list(range(first, first + count))
        if count == 1:
            return [None]
        messages = unpacked(batch)
        return [
            *await self.deliver(topic, partition, self.parcel(messages[: count // 2])),
            *await self.deliver(topic, partition, self.parcel(messages[count // 2 :])),
        ]

    async def _send(self, topic: str, partition: int, builder: BatchBuilder) -> int | None:
        """The offset of the batch's first message; None if the broker refuses it for its size."""
        while not self._stopped:
            producer = self._producer
            try:
                # An idempotent producer of aiokafka would try again for ever
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    sent = await (await self._entered(producer, builder, topic, partition))
            except (MessageSizeTooLargeError, RecordListTooLargeError):
                await self._renew(producer)
                return None
            except TimeoutError:
                raise KafkaTimeoutError(f"{topic}-{partition} took nothing for {REQUEST_TIMEOUT_S:.0f} s") from None
            except ProducerClosed:
                if producer is self._producer:
                    raise
                continue  # renewed before it took the batch
            first: int = sent.offset
            return first
        raise ProducerClosed

    async def _entered(
        self, producer: AIOKafkaProducer, builder: BatchBuilder, topic: str, partition: int
    ) -> Awaitable[RecordMetadata]:
        """The delivery of a batch once `producer` has taken it, which looks up the topic first."""
        entering = asyncio.ensure_future(producer.send_batch(builder, topic, partition=partition))
        self._entering.add(entering)
        entering.add_done_callback(self._entering.discard)
        try:
            delivery: Awaitable[RecordMetadata] = await entering
        except asyncio.CancelledError:
            if self._stopped and not cast(asyncio.Task[Any], asyncio.current_task()).cancelling():
                raise ProducerClosed from None  # it was `stop` that gave it up, nobody wanted this task to end
            raise
        return delivery

    async def _renew(self, refused: AIOKafkaProducer) -> None:
        """After a refusal an idempotent producer is out of step: aiokafka has counted what the broker has not.

        Several partitions may find out at once; others are in step, and go on with the old one until the new one stands.
        """
        async with self._renewing:
            if not self._settings.idempotent or refused is not self._producer or self._stopped:
                return
            self._producer = await self._started()
            retiring = asyncio.create_task(self._retire(refused))
            self._retiring[retiring] = refused
            retiring.add_done_callback(self._retiring.pop)

    async def _retire(self, refused: AIOKafkaProducer) -> None:
        """Stop it when all that goes to it has entered: a closed one would look up a topic for ever."""
        if entering := set(self._entering):
            await asyncio.wait(entering)
        await _stop(refused, REQUEST_TIMEOUT_S)

    async def _started(self) -> AIOKafkaProducer:
        """A producer that has met the broker. Raises KafkaError if that is not to be found."""
        producer = self._new_producer()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                await producer.start()
        except BaseException as error:
            await _stop(producer)
            if isinstance(error, TimeoutError):
                raise KafkaTimeoutError(f"no broker answers for {REQUEST_TIMEOUT_S:.0f} s") from None
            raise
        return producer

    def _new_producer(self) -> AIOKafkaProducer:
        settings = self._settings
        options: dict[str, Any] = {
            "bootstrap_servers": [address.strip() for address in settings.broker.split(",")],
            "client_id": f"{settings.app_id}-deliveries",
            "acks": "all",
            "enable_idempotence": settings.idempotent,
            "compression_type": None if settings.compression == "none" else settings.compression,
            "linger_ms": settings.linger_ms,
            "max_batch_size": settings.batch_bytes,
            "max_request_size": settings.max_request_bytes,
            "request_timeout_ms": int(REQUEST_TIMEOUT_S * 1000),
        }
        return AIOKafkaProducer(**options, **security(settings))


def _append(batch: BatchBuilder, messages: Sequence[Sendable], now_ms: int) -> int:
    """How many of the messages, in order, went into a batch; it is closed if these are not all.

    As `batch.append` does it, one call of Python less for each message, which is a quarter of the time.
    """
    append = batch._builder.append  # noqa: SLF001
    first: int = batch.record_count()
    count = first
    for key, value, headers in messages:
        if append(count, now_ms, key=key, value=value, headers=headers) is None:
            batch.close()
            break
        count += 1
    batch._relative_offset = count  # noqa: SLF001
    return count - first


def unpacked(batch: BatchBuilder) -> list[Sendable]:
    """The messages in a batch, in order; nothing may be added to it any more."""
    records = MemoryRecords(bytes(batch._build())).next_batch()  # noqa: SLF001  # it can be built again, or sent
    return [(record.key, record.value, record.headers) for record in records]


async def _stop(producer: AIOKafkaProducer, limit_s: float | None = None) -> None:
    """Once what it was given is delivered; where that takes too long it gives up, and sends nothing any more."""
    await _within_limit(asyncio.create_task(producer.stop()), producer, limit_s)


async def _within_limit(stopping: asyncio.Task[None], producer: AIOKafkaProducer, limit_s: float | None = None) -> None:
    """Wait for the task that stops a producer; where that takes too long the producer is cut off, which ends the task."""
    done, _ = await asyncio.wait({stopping}, timeout=STOP_S if limit_s is None else limit_s)
    if not done:
        sender = producer._sender.sender_task  # noqa: SLF001  # its `stop` has no limit
        if sender is not None:
            sender.cancel()
        await producer.client.close()
        await asyncio.wait({stopping}, timeout=STOP_S)
