"""The table of histories: written by the agent only, and never the users of partitions that went elsewhere."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import faust
import pytest
from faust.types import TP
from faust.types.tuples import ConsumerMessage, RecordMetadata

from stream_app import history
from stream_app.faust_options import ROCKSDB, app_options
from stream_app.history import History
from stream_app.settings import Settings
from stream_app.tables import HistoryTable

CHANGELOG = "nextmove-histories-changelog"


def table_of(app: faust.App, **options: Any) -> HistoryTable:
    table: HistoryTable = app.Table("histories", key_type=bytes, value_type=bytes, partitions=4, **options)
    return table


@pytest.fixture
def table() -> HistoryTable:
    return table_of(faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable))


def stored(partition: int) -> bytes:
    return history.encode(History(partition))


def delivered(partition: int, *offsets: int) -> list[RecordMetadata]:
    place = TP(CHANGELOG, partition)
    return [RecordMetadata(CHANGELOG, partition, place, offset, None, None) for offset in offsets]


def test_its_changelog_has_the_name_that_the_settings_say(table: HistoryTable) -> None:
    assert table.changelog_topic_name == CHANGELOG


def test_nothing_is_written_behind_the_back_of_the_changelog(table: HistoryTable) -> None:
    table.apply([(b"u", stored(0))], delivered(0, 0))
    with pytest.raises(TypeError, match="write_changelog and apply"):
        table[b"u"] = stored(1)
    with pytest.raises(TypeError, match="write_changelog and apply"):
        del table[b"u"]
    with pytest.raises(TypeError, match="write_changelog and apply"):
        table[b"v"] = stored(1)
    assert (table.read(b"u"), table.read(b"v")) == (stored(0), None)


def test_what_is_applied_is_read_and_what_is_erased_is_gone(table: HistoryTable) -> None:
    assert table.read(b"u") is None
    table.apply([(b"u", stored(0)), (b"v", stored(0))], delivered(0, 5, 6))
    assert (table.read(b"u"), table.read(b"v")) == (stored(0), stored(0))
    table.apply([(b"u", None), (b"never seen", None), (b"v", stored(1))], delivered(0, 7, 8, 9))
    assert (table.read(b"u"), table.read(b"never seen"), table.read(b"v")) == (None, None, stored(1))
    table.apply([], [])


async def test_changes_go_to_the_changelog_as_recovery_reads_them(table: HistoryTable) -> None:
    """Raw bytes, to the partition of the events, in order; None is a tombstone."""
    sent: list[tuple[Any, ...]] = []

    class Producer:
        async def send(self, *record: Any) -> Awaitable[Any]:
            sent.append(record)
            return asyncio.get_running_loop().create_future()

    table.app.producer = Producer()  # type: ignore[assignment]
    futures = await table.write_changelog(3, [(b"u", b"1"), (b"v", None)])
    assert sent == [(CHANGELOG, b"u", b"1", 3, None, None), (CHANGELOG, b"v", None, 3, None, None)]
    assert len(futures) == 2
    assert table.read(b"u") is None, "only once it is delivered"


class Consumer:
    flows = True

    def stop_flow(self) -> None:
        self.flows = False


async def test_after_a_recovery_users_of_other_partitions_are_gone_and_nothing_flows(table: HistoryTable) -> None:
    app = table.app
    app.consumer = consumer = Consumer()  # type: ignore[assignment]
    app.flow_control.resume()
    for partition in range(4):
        table.apply([(b"user of %d" % partition, stored(partition))], delivered(partition, 0))
    await table.on_recovery_completed({TP(CHANGELOG, 0), TP(CHANGELOG, 2)}, set())
    assert [table.read(b"user of %d" % partition) is not None for partition in range(4)] == [True, False, True, False]
    assert not consumer.flows, "Faust resumes it once it has sought its place"
    assert not app.flow_control.is_active()


async def test_a_memory_store_drops_standby_copies_so_there_are_none(table: HistoryTable) -> None:
    """Faust would go on reading such a partition behind them, and miss these users once it is active here."""
    table.app.consumer = Consumer()  # type: ignore[assignment]
    table.apply([(b"of a standby", stored(1))], delivered(1, 0))
    await table.on_recovery_completed({TP(CHANGELOG, 0)}, {TP(CHANGELOG, 1)})
    assert table.read(b"of a standby") is None, "if Faust keeps them by now, standbys may come back"
    assert app_options(Settings())["table_standby_replicas"] == 0


# RocksDB


@pytest.fixture
def on_disk(tmp_path: Path) -> HistoryTable:
    options = {"store": "rocksdb://", "datadir": str(tmp_path), "Table": HistoryTable}
    return table_of(faust.App("nextmove", broker="kafka://nowhere", **options), options=dict(ROCKSDB))


def test_the_store_on_disk_is_opened_with_small_buffers(on_disk: HistoryTable) -> None:
    options: Any = on_disk.data.rocksdb_options  # type: ignore[attr-defined]
    for name, value in ROCKSDB.items():
        if name != "driver":
            assert getattr(options, name) == value
    assert options.use_rocksdict
    assert options.block_cache_size + options.write_buffer_size * options.max_write_buffer_number < 64 * 1024**2


async def test_the_store_on_disk_keeps_each_partition_apart(on_disk: HistoryTable) -> None:
    """It asks Faust for the event in work; `apply` is called from a task that the agent started for that event."""
    app = on_disk.app
    app.consumer = WithoutAcks()  # type: ignore[assignment]
    app.flow_control.resume()
    channel = app.channel()
    events = app.stream(channel).noack().events()  # type: ignore[attr-defined]
    for partition in (2, 1):
        message = ConsumerMessage("user-events", partition, 0, 0.0, 0, (), None, b"", None)
        message.generation_id = app.consumer_generation_id
        await channel.put(app.create_event(None, b"%d" % partition, {}, message))

    async def work(partition: int) -> None:
        await asyncio.sleep(0.01)  # by now the stream waits for the next event
        on_disk.apply([(b"u", stored(partition)), (b"gone", stored(partition))], delivered(partition, 4, 5))
        on_disk.apply([(b"gone", None)], delivered(partition, 6))
        assert (on_disk.read(b"u"), on_disk.read(b"gone")) == (stored(partition), None)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(2):
            event = await anext(events)
            assert on_disk.read(b"u") is None, "the other partition's"
            group.create_task(work(event.message.partition))
    for partition in (1, 2):
        assert on_disk.data.persisted_offset(TP(CHANGELOG, partition)) == 6


class WithoutAcks:
    """All that a stream wants of a consumer that is not there."""

    def __init__(self) -> None:
        self.unacked = self._unacked_messages = set[ConsumerMessage]()
