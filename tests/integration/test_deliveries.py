"""Deliveries on a real Kafka: what it refuses for its size stands alone, and everything else arrives in order."""

import asyncio
from collections.abc import Set as AbstractSet

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stream_app import producing, topics
from stream_app.producing import Deliveries, Sendable
from stream_app.topics import TopicPlan
from tests.kafka_server import KafkaServer
from tests.stream_app.test_producing import deliveries, ends, is_at, numbered, read

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

PARTITIONS = 4
MOST_BYTES = 20_000  # that a topic takes in one batch


async def configure(bootstrap: str, topic: str, **limits: int) -> None:
    """Set a topic's limits, and wait until they count: `max_message_bytes=…` for max.message.bytes."""
    configs = {name.replace("_", "."): str(limit) for name, limit in limits.items()}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=configs)])
    finally:
        await admin.close()
    await asyncio.sleep(0.3)


@pytest.fixture
def topic(kafka: KafkaServer, topic_prefix: str) -> str:
    """A topic that takes little."""
    name = f"{topic_prefix}deliveries"
    asyncio.run(topics.create(kafka.bootstrap, [TopicPlan(name, PARTITIONS)]))
    asyncio.run(configure(kafka.bootstrap, name, max_message_bytes=MOST_BYTES))
    return name


def with_large(count: int, places: AbstractSet[int]) -> list[Sendable]:
    """Messages of which those at `places` are too large, whatever they are compressed with."""
    messages = numbered(count)
    noise = producing.__doc__ or ""
    for place in places:
        messages[place] = (b"large", bytes((n * 7919 + ord(noise[n % 97]) * n // 13) % 251 for n in range(90_000)), [])
    return messages


@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("places", [{0}, {25}, {49}, {0, 25, 26, 49}, set(range(8))], ids=str)
async def test_what_is_too_large_is_none_and_the_others_arrive_in_order(
    kafka: KafkaServer, topic: str, idempotent: bool, places: set[int]
) -> None:
    messages = with_large(50, places)
    async with deliveries(kafka.bootstrap, idempotent=idempotent) as producer:
        offsets = await producer.deliver(topic, 1, producer.parcel(messages))
        assert {place for place, offset in enumerate(offsets) if offset is None} == places
        assert [offset for offset in offsets if offset is not None] == list(range(50 - len(places)))
        assert await producer.deliver(topic, 1, producer.parcel(numbered(1))) == [50 - len(places)], (
            "in step with the broker"
        )
    assert is_at(messages, offsets, await read(kafka.bootstrap, topic, 1, 0, 50 - len(places)))


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_what_the_broker_measures_is_compressed(kafka: KafkaServer, topic: str, compression: str) -> None:
    messages = with_large(30, {7})
    messages[20] = (b"compressible", b"x" * 90_000, [])
    async with deliveries(kafka.bootstrap, compression=compression) as producer:
        offsets = await producer.deliver(topic, 0, producer.parcel(messages))
    refused = {7, 20} if compression == "none" else {7}
    assert {place for place, offset in enumerate(offsets) if offset is None} == refused
    assert is_at(messages, offsets, await read(kafka.bootstrap, topic, 0, 0, 30 - len(refused)))


async def test_many_that_fit_alone_and_not_together(kafka: KafkaServer, topic: str) -> None:
    """The limit was lowered below `batch_bytes`: nothing is refused, all goes in smaller batches."""
    messages = numbered(400, size=1000)
    async with deliveries(kafka.bootstrap, linger_ms=5) as producer:
        assert await producer.deliver(topic, 0, producer.parcel(messages)) == list(range(400))
    assert is_at(messages, list(range(400)), await read(kafka.bootstrap, topic, 0, 0, 400))


@pytest.mark.parametrize("producers", [1, 3])
@pytest.mark.parametrize("refused", [1, 3])
async def test_other_partitions_go_on_while_some_are_refused(
    kafka: KafkaServer, topic: str, refused: int, producers: int
) -> None:
    """Also where several are refused by one answer of the broker: no record is lost, moved or written twice."""
    rounds = 15

    async def keep_delivering(producer: Deliveries, partition: int) -> tuple[list[Sendable], list[int | None]]:
        sent: list[Sendable] = []
        offsets: list[int | None] = []
        for _ in range(rounds):
            messages = with_large(10, {5} if partition < refused else set())
            sent += messages
            offsets += await producer.deliver(topic, partition, producer.parcel(messages))
        return sent, offsets

    async with deliveries(kafka.bootstrap, producers=producers) as producer:
        answers = await asyncio.gather(*(keep_delivering(producer, partition) for partition in range(PARTITIONS)))
        for partition, end in enumerate(await ends(kafka.bootstrap, topic, PARTITIONS)):
            sent, offsets = answers[partition]
            assert end == rounds * (9 if partition < refused else 10)
            assert is_at(sent, offsets, await read(kafka.bootstrap, topic, partition, 0, end))
    assert not any(lane._retiring for lane in producer._lanes)


async def test_a_batch_larger_than_a_segment_is_too_large(kafka: KafkaServer, topic: str) -> None:
    """The broker has another error for it."""
    await configure(kafka.bootstrap, topic, max_message_bytes=4_000_000, segment_bytes=1_048_576)
    messages = numbered(9)
    messages[4] = (b"large", b"x" * 2_000_000, [])
    async with deliveries(kafka.bootstrap) as producer:
        offsets = await producer.deliver(topic, 0, producer.parcel(messages))
    assert offsets == [0, 1, 2, 3, None, 4, 5, 6, 7]
    assert is_at(messages, offsets, await read(kafka.bootstrap, topic, 0, 0, 8))


async def test_a_broker_that_comes_back_in_time_has_everything_once(kafka: KafkaServer, topic: str) -> None:
    messages = numbered(2000)  # in batches of a few: a warm broker has 200 before it is killed
    async with deliveries(kafka.bootstrap, batch_bytes=1024) as producer:
        await producer.deliver(topic, 0, producer.parcel(messages))
        delivering = asyncio.create_task(producer.deliver(topic, 0, producer.parcel(messages)))
        await asyncio.sleep(0.005)
        kafka.kill()
        try:
            await asyncio.sleep(0.5)
            assert not delivering.done(), "the kill came too late"
        finally:
            await asyncio.to_thread(kafka.restart)
        assert await delivering == list(range(2000, 4000))
    assert is_at(messages, list(range(2000, 4000)), await read(kafka.bootstrap, topic, 0, 2000, 2000))
    assert (await ends(kafka.bootstrap, topic, 1)) == [4000]


async def test_a_topic_that_is_met_while_the_producer_is_renewed(kafka: KafkaServer, topic: str) -> None:
    """Dead letters are rare: their topic may be looked up for the first time while others are refused."""
    letters = f"{topic}-letters"
    await topics.create(kafka.bootstrap, [TopicPlan(letters, PARTITIONS)])

    async def reject(producer: Deliveries, partition: int) -> None:
        for count in range(1, 12):
            large = with_large(count, set(range(partition, count)))  # partitions are refused at different times
            places = await producer.deliver(topic, partition, producer.parcel(large))
            await producer.deliver(letters, partition, producer.parcel(numbered(places.count(None))))

    for _ in range(rounds := 4):
        async with asyncio.timeout(30), deliveries(kafka.bootstrap) as producer:
            await asyncio.gather(*(reject(producer, partition) for partition in range(PARTITIONS)))
    refused = [rounds * sum(max(0, count - partition) for count in range(1, 12)) for partition in range(PARTITIONS)]
    assert await ends(kafka.bootstrap, letters, PARTITIONS) == refused
