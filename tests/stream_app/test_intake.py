"""Chunks: nothing lost, nothing moved, every limit kept; and carriers that Faust takes for records."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_app.intake import Carrier, Chunk, ChunkLimits, ChunkLostError, ChunkOrder, ChunkScheduler, chunks
from tests.stream_app.records import NOW_MS, FakeRecord

INPUT = "user-events"
CHANGELOG = "app-histories-changelog"
ROOMY = ChunkLimits(records=1000, bytes=10**9, per_user=1000)

keys = st.sampled_from([None, b"", b"a", b"b", b"c"])
values = st.binary(max_size=30) | st.just(b"x" * 200)
contents = st.tuples(keys, st.one_of(values, values, values, st.none()))
limits = st.builds(ChunkLimits, records=st.integers(1, 8), bytes=st.integers(1, 300), per_user=st.integers(1, 5))


def fetched(contents: Sequence[tuple[bytes | None, bytes | None]], topic: str = INPUT, partition: int = 0) -> list[Any]:
    """Records at consecutive offsets."""
    return [FakeRecord(topic, partition, offset, NOW_MS, *content) for offset, content in enumerate(contents)]


def size(records: Sequence[FakeRecord]) -> int:
    return sum(len(record.key or b"") + len(record.value or b"") for record in records)


def most_of_a_user(records: Sequence[FakeRecord]) -> int:
    """How many of the records may be one user's: one without a key may be anybody's."""
    keys = Counter(record.key for record in records)
    return keys.pop(None, 0) + max(keys.values(), default=0)


def bounded(chunk: Sequence[FakeRecord], limits: ChunkLimits) -> bool:
    return (
        len(chunk) <= limits.records
        and (len(chunk) == 1 or size(chunk) <= limits.bytes)
        and most_of_a_user(chunk) <= limits.per_user
        and (len(chunk) == 1 or all(record.value is not None for record in chunk))
    )


@settings(max_examples=300)
@given(st.lists(contents, max_size=40).map(fetched), limits)
def test_chunks_are_the_records_cut_where_they_must_be(records: list[Any], limits: ChunkLimits) -> None:
    cut = list(chunks(records, limits))
    assert [record for chunk in cut for record in chunk] == records
    assert all(cut)
    assert all(bounded(chunk, limits) for chunk in cut)
    for chunk, following in pairwise(cut):  # no chunk is shorter than it must be
        assert not bounded([*chunk, following[0]], limits)


def test_without_a_reason_to_cut_there_is_one_chunk() -> None:
    records = fetched([(b"a", b"1")] * 100)
    assert list(chunks(records, ROOMY)) == [records]
    assert list(chunks([], ROOMY)) == []


def test_an_erasure_stands_alone() -> None:
    records = fetched([(b"a", b"1"), (b"a", None), (b"a", None), (b"b", b"1")])
    assert [len(chunk) for chunk in chunks(records, ROOMY)] == [1, 1, 1, 1]


def test_a_record_above_the_limit_stands_alone() -> None:
    records = fetched([(b"a", b"1"), (b"b", b"x" * 99), (b"c", b"1"), (b"d", b"1")])
    assert [len(chunk) for chunk in chunks(records, ChunkLimits(bytes=10))] == [1, 1, 2]


def test_a_busy_user_is_cut_and_a_crowd_is_not() -> None:
    busy = fetched([(b"a", b"1")] * 10)
    assert [len(chunk) for chunk in chunks(busy, ChunkLimits(per_user=4))] == [4, 4, 2]
    crowd = fetched([(b"%d" % n, b"1") for n in range(10)])
    assert [len(chunk) for chunk in chunks(crowd, ChunkLimits(per_user=1))] == [10]


def test_a_record_without_a_key_may_be_anybodys() -> None:
    mixed = fetched([(b"a", b"1"), (None, b"1"), (b"a", b"1"), (b"b", b"1"), (None, b"1"), (None, b"1")])
    assert [len(chunk) for chunk in chunks(mixed, ChunkLimits(per_user=2))] == [2, 3, 1]


# The scheduler, between aiokafka and Faust


def scheduler(limits: ChunkLimits = ROOMY, topic: str = INPUT) -> ChunkScheduler:
    return ChunkScheduler.for_topics(topic, CHANGELOG, limits)()


partition_contents = st.lists(contents, max_size=15)
fetches = st.dictionaries(
    st.builds(TP, st.sampled_from([INPUT, CHANGELOG, "other"]), st.integers(0, 4)),
    partition_contents,
    max_size=6,
).map(lambda found: {tp: fetched(contents, tp.topic, tp.partition) for tp, contents in found.items()})


@settings(max_examples=150)
@given(fetches, limits)
def test_every_record_comes_out_once_with_its_own_partition(records: dict[TP, list[Any]], limits: ChunkLimits) -> None:
    out: dict[TP, list[Any]] = {}
    for tp, message in scheduler(limits).iterate(records):
        if tp.topic in (INPUT, CHANGELOG):
            assert isinstance(message, Carrier)
            assert len(message.value) <= limits.records
            assert bounded(message.value, limits) or tp.topic == CHANGELOG
            out.setdefault(tp, []).extend(message.value)
        else:
            assert not isinstance(message, Carrier)
            out.setdefault(tp, []).append(message)
        assert (message.topic, message.partition) == tp
    assert out == {tp: fetched for tp, fetched in records.items() if fetched}


def test_each_carrier_names_the_partition_of_its_records() -> None:
    """A generator in a comprehension that looked its partition up late gave every carrier the last one."""
    records = {TP(INPUT, n): fetched([(b"a", b"1")] * 3, partition=n) for n in range(3)}
    for tp, carrier in scheduler(ChunkLimits(records=1)).iterate(records):
        assert {record.partition for record in carrier.value} == {carrier.partition} == {tp.partition}


@given(st.integers(2, 5), st.integers(0, 4), st.integers(1, 30))
def test_no_partition_waits_for_a_hot_one(partitions: int, hot: int, hot_chunks: int) -> None:
    lengths = [hot_chunks if n == hot % partitions else 1 for n in range(partitions)]
    records = {TP(INPUT, n): fetched([(b"a", b"1")] * length, partition=n) for n, length in enumerate(lengths)}
    carriers = list(scheduler(ChunkLimits(records=1)).iterate(records))
    assert {tp.partition for tp, _ in carriers[:partitions]} == set(range(partitions))
    assert len(carriers) == sum(lengths)
    assert [carrier.value.turn_goes_on for _, carrier in carriers[:partitions]] == [True] * (partitions - 1) + [False]
    assert not any(carrier.value.turn_goes_on for _, carrier in carriers[partitions:]), "the hot one goes alone then"


@given(fetches)
def test_topics_that_are_neither_input_nor_changelog_are_left_alone(records: dict[TP, list[Any]]) -> None:
    """Another table's recovery would read its changelog record by record, as Faust's own scheduler gives them."""
    plain = list(super(ChunkScheduler, scheduler()).iterate(records))
    others = ChunkScheduler.for_topics("nothing of this", "nor this", ROOMY)()
    assert list(others.iterate(records)) == plain


def test_a_changelog_is_cut_by_the_number_of_its_records_alone() -> None:
    """An erased user's record is like any other there, and a busy user's as well."""
    records = fetched([(b"a", b"1"), (b"a", None), (b"b", None), (b"a", b"1" * 1000), (b"a", b"1")], CHANGELOG, 3)
    small = ChunkLimits(records=2, bytes=10, per_user=1)
    cut = list(scheduler(small).iterate({TP(CHANGELOG, 3): records}))
    assert [(tp, list(carrier.value), carrier.offset) for tp, carrier in cut] == [
        (TP(CHANGELOG, 3), records[:2], 1),
        (TP(CHANGELOG, 3), records[2:4], 3),
        (TP(CHANGELOG, 3), records[4:], 4),
    ]


def test_nothing_fetched_is_nothing() -> None:
    assert list(scheduler().iterate({})) == []
    assert list(scheduler().iterate({TP(INPUT, 0): []})) == []


def test_schedulers_of_two_topics_do_not_share_limits() -> None:
    one = ChunkScheduler.for_topics("one", "its", ChunkLimits(records=1))
    two = ChunkScheduler.for_topics("two", "other", ChunkLimits(records=2))
    assert (one.input_topic, one.changelog_topic, one.limits.records) == ("one", "its", 1)
    assert (two.input_topic, two.changelog_topic, two.limits.records) == ("two", "other", 2)


# The carrier


def consumer_record(offset: int) -> ConsumerRecord:
    return ConsumerRecord(
        topic=INPUT,
        partition=3,
        offset=offset,
        timestamp=NOW_MS + offset,
        timestamp_type=0,
        key=b"k",
        value=b"v",
        checksum=None,
        serialized_key_size=1,
        serialized_value_size=1,
        headers=[("h", b"1")],
    )


def test_a_carrier_stands_at_the_place_of_its_last_record() -> None:
    records = [consumer_record(4), consumer_record(9)]
    carrier = Carrier(records)
    assert carrier.value == records
    assert (carrier.topic, carrier.partition, carrier.offset) == (INPUT, 3, 9)
    assert (carrier.timestamp, carrier.timestamp_type) == (NOW_MS + 9, 0)


def test_a_carrier_has_every_field_of_a_record_and_no_single_key() -> None:
    carrier = Carrier([consumer_record(0)])
    for name in ConsumerRecord.__dataclass_fields__:
        getattr(carrier, name)
    assert (carrier.key, carrier.headers, carrier.checksum) == (None, (), None)
    assert (carrier.serialized_key_size, carrier.serialized_value_size) == (0, 0)
    with pytest.raises(AttributeError):
        carrier.nonsense  # noqa: B018  # the look-up is the test


# The order of chunks: what was fetched and never taken up is noticed

PLACE = TP(INPUT, 0)


def carriers(scheduler: ChunkScheduler, offsets: Sequence[int]) -> list[Chunk]:
    """What the agent would get of one fetch: a chunk per record."""
    records = [FakeRecord(offset=offset, key=b"a", value=b"1") for offset in offsets]
    return [carrier.value for _, carrier in scheduler.iterate({PLACE: records})]


def take(order: ChunkOrder, chunks: Sequence[Chunk]) -> None:
    for chunk in chunks:
        order.take(PLACE, chunk)


def one_by_one() -> tuple[ChunkScheduler, ChunkOrder]:
    return scheduler(ChunkLimits(records=1)), ChunkOrder()


def test_a_chunk_follows_the_last_record_fetched_before_it() -> None:
    fetching, _ = one_by_one()
    assert [chunk.follows for chunk in carriers(fetching, [4, 5, 9])] == [None, 4, 5]
    assert [chunk.follows for chunk in carriers(fetching, [10])] == [9]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_chunk_that_never_came_is_noticed_by_the_one_behind_it(lost: int) -> None:
    fetching, order = one_by_one()
    take(order, carriers(fetching, [3]))
    fetched = carriers(fetching, [4, 5, 6, 7])
    take(order, fetched[:lost])
    with pytest.raises(ChunkLostError, match=rf"^user-events-0: the records up to {4 + lost} never came$"):
        order.take(PLACE, fetched[lost + 1])


def test_the_first_chunks_of_all_may_not_be_lost_either() -> None:
    """What came in before the agent took anything up, and was dropped."""
    fetching, order = one_by_one()
    _, second = carriers(fetching, [0, 1])
    with pytest.raises(ChunkLostError):
        order.take(PLACE, second)


def test_a_fetch_that_nobody_looked_at_is_missed_too() -> None:
    """Faust throws away what a fetch gives while the flow is stopped, and asks for none of its chunks."""
    fetching, order = one_by_one()
    fetching.iterate({PLACE: [FakeRecord(offset=offset, key=b"a", value=b"1") for offset in range(3)]})
    with pytest.raises(ChunkLostError, match="the records up to 2 never came"):
        take(order, carriers(fetching, [3]))


def test_gaps_in_the_offsets_are_no_loss() -> None:
    """Compaction and the markers of transactions leave them, within a fetch and between two."""
    fetching, order = one_by_one()
    take(order, carriers(fetching, [0, 3, 17]))
    take(order, carriers(fetching, [40, 41]))


def test_a_start_in_the_middle_is_no_loss() -> None:
    fetching, order = one_by_one()
    take(order, carriers(fetching, [1000, 1001]))


@pytest.mark.parametrize("back_to", [0, 6])
def test_a_seek_back_is_no_loss(back_to: int) -> None:
    """Faust seeks to the committed offset; the records from there on come once more."""
    fetching, order = one_by_one()
    take(order, carriers(fetching, [5, 6]))
    carriers(fetching, [7, 8])  # dropped, and fetched again
    take(order, carriers(fetching, range(back_to, 9)))


def test_partitions_are_watched_apart() -> None:
    fetching, order = one_by_one()
    other = TP(INPUT, 1)
    fetched = [FakeRecord(INPUT, 1, offset, NOW_MS, b"a", b"1") for offset in (70, 71)]
    take(order, carriers(fetching, [0, 1]))
    for _, carrier in fetching.iterate({other: fetched}):
        order.take(other, carrier.value)
    take(order, carriers(fetching, [2]))


def test_partitions_that_come_back_start_anew() -> None:
    """Somebody else worked on them meanwhile: what this worker fetched or took up before says nothing."""
    fetching, order = one_by_one()
    take(order, carriers(fetching, [0, 1]))
    carriers(fetching, [2, 3])
    fetching.forget()
    order.forget()
    take(order, carriers(fetching, [50, 51]))


def test_behind_offset_0_the_next_record_goes_alone() -> None:
    """Faust cannot commit a chunk of several records right behind offset 0."""
    place = TP(INPUT, 0)
    hands_on = scheduler()

    def handed_on(*offsets: int) -> list[list[int]]:
        records = [consumer_record(offset) for offset in offsets]
        return [[record.offset for record in carrier.value] for _, carrier in hands_on.iterate({place: records})]

    assert handed_on(0) == [[0]]
    assert handed_on(1, 2, 3) == [[1], [2, 3]]
    assert handed_on(4, 5) == [[4, 5]]
    assert [
        [record.offset for record in carrier.value]
        for _, carrier in scheduler().iterate({place: [consumer_record(offset) for offset in range(3)]})
    ] == [[0, 1, 2]]
