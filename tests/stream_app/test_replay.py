"""Logs played again: in the order of event time, at the pace asked for, and to the partitions that Kafka would choose."""

import asyncio
import io
import json
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import polars as pl
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from stream_app import replay
from stream_app.broker import EmbeddedBroker
from stream_app.event_logs import to_records
from stream_app.events import Reason
from stream_app.replay import SENT_TOGETHER, Pace, ReplayError, inline, place, to_kafka
from stream_app.simulation import ShopConfig, simulate
from tests import checker
from tests.stream_app.records import NOW_MS
from tests.stream_app.test_pipeline import pipeline

PARTITIONS = 3


def frame_of(*events: tuple[str, int], item: str = "i") -> pl.DataFrame:
    """Views by (user, ms after `NOW_MS`)."""
    return pl.DataFrame(
        {
            "user_id": [user for user, _ in events],
            "timestamp": [NOW_MS + ms for _, ms in events],
            "behavior": ["view"] * len(events),
            "item_id": [item] * len(events),
            "category": [None] * len(events),
            "price": [None] * len(events),
        },
        schema={
            "user_id": pl.String, "timestamp": pl.Int64, "behavior": pl.String, "item_id": pl.String,
            "category": pl.String, "price": pl.Float64,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def shop() -> pl.DataFrame:
    return simulate(ShopConfig(users=40, items=100, days=2, seed=1))


# The pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock; its one entry is the time."""
    now = [1000.0]
    monkeypatch.setattr(replay, "monotonic", lambda: now[0])
    return now


def test_an_hour_of_the_log_takes_a_minute_at_speed_60(clock: list[float]) -> None:
    pace = Pace(NOW_MS, 60)
    assert pace.wait_s(NOW_MS) == 0
    assert pace.wait_s(NOW_MS + 3_600_000) == pytest.approx(60)
    clock[0] += 45
    assert pace.wait_s(NOW_MS + 3_600_000) == pytest.approx(60 - 45)
    assert pace.wait_s(NOW_MS + 30 * 60_000) == 0, "it was due 15 s ago"


def test_at_speed_1_seconds_are_seconds(clock: list[float]) -> None:
    pace = Pace(NOW_MS, 1)
    clock[0] += 0.5
    assert pace.wait_s(NOW_MS + 2000) == pytest.approx(1.5)


@pytest.mark.usefixtures("clock")
def test_as_fast_as_can_be_never_waits() -> None:
    assert Pace(NOW_MS, None).wait_s(NOW_MS + 10**12) == 0


# Partitions: the vectors are those of Kafka's own UtilsTest.testMurmur2

MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


@pytest.mark.parametrize("partitions", [1, 2, 4, 7, 1000])
def test_a_key_goes_where_kafka_s_own_producer_would_put_it(partitions: int) -> None:
    placed = list(place(((key, b"") for key in MURMUR2), "t", partitions, NOW_MS))
    assert [record.partition for record in placed] == [(h & 0x7FFFFFFF) % partitions for h in MURMUR2.values()]


@given(st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=30), st.integers(1, 5))
def test_offsets_count_up_in_each_partition(keys: list[bytes], partitions: int) -> None:
    records = list(place(((key, b"%d" % n) for n, key in enumerate(keys)), "t", partitions, NOW_MS))
    assert [record.value for record in records] == [b"%d" % n for n in range(len(keys))]
    for partition in range(partitions):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(len(mine)))
    assert {(record.topic, record.timestamp, record.headers) for record in records} <= {("t", NOW_MS, ())}


# Into Kafka


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"shop": PARTITIONS, "empty": 1, "throttled": 1}) as running:
        yield running


def send(broker: EmbeddedBroker, frame: pl.DataFrame, topic: str, **options: Any) -> int:
    async def run() -> int:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, enable_idempotence=True) as producer:
            return await to_kafka(frame, producer, topic, **options)

    return asyncio.run(run())


def test_a_log_arrives_whole_in_order_and_where_an_inline_replay_says(
    broker: EmbeddedBroker, shop: pl.DataFrame
) -> None:
    progress: list[int] = []
    assert send(broker, shop, "shop", progress=progress.append) == len(shop)
    found = asyncio.run(checker.read_topic(broker.bootstrap, "shop"))
    key = {(record.partition, record.offset): (record.key, record.value) for record in found}
    expected = {
        (record.partition, record.offset): (record.key, record.value)
        for record in place(to_records(shop), "shop", PARTITIONS, NOW_MS)
    }
    assert key == expected
    for _, records in groupby(found, lambda record: record.partition):
        times = [json.loads(record.value)["timestamp"] for record in records]
        assert times == sorted(times)
    assert progress == sorted(progress)
    assert progress[-1] == len(shop)


def test_an_empty_log_is_no_record(broker: EmbeddedBroker) -> None:
    progress: list[int] = []
    assert send(broker, frame_of(), "empty", progress=progress.append) == 0
    assert asyncio.run(checker.read_topic(broker.bootstrap, "empty")) == []


def test_whoever_throttles_is_asked_before_more_is_sent(broker: EmbeddedBroker) -> None:
    frame = frame_of(*[("u", n) for n in range(2 * SENT_TOGETHER + 1)])
    asked: list[tuple[int, int]] = []

    async def throttle(sent: int) -> None:
        found = await checker.read_topic(broker.bootstrap, "throttled")
        asked.append((sent, len(found)))

    assert send(broker, frame, "throttled", throttle=throttle) == len(frame)
    assert asked == [(SENT_TOGETHER, SENT_TOGETHER), (2 * SENT_TOGETHER, 2 * SENT_TOGETHER)]


class FailingProducer:
    """Takes two records, and delivers the first."""

    def __init__(self) -> None:
        self.sent = 0

    async def send(self, topic: str, value: bytes, *, key: bytes) -> asyncio.Future[None]:
        self.sent += 1
        if self.sent > 2:
            raise KafkaTimeoutError("gone")
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def test_a_broker_that_fails_is_one_line() -> None:
    frame = frame_of(*[("u", n) for n in range(5)])
    with pytest.raises(ReplayError, match="^after 2 events the broker failed: KafkaTimeoutError: .*gone") as caught:
        asyncio.run(to_kafka(frame, FailingProducer(), "t"))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


# Inline


def test_an_inline_replay_counts_what_became_of_each_event() -> None:
    events = [("u", 0), ("u", 1), ("v", 2), ("u", 10_000), ("u", 20)]  # the last one is too late for the steps
    out, progress = io.BytesIO(), list[int]()
    done = inline(frame_of(*events), pipeline(), out, topic="t", partitions=2, now_ms=NOW_MS, progress=progress.append)
    assert (done.events, done.predictions, done.dead_letters) == (5, 4, {Reason.TOO_LATE: 1})
    predictions = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(p["user_id"], p["as_of"] - NOW_MS) for p in predictions] == events[:4]
    ids = [f"t-{record.partition}-{record.offset}" for record in place(to_records(frame_of(*events)), "t", 2, NOW_MS)]
    assert [p["prediction_id"] for p in predictions] == ids[:4]
    assert progress == [5]


def test_an_inline_replay_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch, shop: pl.DataFrame) -> None:
    written = []
    for size in (replay.INLINE_BATCH, 7):
        monkeypatch.setattr(replay, "INLINE_BATCH", size)
        out = io.BytesIO()
        done = inline(shop, pipeline(), out, topic="t", partitions=PARTITIONS, now_ms=NOW_MS * 2)
        assert done.predictions == len(out.getvalue().splitlines())
        assert done.predictions + done.dead_letters.total() == done.events == len(shop)
        written.append(out.getvalue())
    assert written[0] == written[1]
