"""The table of histories: written by the agent only, and never the users of partitions that went elsewhere."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import faust
import faust.transport.consumer
import pytest
from faust.stores.memory import Store
from faust.types import TP
from faust.types.tuples import ConsumerMessage
from hypothesis import given
from hypothesis import strategies as st
from intervaltree import IntervalTree

from stream_app.faust_options import ROCKSDB, app_options
from stream_app.history_layout import History
from stream_app.intake import ChunkLimits, ChunkScheduler
from stream_app.settings import Settings
from stream_app.tables import PAGE_USERS, Change, HistoryTable
from tests.stream_app.records import FakeRecord

CHANGELOG = "nextmove-histories-changelog"


def table_of(app: faust.App, **options: Any) -> HistoryTable:
    table: HistoryTable = app.Table("histories", key_type=bytes, value_type=bytes, partitions=4, **options)
    return table


@pytest.fixture
def table() -> HistoryTable:
    return table_of(faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable))


@pytest.fixture
def on_disk(tmp_path: Path) -> HistoryTable:
    options = {"store": "rocksdb://", "datadir": str(tmp_path), "Table": HistoryTable}
    return table_of(faust.App("nextmove", broker="kafka://nowhere", **options), options=dict(ROCKSDB))


@pytest.fixture(params=["table", "on_disk"])
def stores(request: pytest.FixtureRequest) -> HistoryTable:
    table: HistoryTable = request.getfixturevalue(request.param)
    return table


def stored(partition: int) -> bytes:
    return History.empty(partition).stored


def test_its_changelog_has_the_name_that_the_settings_say(table: HistoryTable) -> None:
    assert table.changelog_topic_name == CHANGELOG


def test_nothing_is_written_behind_the_back_of_the_changelog(table: HistoryTable) -> None:
    table.apply(0, [(b"u", stored(0))], [0])
    with pytest.raises(TypeError, match="delivered to the changelog and applied"):
        table[b"u"] = stored(1)
    with pytest.raises(TypeError, match="delivered to the changelog and applied"):
        del table[b"u"]
    with pytest.raises(TypeError, match="delivered to the changelog and applied"):
        table[b"v"] = stored(1)
    assert (table.read(b"u"), table.read(b"v")) == (stored(0), None)


def test_what_is_applied_is_read_and_what_is_erased_is_gone(table: HistoryTable) -> None:
    assert table.read(b"u") is None
    table.apply(0, [(b"u", stored(0)), (b"v", stored(0))], [5, 6])
    assert (table.read(b"u"), table.read(b"v")) == (stored(0), stored(0))
    table.apply(0, [(b"u", None), (b"never seen", None), (b"v", stored(1))], [7, 8, 9])
    assert (table.read(b"u"), table.read(b"never seen"), table.read(b"v")) == (None, None, stored(1))
    table.apply(0, [], [])


def test_a_memory_store_holds_the_same_as_after_a_recovery(table: HistoryTable) -> None:
    changes = [(b"u", stored(0)), (b"v", stored(0)), (b"gone", None)]
    table.apply(2, [(b"gone", stored(0))], [4])
    table.apply(2, changes, [5, 6, 7])
    store: Any = table.data
    recovered: Any = Store("memory://", table.app, table)
    places = [(b"gone", stored(0)), *changes]
    events: Any = [Change(key, value, TP(CHANGELOG, 2), 2, n) for n, (key, value) in enumerate(places)]
    recovered.apply_changelog_batch(events, bytes, lambda value: value)
    assert store.data == recovered.data


def test_a_walk_over_all_users_bears_changes_on_the_way(table: HistoryTable) -> None:
    table.apply(0, [(b"%d" % n, stored(0)) for n in range(4)], range(4))
    walk = table.users()
    assert next(walk) == (b"0", stored(0))
    table.apply(1, [(b"1", None), (b"2", stored(1)), (b"new", stored(1))], range(3))
    assert list(walk) == [(b"1", None), (b"2", stored(1)), (b"3", stored(0))]


class Consumer:
    flows = True

    def __init__(self) -> None:
        self._gap, self._acked, self._acked_index = {}, {}, {}  # type: ignore[var-annotated]

    def stop_flow(self) -> None:
        self.flows = False


async def test_after_a_recovery_users_of_other_partitions_are_gone_and_nothing_flows(table: HistoryTable) -> None:
    app = table.app
    app.consumer = consumer = Consumer()  # type: ignore[assignment]
    app.flow_control.resume()
    for partition in range(4):
        table.apply(partition, [(b"user of %d" % partition, stored(partition))], [0])
    await completed(table, 0, 2)
    assert [table.read(b"user of %d" % partition) is not None for partition in range(4)] == [True, False, True, False]
    assert not consumer.flows, "Faust resumes it once it has sought its place"
    assert not app.flow_control.is_active()


async def test_who_goes_when_partitions_move_is_told_by_the_histories(table: HistoryTable) -> None:
    """Also of whom was recovered from a partition that is not theirs any more; and again the next time."""
    table.app.consumer = Consumer()  # type: ignore[assignment]
    store: Any = table.data
    recover(table, [FakeRecord(CHANGELOG, 1, 0, key=b"moved", value=stored(1))])
    recover(table, [FakeRecord(CHANGELOG, 2, 3, key=b"stays", value=stored(2))])
    table.apply(0, [(b"moved", stored(0)), (b"left", stored(0))], [1, 2])
    await completed(table, 0, 2)
    assert set(store.data) == {b"moved", b"left", b"stays"}
    table.apply(2, [(b"left", stored(2)), (b"stays", None)], [4, 5])
    await completed(table, 2)
    assert set(store.data) == {b"left"}
    await completed(table)
    assert not store.data


async def test_a_damaged_history_is_not_lost_when_partitions_move(table: HistoryTable) -> None:
    """It is refused by name once its user comes, not silently begun anew."""
    table.app.consumer = Consumer()  # type: ignore[assignment]
    store: Any = table.data
    for n in range(2):
        recover(table, [FakeRecord(CHANGELOG, n, 0, key=b"user of %d" % n, value=b"no history")])
    await completed(table, 1)
    assert store.data[b"user of 1"] == b"no history"


async def test_what_is_ours_is_asked_when_the_recovery_completes(table: HistoryTable) -> None:
    """Faust calls with what was ours when it began to; by now 0 is again, and its recovery was told where to go on."""
    table.app.consumer = Consumer()  # type: ignore[assignment]
    table.apply(0, [(b"u", stored(0))], [0])
    recovery: Any = table.app.tables.recovery  # type: ignore[attr-defined]
    recovery.active_tps = {TP(CHANGELOG, 0), TP(CHANGELOG, 1)}
    await table.on_recovery_completed({TP(CHANGELOG, 1)}, set())
    assert (table.read(b"u"), table.persisted_offset(TP(CHANGELOG, 0))) == (stored(0), 0)


# Recovery, which Faust leads: it asks where to begin, and brings what comes from there on


async def completed(table: HistoryTable, *partitions: int) -> None:
    """These are ours, and recovered."""
    recovery: Any = table.app.tables.recovery  # type: ignore[attr-defined]
    recovery.active_tps = {TP(CHANGELOG, partition) for partition in partitions}
    await table.on_recovery_completed(recovery.active_tps, set())


def recover(table: HistoryTable, records: Sequence[FakeRecord]) -> None:
    """As Faust does with records of one partition, which is ours."""
    recovery: Any = table.app.tables.recovery  # type: ignore[attr-defined]
    recovery.active_tps.add(TP(records[0].topic, records[0].partition))
    table.apply_changelog_batch(carried(records))


def carried(records: Sequence[FakeRecord]) -> Any:
    """What the scheduler makes of records of one partition, as events."""
    scheduler = ChunkScheduler.for_topics("user-events", CHANGELOG, ChunkLimits(records=3))()
    tp = TP(records[0].topic, records[0].partition)
    return [
        SimpleNamespace(message=ConsumerMessage(*tp, carrier.offset, 0.0, 0, (), None, carrier.value, None))
        for tp, carrier in scheduler.iterate({tp: list(records)})
    ]


changes = st.lists(
    st.tuples(st.sampled_from([b"u", b"v", b"w"]), st.sampled_from([None, stored(0), stored(1)])), max_size=12
)


def records_of(changes: Sequence[tuple[bytes, bytes | None]], begin: int = 0) -> list[FakeRecord]:
    """Every other offset, as a topic has them that was compacted."""
    return [FakeRecord(CHANGELOG, 0, begin + 2 * n, key=key, value=value) for n, (key, value) in enumerate(changes)]


@given(changes, changes)
def test_what_is_recovered_is_what_faust_makes_of_records_one_by_one(
    first: list[tuple[bytes, bytes | None]], later: list[tuple[bytes, bytes | None]]
) -> None:
    """In two goes, as after a rebalance on the way."""
    app = faust.App("nextmove", broker="kafka://nowhere", store="memory://", Table=HistoryTable)
    table = table_of(app)
    one_by_one: Any = Store("memory://", app, table)
    for changes in (records_of(first), records_of(later, begin=2 * len(first))):
        for record in changes:
            event: Any = Change(record.key or b"", record.value, TP(CHANGELOG, 0), 0, record.offset)
            one_by_one.apply_changelog_batch([event], bytes, lambda value: value)
        if changes:
            recover(table, changes)
            assert table.persisted_offset(TP(CHANGELOG, 0)) == changes[-1].offset
            recover(table, changes[:1])  # late: nobody wants it any more
    assert cast(Any, table.data).data == one_by_one.data


async def test_recovery_goes_on_behind_what_a_memory_store_has(table: HistoryTable) -> None:
    table.app.consumer = Consumer()  # type: ignore[assignment]
    places = [TP(CHANGELOG, partition) for partition in range(4)]
    assert [table.persisted_offset(tp) for tp in places] == [-1] * 4
    recover(table, [FakeRecord(CHANGELOG, 1, 7, key=b"u", value=stored(1))])
    table.apply(1, [(b"u", stored(1)), (b"v", stored(1))], [8, 9])
    table.apply(2, [(b"w", stored(2))], [0])
    table.apply(3, [], [])
    assert [table.persisted_offset(tp) for tp in places] == [-1, 9, 0, -1]
    await completed(table, 1, 3)
    assert [table.persisted_offset(tp) for tp in places] == [-1, 9, -1, -1], "the users of 2 are gone"


@pytest.mark.parametrize("offsets", [[6, 7], [5, 7], [4, 5], [-1, -1]])
def test_behind_a_change_of_somebody_else_it_is_read_again(stores: HistoryTable, offsets: list[int]) -> None:
    """A worker that was out of reach delivers late: another one had the partition meanwhile, and wrote at 5, or at 6."""
    table, place = stores, TP(CHANGELOG, 0)
    recover(table, [FakeRecord(CHANGELOG, 0, 4, key=b"u", value=stored(0))])
    table.apply(0, [(b"v", stored(0)), (b"w", stored(0))], offsets)
    table.apply(0, [(b"x", stored(0))], [offsets[-1] + 1])
    assert table.persisted_offset(place) == 4
    assert {user for user, _ in table.users()} == {b"u", b"v", b"w", b"x"}
    recover(table, [FakeRecord(CHANGELOG, 0, offset, key=b"u", value=stored(1)) for offset in (4, 5, 6, 7, 8)])
    table.apply(0, [(b"u", None)], [9])
    assert table.persisted_offset(place) == 9


def test_what_comes_of_a_partition_that_is_not_ours_is_left(table: HistoryTable) -> None:
    """Faust warns, and hands it over all the same. Once the partition is ours, it has to be read from its beginning."""
    recover(table, [FakeRecord(CHANGELOG, 0, 5, key=b"u", value=stored(0))])
    table.apply_changelog_batch(carried([FakeRecord(CHANGELOG, 1, 0, key=b"v", value=stored(1))]))
    assert (table.read(b"v"), table.persisted_offset(TP(CHANGELOG, 1))) == (None, -1)


async def test_a_chunk_that_was_dropped_and_is_cut_otherwise_now_is_not_committed_early(table: HistoryTable) -> None:
    """With Faust's own notes of a chunk 0 … 63 that nobody finished, the first half of it would commit the second."""
    consumer: Any = Consumer()
    consumer._gap, consumer._acked, consumer._acked_index = (
        defaultdict(IntervalTree),
        defaultdict(list),
        defaultdict(set),
    )
    consumer._committed_offset = defaultdict(int)
    table.app.consumer = consumer
    input_0 = TP("user-events", 0)
    await faust.transport.consumer.Consumer._add_gap(consumer, input_0, 1, 63)
    await table.on_recovery_completed({TP(CHANGELOG, 0)}, set())
    await faust.transport.consumer.Consumer._add_gap(consumer, input_0, 1, 31)
    consumer._acked[input_0] = [0, 31]
    for _ in ("its first attempt", "what the first one left over"):
        assert faust.transport.consumer.Consumer._new_offset(consumer, input_0) == 31 + 1


async def test_a_memory_store_drops_standby_copies_so_there_are_none(table: HistoryTable) -> None:
    """Faust would go on reading such a partition behind them, and miss these users once it is active here."""
    store: Any = Store("memory://", table.app, table)
    copy: Any = Change(b"of a standby", stored(1), TP(CHANGELOG, 1), 1, 0)
    store.apply_changelog_batch([copy], bytes, lambda value: value)
    await store.on_recovery_completed({TP(CHANGELOG, 0)}, {TP(CHANGELOG, 1)})
    assert not store.data, "if Faust keeps them by now, standbys may come back"
    assert app_options(Settings())["table_standby_replicas"] == 0


# RocksDB


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
        on_disk.apply(partition, [(b"u", stored(partition)), (b"gone", stored(partition))], [0, 1])
        on_disk.apply(partition, [(b"gone", None)], [2])
        assert (on_disk.read(b"u"), on_disk.read(b"gone")) == (stored(partition), None)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for _ in range(2):
            event = await anext(events)
            assert on_disk.read(b"u") is None, "the other partition's"
            group.create_task(work(event.message.partition))
    for partition in (1, 2):
        assert on_disk.data.persisted_offset(TP(CHANGELOG, partition)) == 2


def test_a_walk_over_a_store_on_disk_holds_no_file_open(on_disk: HistoryTable) -> None:
    """Or the worker that gets the partition, or this one when it comes back, could not open it."""
    store: Any = on_disk.data
    names = [b"%04d" % n for n in range(2 * PAGE_USERS)]
    on_disk.apply(2, [(name, stored(2)) for name in names], range(len(names)))
    on_disk.apply(1, [(b"u", stored(1))], [0])
    assert list(on_disk.users()) == [(b"u", stored(1)), *((name, stored(2)) for name in names)]

    walk = on_disk.users()
    first = [next(walk) for _ in range(PAGE_USERS + 1)]
    on_disk.apply(2, [(names[-1], None)], [len(names)])
    store.revoke_partitions(on_disk, {TP(CHANGELOG, 2)})
    rest = list(walk)
    assert [name for name, _ in [*first, *rest]] == [b"u", *names[:PAGE_USERS]], "what had been read, and no more"
    on_disk.apply(2, [(b"again", stored(2))], [len(names) + 1])
    assert len(list(on_disk.users())) == 1 + len(names) - 1 + 1


def test_a_store_on_disk_knows_how_far_it_was_recovered(on_disk: HistoryTable) -> None:
    recover(
        on_disk, records_of([(b"u", stored(0)), (b"v", stored(0)), (b"w", stored(0)), (b"v", None), (b"u", stored(1))])
    )
    assert list(on_disk.users()) == [(b"u", stored(1)), (b"w", stored(0))]
    assert on_disk.persisted_offset(TP(CHANGELOG, 0)) == 2 * 4
    on_disk.apply(0, [(b"x", stored(0))], [9])
    assert on_disk.persisted_offset(TP(CHANGELOG, 0)) == 9


class WithoutAcks:
    """All that a stream wants of a consumer that is not there."""

    def __init__(self) -> None:
        self.unacked = self._unacked_messages = set[ConsumerMessage]()
