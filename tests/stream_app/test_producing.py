"""Deliveries on the embedded broker: whole batches, in order, with their offsets, and an end within its time.

What a broker may refuse is asked of a real one: `tests/integration/test_deliveries.py`.
"""

import asyncio
import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError, ProducerClosed
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from stream_app import producing
from stream_app.broker import EmbeddedBroker
from stream_app.producing import Deliveries, Lane, Sendable, unpacked
from stream_app.settings import Settings
from tests.processes import free_port

TOPIC = "deliveries"
PARTITIONS = 3
NOWHERE = "nowhere"  # a topic that no broker has
SLOW = "slow"  # one whose batches the broker refuses when the producer stops, and not before


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({TOPIC: PARTITIONS}) as running:
        yield running


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "REQUEST_TIMEOUT_S", 1.0)
    monkeypatch.setattr(producing, "STOP_S", 0.5)


def deliveries(bootstrap: str, *, producers: int = 1, **options: Any) -> Deliveries:
    return Deliveries(Settings(broker=bootstrap, producers=producers, **options))


def only_lane(deliveries: Deliveries) -> Lane:
    (lane,) = deliveries._lanes
    return lane


def numbered(count: int, size: int = 20) -> list[Sendable]:
    """Messages that say which they are, each with a header of its own."""
    return [(b"user %d" % n, b"%0*d" % (size, n), [("number", b"%d" % n)]) for n in range(count)]


async def read(bootstrap: str, topic: str, partition: int, first: int, count: int) -> list[ConsumerRecord]:
    """So many records of a partition, from the offset `first` on."""
    if not count:
        return []
    place = TopicPartition(topic, partition)
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, max_partition_fetch_bytes=8 << 20)
    await consumer.start()
    try:
        consumer.assign([place])
        consumer.seek(place, first)
        async with asyncio.timeout(20):
            return [await consumer.getone() for _ in range(count)]
    finally:
        await consumer.stop()


async def ends(bootstrap: str, topic: str = TOPIC, partitions: int = PARTITIONS) -> list[int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        found = await consumer.end_offsets([TopicPartition(topic, number) for number in range(partitions)])
        return [end for _, end in sorted(found.items())]
    finally:
        await consumer.stop()


def is_at(messages: Sequence[Sendable], offsets: Sequence[int | None], records: Sequence[ConsumerRecord]) -> bool:
    """Whether each message that has an offset is the record there, and no other record is."""
    sent = {offset: message for message, offset in zip(messages, offsets, strict=True) if offset is not None}
    found = {record.offset: (record.key, record.value, [*record.headers]) for record in records}
    return found == {offset: (key, value, [*headers]) for offset, (key, value, headers) in sent.items()}


# What was delivered, and where it lies


@pytest.mark.parametrize("compression", ["none", "gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize("idempotent", [True, False])
async def test_each_message_has_the_offset_that_is_answered(
    broker: EmbeddedBroker, compression: str, idempotent: bool
) -> None:
    messages = numbered(400)
    async with deliveries(
        broker.bootstrap, compression=compression, idempotent=idempotent, batch_bytes=4096
    ) as producer:
        assert len(producer.parcel(messages).batches()) > 4
        first = (await ends(broker.bootstrap))[1]
        offsets = await producer.deliver(TOPIC, 1, producer.parcel(messages))
        assert offsets == list(range(first, first + 400)), "in order, one behind the other"
        assert await producer.deliver(TOPIC, 1, producer.parcel(messages[:1])) == [first + 400]
    assert is_at(messages, offsets, await read(broker.bootstrap, TOPIC, 1, first, 400))


async def test_a_tombstone_and_what_has_no_key_go_too(broker: EmbeddedBroker) -> None:
    messages: list[Sendable] = [(b"u", None, []), (None, b"v", [("h", b"")]), (b"", b"", [])]
    async with deliveries(broker.bootstrap) as producer:
        offsets = await producer.deliver(TOPIC, 0, producer.parcel(messages))
    assert offsets[0] is not None
    assert is_at(messages, offsets, await read(broker.bootstrap, TOPIC, 0, offsets[0], 3))


async def test_nothing_to_deliver_asks_nobody(broker: EmbeddedBroker) -> None:
    async with deliveries(broker.bootstrap) as producer:
        assert await producer.deliver("no such topic", 99, producer.parcel([])) == []


async def test_a_record_says_when_it_was_produced(broker: EmbeddedBroker) -> None:
    before_ms = int(time.time() * 1000)
    async with deliveries(broker.bootstrap) as producer:
        (offset,) = await producer.deliver(TOPIC, 0, producer.parcel(numbered(1)))
    assert offset is not None
    (record,) = await read(broker.bootstrap, TOPIC, 0, offset, 1)
    assert before_ms <= record.timestamp <= int(time.time() * 1000)


@pytest.mark.parametrize("linger_ms", [0, 50])
async def test_partitions_at_the_same_time_do_not_wait_for_each_other(broker: EmbeddedBroker, linger_ms: int) -> None:
    messages = numbered(200)
    async with deliveries(broker.bootstrap, linger_ms=linger_ms, batch_bytes=2048) as producer:
        first = await ends(broker.bootstrap)
        answers = await asyncio.gather(
            *(producer.deliver(TOPIC, number, producer.parcel(messages)) for number in range(PARTITIONS))
        )
    for number, offsets in enumerate(answers):
        assert offsets == list(range(first[number], first[number] + 200))
        assert is_at(messages, offsets, await read(broker.bootstrap, TOPIC, number, first[number], 200))


async def test_a_batch_that_is_full_does_not_linger(broker: EmbeddedBroker) -> None:
    async with deliveries(broker.bootstrap, linger_ms=1000, batch_bytes=1024) as producer:
        await producer.deliver(TOPIC, 0, producer.parcel(numbered(1)))  # knows the topic by now
        start = time.monotonic()
        batches = len(producer.parcel(numbered(100)).batches())
        await producer.deliver(TOPIC, 0, producer.parcel(numbered(100)))
        assert batches > 4
        assert 0.5 < time.monotonic() - start < batches / 2, "the last one alone has lingered"


# Batches

sizes = st.lists(st.integers(0, 3000), max_size=60)


@given(sizes, st.integers(1, 20), st.sampled_from([1024, 1500, 4000]), st.sampled_from(["none", "zstd"]))
def test_batches_are_the_messages_in_order_and_within_the_limit(
    sizes: list[int], piece: int, limit: int, compression: str
) -> None:
    """However they are added: at once, or so many at a time."""
    messages: list[Sendable] = [(b"%d" % n, os.urandom(size), [("h", b"1")]) for n, size in enumerate(sizes)]

    async def pack() -> list[BatchBuilder]:
        lane = Lane(Settings(broker="127.0.0.1:1", batch_bytes=limit, compression=compression))
        lane._producer = lane._new_producer()
        try:
            parcel = lane.parcel(messages[:piece])
            for start in range(piece, len(messages), piece):
                parcel.add(messages[start : start + piece])
            return parcel.batches()
        finally:
            await lane._producer.stop()

    batches = asyncio.run(pack())
    assert all(batch.closed() for batch in batches)
    counts, packed = [batch.record_count() for batch in batches], [batch.size() for batch in batches]
    contents = [unpacked(batch) for batch in batches]
    assert [message for content in contents for message in content] == messages
    assert [len(content) for content in contents] == counts
    assert all(count > 0 for count in counts)
    assert all(size <= limit or count == 1 for size, count in zip(packed, counts, strict=True))
    for size, following in zip(packed, contents[1:], strict=False):  # none is smaller than it must be
        assert size + len(following[0][1] or b"") + 40 > limit, "40 bytes are around a message"


async def test_the_last_batch_of_a_parcel_may_linger(broker: EmbeddedBroker) -> None:
    for linger_ms in (0, 50):
        async with deliveries(broker.bootstrap, linger_ms=linger_ms, batch_bytes=1024) as producer:
            *full, last = producer.parcel(numbered(100)).batches()
            assert full
            assert all(batch.closed() for batch in full)
            assert last.closed() == (linger_ms == 0)


@pytest.mark.parametrize("place", [0, 5, 9])
async def test_a_message_larger_than_a_batch_stands_alone(broker: EmbeddedBroker, place: int) -> None:
    messages = numbered(10)
    messages[place] = (b"large", b"x" * 50_000, [])
    async with deliveries(broker.bootstrap, batch_bytes=1024) as producer:
        assert [batch.record_count() for batch in producer.parcel(messages).batches()].count(1) >= 1
        offsets = await producer.deliver(TOPIC, 2, producer.parcel(messages))
    assert offsets[0] is not None
    assert is_at(messages, offsets, await read(broker.bootstrap, TOPIC, 2, offsets[0], 10))


@pytest.mark.parametrize("places", [{0}, {4}, {9}, {0, 1, 9}, set(range(10))])
async def test_what_is_above_the_largest_request_is_not_even_sent(broker: EmbeddedBroker, places: set[int]) -> None:
    messages = numbered(10)
    for place in places:
        messages[place] = (b"large", b"x" * 3000, [])
    async with deliveries(broker.bootstrap, max_request_bytes=2000) as producer:
        first = (await ends(broker.bootstrap))[0]
        offsets = await producer.deliver(TOPIC, 0, producer.parcel(messages))
    assert [place for place, offset in enumerate(offsets) if offset is None] == sorted(places)
    assert [offset for offset in offsets if offset is not None] == list(range(first, first + 10 - len(places)))
    assert is_at(messages, offsets, await read(broker.bootstrap, TOPIC, 0, first, 10 - len(places)))


# Renewal: the broker's answers are given by hand


class Refusing:
    """A producer in the place of aiokafka's that refuses its first batches."""

    def __init__(self, refusals: int, log: list[str]) -> None:
        self.refusals, self.log, self.closed = refusals, log, False
        self.under_way: list[asyncio.Future[Any]] = []

    async def start(self) -> None:
        await asyncio.sleep(0.01)

    async def stop(self) -> None:
        self.closed = True
        for answer in self.under_way:
            answer.set_exception(MessageSizeTooLargeError())
        await asyncio.sleep(0.02)  # whoever was refused has its turn
        self.log.append("stopped")

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(4096, 0)

    async def send_batch(self, builder: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        await asyncio.sleep(0.005)  # it may have to ask for the topic first
        if topic == NOWHERE:
            await asyncio.Event().wait()  # as aiokafka does, even when it is closed
        if self.closed:
            raise ProducerClosed
        answer = asyncio.get_running_loop().create_future()
        if topic == SLOW:
            self.under_way.append(answer)
        elif self.refusals:
            self.refusals -= 1
            answer.set_exception(MessageSizeTooLargeError())
        else:
            answer.set_result(type("Metadata", (), {"offset": 7}))
        return answer


def by_hand(monkeypatch: pytest.MonkeyPatch, *refusals: int, **options: Any) -> tuple[Deliveries, list[str]]:
    """Deliveries whose first producer refuses so many batches, the next one so many, and so on."""
    log: list[str] = []
    left = list(refusals)

    def new(_: Lane) -> Refusing:
        log.append("new")
        return Refusing(left.pop(0), log)

    monkeypatch.setattr(Lane, "_new_producer", new)
    return deliveries("127.0.0.1:1", **options), log


async def test_partitions_that_are_refused_together_renew_the_producer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second renewal would stop the new producer while it starts."""
    producer, log = by_hand(monkeypatch, 2, 0)
    async with producer:
        answers = await asyncio.gather(*(producer.deliver(TOPIC, n, producer.parcel(numbered(1))) for n in range(2)))
        assert answers == [[None], [None]]
        assert await producer.deliver(TOPIC, 0, producer.parcel(numbered(1))) == [7]
    assert log == ["new", "new", "stopped", "stopped"]


async def test_a_batch_that_came_to_a_producer_just_renewed_goes_to_the_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer, _ = by_hand(monkeypatch, 1, 0)
    async with producer:
        refused = asyncio.create_task(producer.deliver(TOPIC, 0, producer.parcel(numbered(1))))
        late: asyncio.Task[list[int | None]] | None = None
        lane = only_lane(producer)
        old = lane._producer
        while lane._producer is old:
            late = asyncio.create_task(producer.deliver(TOPIC, 1, producer.parcel(numbered(1))))
            await asyncio.sleep(0.001)
        assert late is not None
        assert (await refused, await late) == ([None], [7])


async def test_without_idempotence_nothing_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    producer, log = by_hand(monkeypatch, 3, idempotent=False)
    async with producer:
        assert await producer.deliver(TOPIC, 0, producer.parcel(numbered(1))) == [None]
        assert await producer.deliver(TOPIC, 0, producer.parcel(numbered(2))) == [None, 7], "the whole, then the halves"
    assert log == ["new", "stopped"]


async def test_a_closed_producer_is_an_error_and_not_tried_for_ever(broker: EmbeddedBroker) -> None:
    async with deliveries(broker.bootstrap) as producer:
        await producer.deliver(TOPIC, 0, producer.parcel(numbered(1)))
    with pytest.raises(ProducerClosed):
        await asyncio.wait_for(producer.deliver(TOPIC, 0, producer.parcel(numbered(1))), 5)


@pytest.mark.parametrize("renewed", [False, True])
async def test_the_end_does_not_wait_for_a_batch_whose_topic_is_not_found(
    monkeypatch: pytest.MonkeyPatch, renewed: bool
) -> None:
    monkeypatch.setattr(producing, "STOP_S", 0.5)
    producer, log = by_hand(monkeypatch, 0, 0)
    async with asyncio.timeout(30), producer:
        lost = [asyncio.create_task(producer.deliver(NOWHERE, 0, producer.parcel(numbered(1))))]
        await asyncio.sleep(0.1)
        if renewed:
            lane = only_lane(producer)
            await lane._renew(lane._producer)
            lost.append(asyncio.create_task(producer.deliver(NOWHERE, 0, producer.parcel(numbered(1)))))
            await asyncio.sleep(0.1)
        start = time.monotonic()
    assert time.monotonic() - start < 3 * producing.STOP_S
    assert log.count("stopped") == log.count("new") == len(lost)
    for task in lost:
        with pytest.raises(ProducerClosed):
            await task


async def test_a_producer_that_is_being_renewed_at_the_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a delivery may have failed meanwhile, for another reason."""
    producer, log = by_hand(monkeypatch, 1, 0)
    async with producer:
        refused = asyncio.create_task(producer.deliver(TOPIC, 0, producer.parcel(numbered(2))))
        while log.count("new") < 2:
            await asyncio.sleep(0)
    assert log == ["new", "new", "stopped", "stopped"]
    with pytest.raises(ProducerClosed):
        await refused


async def test_what_is_refused_at_the_end_renews_no_producer(monkeypatch: pytest.MonkeyPatch) -> None:
    producer, log = by_hand(monkeypatch, 0, 0)
    async with producer:
        refused = asyncio.create_task(producer.deliver(SLOW, 0, producer.parcel(numbered(2))))
        await asyncio.sleep(0.05)
    with pytest.raises(ProducerClosed):
        await refused
    assert log == ["new", "stopped"]


@pytest.mark.usefixtures("short")
async def test_the_end_waits_no_longer_for_a_producer_that_was_replaced(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its limit alone would be that of a request."""
    monkeypatch.setattr(producing, "REQUEST_TIMEOUT_S", 60.0)
    async with asyncio.timeout(30), deliveries(broker.bootstrap, linger_ms=1000) as producer:
        lane = only_lane(producer)
        lane._producer._message_accumulator._linger_time = 20.0  # seconds
        lost = asyncio.create_task(producer.deliver(TOPIC, 0, producer.parcel(numbered(1))))
        await asyncio.sleep(0.2)
        await lane._renew(lane._producer)
        await asyncio.sleep(0.1)
        assert len(lane._retiring) == 1
        start = time.monotonic()
    assert time.monotonic() - start < 4 * producing.STOP_S
    assert not lane._retiring
    lost.cancel()


# Several producers


class Counting:
    """A producer in the place of aiokafka's that keeps what it is given; `broker` says whether it finds one."""

    def __init__(self, broker: str) -> None:
        self.broker, self.taken, self.running = broker, set[tuple[str, int]](), False

    async def start(self) -> None:
        await asyncio.sleep(0.001)
        if self.broker == "silent":
            await asyncio.Event().wait()
        if self.broker == "gone":
            raise KafkaConnectionError
        self.running = True

    async def stop(self) -> None:
        self.running = False

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(4096, 0)

    async def send_batch(self, builder: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        self.taken.add((topic, partition))
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(type("Metadata", (), {"offset": 7}))
        return answer


def counting(monkeypatch: pytest.MonkeyPatch, *brokers: str) -> list[Counting]:
    """The producers as they are made: what each finds is said in `brokers`."""
    made: list[Counting] = []

    def new(_: Lane) -> Counting:
        made.append(Counting(brokers[len(made)]))
        return made[-1]

    monkeypatch.setattr(Lane, "_new_producer", new)
    return made


async def test_a_partition_keeps_to_its_producer_and_producers_share_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two producers of one partition could overtake each other."""
    made, order = counting(monkeypatch, *["there"] * 4), random.Random(0)
    places = {(topic, partition) for topic in ("a", "b", "c") for partition in range(8)}
    async with deliveries("127.0.0.1:1", producers=4) as producer:
        for _ in range(3):
            for topic, partition in order.sample(sorted(places), len(places)):
                await producer.deliver(topic, partition, producer.parcel(numbered(1)))
        assert all(one.running for one in made)
    assert sorted(place for one in made for place in one.taken) == sorted(places)
    assert [len(one.taken) for one in made] == [24 / 4] * 4
    assert not any(one.running for one in made)


async def test_where_one_finds_no_broker_the_others_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting(monkeypatch, "there", "there", "gone")
    with pytest.raises(KafkaConnectionError):
        async with deliveries("127.0.0.1:1", producers=3):
            pass
    assert len(made) == 3
    assert not any(one.running for one in made)


async def test_where_the_start_is_given_up_those_that_had_started_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    made = counting(monkeypatch, "there", "there", "silent")
    starting = asyncio.create_task(deliveries("127.0.0.1:1", producers=3).__aenter__())
    await asyncio.sleep(0.1)
    assert [one.running for one in made] == [True, True, False]
    starting.cancel()
    await asyncio.wait({starting})
    assert starting.cancelled()
    assert not any(one.running for one in made)


# A broker that goes away


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("idempotent", [True, False])
@pytest.mark.parametrize("how", ["gone", "frozen"])
async def test_a_broker_that_goes_away_is_an_error_in_time_and_the_end_does_not_wait_for_it(
    idempotent: bool, how: str
) -> None:
    with EmbeddedBroker({TOPIC: 1}) as broker:
        try:
            async with asyncio.timeout(15), deliveries(broker.bootstrap, idempotent=idempotent) as producer:
                await producer.deliver(TOPIC, 0, producer.parcel(numbered(3)))
                os.kill(broker.pid, signal.SIGKILL if how == "gone" else signal.SIGSTOP)
                await asyncio.sleep(0.2)  # for all its threads
                start = time.monotonic()
                with pytest.raises(KafkaError):
                    await producer.deliver(TOPIC, 0, producer.parcel(numbered(3)))
                assert time.monotonic() - start < 5
                start = time.monotonic()
            assert time.monotonic() - start < 5
        finally:
            if how == "frozen":
                os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("idempotent", [True, False])
async def test_what_a_broker_did_not_take_in_time_is_not_tried_again(idempotent: bool) -> None:
    """Later it could be written over what somebody else has written meanwhile."""
    with EmbeddedBroker({TOPIC: 1}) as broker:
        async with deliveries(broker.bootstrap, idempotent=idempotent) as producer:
            await producer.deliver(TOPIC, 0, producer.parcel(numbered(1)))
            client = only_lane(producer)._producer.client
            os.kill(broker.pid, signal.SIGSTOP)
            await asyncio.sleep(0.2)  # for all its threads
            try:
                with pytest.raises(KafkaError):
                    await producer.deliver(TOPIC, 0, producer.parcel(numbered(2)))
                await asyncio.wait_for(producer.__aexit__(None, None, None), 5)
            finally:
                os.kill(broker.pid, signal.SIGCONT)
            await asyncio.sleep(1)  # it would have connected anew ten times
            assert not any(connection.connected() for connection in client._conns.values())


@pytest.mark.usefixtures("short")
async def test_a_broker_that_is_not_there_is_an_error_at_the_start() -> None:
    with pytest.raises(KafkaError):
        async with asyncio.timeout(5), deliveries(f"127.0.0.1:{free_port()}"):
            pass


@pytest.mark.usefixtures("short")
async def test_a_broker_that_does_not_answer_is_an_error_at_the_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it never accepts
        port = silent.getsockname()[1]
        with pytest.raises(KafkaError):
            async with asyncio.timeout(5), deliveries(f"127.0.0.1:{port}"):
                pass


# The end


async def test_what_is_under_way_at_the_end_is_delivered(broker: EmbeddedBroker) -> None:
    async with deliveries(broker.bootstrap, linger_ms=200) as producer:
        await producer.deliver(TOPIC, 0, producer.parcel(numbered(1)))
        first = (await ends(broker.bootstrap))[0]
        under_way = asyncio.create_task(producer.deliver(TOPIC, 0, producer.parcel(numbered(10))))
        await asyncio.sleep(0.01)
    assert await under_way == list(range(first, first + 10))


async def test_nothing_is_left_running(broker: EmbeddedBroker) -> None:
    before = asyncio.all_tasks()
    async with deliveries(broker.bootstrap) as producer:
        await producer.deliver(TOPIC, 0, producer.parcel(numbered(10)))
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == before
