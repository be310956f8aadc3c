"""When the consumer fetches, with a real one of aiokafka in the place of Faust's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from faust.types import TP

from stream_app.broker import EmbeddedBroker
from stream_app.consumer import ConsumerThread

PLACE, ELSEWHERE, CHANGELOG = TP("events", 0), TP("events", 1), TP("changelog", 0)
LIMIT_S = 10.0


class Fetching(ConsumerThread):
    """Fetches on the event loop that it is made on; Faust's own part of it is left out."""

    def __init__(self, consumer: AIOKafkaConsumer[bytes, bytes], interval_s: float = 0.0) -> None:
        tables = SimpleNamespace(changelog_topics={CHANGELOG.topic})
        self.app: Any = SimpleNamespace(tables=tables, fetch_interval_s=interval_s)
        self.consumer: Any = SimpleNamespace(flow_active=True)
        self._of_aiokafka = consumer

    async def fetch(self, *active: TP) -> dict[TP, list[bytes | None]]:
        """What comes from these partitions."""
        async with asyncio.timeout(LIMIT_S):
            fetched: Mapping[TP, list[Any]] = {}
            while not fetched:
                fetched = await self._fetch_records(self._of_aiokafka, set(active), timeout=1.0)
        return {tp: [record.value for record in records] for tp, records in fetched.items()}


@pytest.fixture
def bootstrap() -> Iterator[str]:
    with EmbeddedBroker({PLACE.topic: 2, CHANGELOG.topic: 1}) as broker:
        yield broker.bootstrap


@pytest.fixture
async def consumer(bootstrap: str) -> AsyncIterator[AIOKafkaConsumer[bytes, bytes]]:
    consumer = AIOKafkaConsumer(
        "events", "changelog", group_id="g", bootstrap_servers=bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )  # fmt: skip
    async with consumer:
        while not consumer.assignment():
            await asyncio.sleep(0.01)
        yield consumer


@pytest.fixture
async def producer(bootstrap: str) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        yield producer


async def send(producer: AIOKafkaProducer, tp: TP, *values: bytes) -> None:
    for value in values:
        await producer.send_and_wait(tp.topic, value, partition=tp.partition)


async def test_a_fetch_brings_what_has_come_until_it_is_asked_for(
    consumer: AIOKafkaConsumer[bytes, bytes], producer: AIOKafkaProducer
) -> None:
    fetching = Fetching(consumer)
    await send(producer, PLACE, b"1")
    assert await fetching.fetch(PLACE, ELSEWHERE) == {PLACE: [b"1"]}
    await send(producer, PLACE, b"2")
    await asyncio.sleep(0.3)
    assert not await consumer.getmany(timeout_ms=0), "nothing is read ahead"
    await send(producer, ELSEWHERE, b"3")
    assert await fetching.fetch(PLACE, ELSEWHERE) == {PLACE: [b"2"], ELSEWHERE: [b"3"]}


async def test_a_partition_that_is_not_asked_for_keeps_its_records(
    consumer: AIOKafkaConsumer[bytes, bytes], producer: AIOKafkaProducer
) -> None:
    fetching = Fetching(consumer)
    await send(producer, PLACE, b"1")
    await send(producer, ELSEWHERE, b"2")
    assert await fetching.fetch(ELSEWHERE) == {ELSEWHERE: [b"2"]}
    assert await fetching.fetch(PLACE) == {PLACE: [b"1"]}


async def test_recovery_reads_ahead(consumer: AIOKafkaConsumer[bytes, bytes], producer: AIOKafkaProducer) -> None:
    fetching = Fetching(consumer)
    await send(producer, PLACE, b"0")
    assert await fetching.fetch(PLACE) == {PLACE: [b"0"]}
    assert consumer.paused() == consumer.assignment(), "then partitions move, and it recovers anew"
    fetching.app.fetch_interval_s = LIMIT_S
    for value in (b"1", b"2", b"3"):
        await send(producer, CHANGELOG, value)
        assert await fetching.fetch(CHANGELOG) == {CHANGELOG: [value]}
    assert not consumer.paused()


async def test_nothing_is_fetched_from_no_partitions(consumer: AIOKafkaConsumer[bytes, bytes]) -> None:
    assert await Fetching(consumer)._fetch_records(consumer, set(), timeout=1.0) == {}


async def test_between_two_fetches_there_is_an_interval(
    consumer: AIOKafkaConsumer[bytes, bytes], producer: AIOKafkaProducer
) -> None:
    fetching = Fetching(consumer, interval_s=0.3)
    await send(producer, PLACE, b"1")
    await fetching.fetch(PLACE)
    start_s = monotonic()
    await send(producer, PLACE, b"3")
    assert await fetching.fetch(PLACE) == {PLACE: [b"3"]}
    assert monotonic() - start_s > 0.25
