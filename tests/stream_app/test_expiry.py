"""Users who are idle: who goes, when, at what price, and that a crash never shows whether they had gone already."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.window import WindowRule
from stream_app import history as histories
from stream_app import history_codec
from stream_app.chunk_states import Prepared
from stream_app.events import Erasure, Event
from stream_app.expiry import SWEEPS, Expiry, idle_limit_ms, most_expired, most_kept
from stream_app.history import HistoryRule
from stream_app.history_layout import History
from stream_app.intake import ChunkLimits, chunks
from stream_app.observations import BatchReport
from stream_app.pipeline import Outputs, Pipeline
from tests import checker
from tests.stream_app.records import NOW_MS, FakeRecord, event_record
from tests.stream_app.test_pipeline import Echo, Table, Topics, apply, pipeline, prepared, read, run

RULE = HistoryRule(WindowRule(events=3, age_ms=1000), 500)
IDLE_MS = 1500  # what no window of this rule can reach
MOST = 8  # records of a chunk in the law below
LATER = 10**9  # of records: no event is newer than its record


def at(user: str, offset: int, ms: int, *, produced: int = LATER, partition: int = 0, **fields: Any) -> FakeRecord:
    record = event_record(user, offset, NOW_MS + ms, **fields)
    return record._replace(timestamp=NOW_MS + produced, partition=partition)


def expiring(table: Table, idle_ms: float = IDLE_MS, unsettled: int = 0, **options: Any) -> Pipeline:
    def users() -> list[tuple[bytes, bytes | None]]:
        return list(table.items())

    return pipeline(table, expiry=Expiry(idle_ms, users, unsettled), **options)


def work(steps: Pipeline, table: Table, records: Sequence[FakeRecord]) -> list[str]:
    """A chunk through all steps, delivered; who expired with it."""
    batch, outputs = run(steps, records)
    apply(table, outputs)
    assert [user for user, state in outputs.states if state is None] == [user.encode() for user in batch.expired]
    return batch.expired


# Who goes, and when


@pytest.mark.parametrize(("ahead", "expired"), [(IDLE_MS, []), (IDLE_MS + 1, ["anna"])])
def test_a_user_goes_once_the_newest_event_of_the_partition_is_far_enough_ahead(ahead: int, expired: list[str]) -> None:
    table: Table = {}
    steps = expiring(table)
    assert work(steps, table, [at("anna", 0, 0)]) == []
    assert work(steps, table, [at("ben", 1, ahead)]) == expired
    assert set(table) == {b"anna", b"ben"} - {user.encode() for user in expired}
    assert steps.cache.get("anna", 0) == (History.empty(0) if expired else steps.cache.get("anna", 0))


@pytest.mark.parametrize("record", [at("ben", 1, 3_000_000, produced=0), at("ben", 1, 9, produced=3_000_000)])
def test_neither_an_event_nor_a_record_that_is_ahead_alone_makes_anybody_idle(record: FakeRecord) -> None:
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0)])
    assert work(steps, table, [record]) == []


@pytest.mark.parametrize("timestamp", [0, -1])
def test_a_record_without_a_time_of_its_own_makes_nobody_idle(timestamp: int) -> None:
    expiry = Expiry(IDLE_MS, lambda: [(b"anna", History.empty(0).stored)], 0)
    record = FakeRecord(timestamp=timestamp)
    assert expiry.expired([(record, Event("ben", "view", NOW_MS))], lambda _: History.empty(0)) == []


def test_a_rejected_record_and_an_erasure_make_nobody_idle() -> None:
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0)])
    for record in (
        at("ben", 1, 10**6, behavior="teleport"),
        FakeRecord(offset=2, key=b"ben", timestamp=NOW_MS + LATER),
    ):
        assert run(steps, [record])[0].expired == []


def test_what_the_table_does_not_know_yet_counts() -> None:
    """A user's newest event may still be on its way to the table; so may an erasure."""
    table: Table = {}
    steps = expiring(table)
    for n, user in enumerate(["anna", "carl", "dora"]):
        work(steps, table, [at(user, n, 0)])
    run(steps, [at("anna", 4, 50)])  # in flight: not applied
    run(steps, [FakeRecord(offset=5, key=b"carl")])
    assert run(steps, [at("ben", 6, IDLE_MS + 50)])[0].expired == ["dora"]


def test_who_has_a_record_in_the_chunk_stays() -> None:
    """Late, repeated or refused as it may be: it would be answered otherwise if it came again."""
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0, event_id="e"), at("carl", 1, 0), at("dora", 2, 0), at("emil", 3, 0)])
    late = [at("anna", 4, 0, event_id="e"), at("carl", 5, -501), at("dora", 6, 1)]
    assert work(steps, table, [at("ben", 7, 5000), *late]) == ["emil"]
    assert work(steps, table, [at("ben", 8, 5000 + IDLE_MS // SWEEPS + 1)]) == ["anna", "carl", "dora"]


def test_users_of_another_partition_wait_for_a_chunk_of_theirs() -> None:
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0, partition=1), at("carl", 1, 0, partition=1)])
    work(steps, table, [at("dora", 2, 5000, partition=1)])  # looks at nobody: the sweep began with anna
    work(steps, table, [at("ben", 0, 9000, partition=0)])
    assert set(table) == {b"ben", b"dora"}, "who waited, and went with dora"
    work(steps, table, [at("dora", 3, 5001, partition=1)])
    assert work(steps, table, [at("ben", 1, 9000 + 5000, partition=0)]) == []
    assert work(steps, table, [at("emil", 4, 5000 + IDLE_MS, partition=1)]) == []
    assert work(steps, table, [at("emil", 5, 5200 + IDLE_MS, partition=1)]) == ["dora"]


def test_who_waits_is_looked_at_again_when_the_chunk_comes() -> None:
    stored = {b"anna": _history(0, partition=1).stored}
    expiry = Expiry(IDLE_MS, lambda: list(stored.items()), 0)
    assert _expired(expiry, 1, 0, _history(0, partition=1)) == []
    ahead = _expired(expiry, 1, 5000, None)
    assert ahead == [], "gone meanwhile"
    expiry = Expiry(IDLE_MS, lambda: list(stored.items()), 0)
    for fresh in (_history(4000, partition=1), _history(0, partition=2)):
        assert _expired(expiry, 1, 5000, fresh) == []


def _history(ms: int, partition: int = 0) -> History:
    return histories.fold(History.empty(partition), Event("anna", "view", NOW_MS + ms, "i"), 0, RULE, 0)[0]


def _expired(expiry: Expiry, partition: int, ms: int, history: History | None) -> list[str]:
    record = FakeRecord(partition=partition, timestamp=NOW_MS + LATER)
    return expiry.expired([(record, Event("ben", "view", NOW_MS + ms))], lambda _: history)


def test_partitions_that_move_take_their_time_with_them() -> None:
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0)])
    run(steps, [at("ben", 1, 9000)])
    steps.forget()
    assert work(steps, table, [at("ben", 2, 5)]) == []
    assert work(steps, table, [at("ben", 3, 9000)]) == ["anna"], "and are found out anew"


def test_a_history_that_cannot_be_read_is_left_for_its_user() -> None:
    sound = _history(0).stored
    table: Table = {b"short": b"", b"newer": b"\x09" + sound[1:], b"cut": sound[:-1], b"anna": sound}
    steps = expiring(table)
    assert work(steps, table, [at("ben", 0, 5000)]) == ["anna"]
    assert {b"short", b"newer", b"cut"} < set(table)


def test_a_chunk_of_nothing_but_rejects_expires_nobody() -> None:
    table: Table = {b"anna": _history(0).stored}
    assert run(expiring(table), [FakeRecord(value=b"[]")])[0].expired == []


def test_who_expired_is_not_scored_on_coming_back() -> None:
    for idle_ms, scored in ((IDLE_MS, 0), (math.inf, 1)):
        table: Table = {}
        steps = expiring(table, idle_ms)
        for offset, (user, ms) in enumerate([("anna", 0), ("ben", 5000), ("anna", 5001)]):
            work(steps, table, [at(user, offset, ms)])
        assert steps.scores.behavior.events == scored


def test_the_observer_is_told() -> None:
    table: Table = {b"anna": _history(0).stored}
    records = [at("ben", 0, 5000)]
    batch, outputs = run(expiring(table), records)
    report = BatchReport(0, 1).done(batch, outputs, records)
    assert (report.expired, report.histories, report.erasures) == (1, 2, 0)


# The price


class Counting:
    """Users of a table, and how many of them were looked at."""

    def __init__(self, table: Table) -> None:
        self.table, self.sweeps, self.seen = table, 0, 0

    def __call__(self) -> Any:
        self.sweeps += 1
        for user in list(self.table):
            self.seen += 1
            yield user, self.table.get(user)


def test_a_sweep_takes_a_few_users_with_each_chunk_and_ends() -> None:
    table = {b"%d" % n: _history(n % 2 * 5000).stored for n in range(1000)}
    users = Counting(table)
    steps = pipeline(table, expiry=Expiry(IDLE_MS, users, 0))
    expired: list[str] = []
    for chunk in range(70):
        expired += work(steps, table, [at("ben", 2 * chunk, 5000), at("ben", 2 * chunk + 1, 5000)])
        assert users.seen <= (most_expired(2) + most_kept(2)) * (chunk + 1)
    assert sorted(expired, key=int) == [str(n) for n in range(0, 1000, 2)]
    assert (users.sweeps, users.seen) == (1, 1000)


def test_it_keeps_up_with_users_who_come_once() -> None:
    """Each record is of somebody new; nobody comes back."""
    table: Table = {}
    steps = expiring(table, capacity=10_000)
    largest = 0
    for chunk in range(400):
        work(steps, table, [at(f"{chunk}-{n}", 50 * chunk + n, 100 * chunk + 2 * n) for n in range(50)])
        largest = max(largest, len(table))
    assert largest < 5 * 50 * IDLE_MS / 100


def test_a_sweep_begins_when_the_time_has_moved_on_by_a_good_part_of_the_idle_time() -> None:
    users = Counting({})
    steps = pipeline({}, expiry=Expiry(800, users, 0))
    for offset, (ms, sweeps) in enumerate(
        [(0, 1), (99, 1), (100, 2), (150, 2), (199, 2), (200, 3), (120, 3), (900, 4)]
    ):
        run(steps, [at("ben", offset, ms)])
        assert users.sweeps == sweeps


def test_no_more_expire_with_a_chunk_than_it_looks_at() -> None:
    table = {b"%d" % n: _history(0, partition=n % 2).stored for n in range(200)}
    steps = expiring(table)
    work(steps, table, [at("ben", 0, 0, partition=1)])  # begins the sweep, in which nobody is idle yet
    for chunk in range(40):
        partition = chunk % 2
        assert len(work(steps, table, [at("ben", chunk + 1, 5000 + chunk, partition=partition)])) <= most_expired(1)
    for chunk in range(40, 60):
        work(steps, table, [at("ben", chunk + 1, 5000 + chunk * 100, partition=chunk % 2)])
    assert set(table) == {b"ben"}


# How long is idle


def test_idle_is_by_default_and_at_least_what_no_window_reaches() -> None:
    assert idle_limit_ms(None, RULE) == IDLE_MS
    assert idle_limit_ms(1.5, RULE) == IDLE_MS
    assert idle_limit_ms(7200, RULE) == 7_200_000
    assert idle_limit_ms(math.inf, RULE) == math.inf
    with pytest.raises(ValueError, match="idle_s must be at least 2595600: .* reach 2592000 s back, .* 3600 s late"):
        idle_limit_ms(2_595_599, HistoryRule(WindowRule()))


def test_a_glance_sees_what_decoding_does() -> None:
    for history in (_history(7, partition=3), _history(0)):
        stored = history.stored
        assert history_codec.newest_at_a_glance(stored) == (history.partition, history.watermark_ms)


# Redelivery

jumps = st.sampled_from([0, 1, 40, 300, 500, 900, 1100, 1600, 4000])
lags = st.sampled_from(
    [0, 0, 0, 1, 300, 500, 501, 1200, 1600, 4000]
)  # behind the newest event; more than 500: too late
lives = st.lists(st.tuples(st.sampled_from(["anna", "ben", "carl", "dora", "emil"]), jumps, lags), max_size=40)


def records_of(life: list[tuple[str, int, int]]) -> list[FakeRecord]:
    records, newest = [], 0
    for offset, (user, jump, lag) in enumerate(life):
        newest += jump
        records.append(at(user, offset, newest - lag, item_id=f"i{offset}"))
    return records


@settings(max_examples=400)
@given(lives, st.data())
def test_whatever_crashes_and_expires_each_record_has_one_answer(
    life: list[tuple[str, int, int]], data: st.DataObject
) -> None:
    """Up to three chunks are folded ahead, deliveries are cut anywhere, and after a crash chunks are cut anew.

    The last may be delivered and not committed when the next one is, where the agent says so.
    """
    records = records_of(life)
    topics, committed, read_up_to, crashes = Topics(), 0, 0, 0
    steps = expiring(topics.changelog, unsettled=2 * MOST)
    in_flight: list[tuple[Prepared, Outputs]] = []
    last: Prepared | None = None  # delivered, and not committed
    while committed < len(records):
        if read_up_to < len(records) and len(in_flight) < 3 and (not in_flight or data.draw(st.booleans())):
            limits = ChunkLimits(records=data.draw(st.integers(1, MOST)), per_user=4)
            chunk = next(chunks(records[read_up_to:], limits))
            read_up_to += len(chunk)
            batch, folded = run(steps, chunk, settled=committed)
            in_flight.append((prepared(chunk, batch), folded))
            continue
        if not in_flight:
            break
        this, outputs = in_flight.pop(0)
        if last is not None and (not this.may_follow(last) or data.draw(st.booleans())):
            committed, last = committed + len(last.records), None
        crashing = crashes < 4 and data.draw(st.integers(0, 3)) == 0
        topics.produce(outputs, lambda crashing=crashing: not crashing or data.draw(st.booleans()))
        if crashing:
            crashes += 1
            steps, in_flight, read_up_to = expiring(topics.changelog, unsettled=2 * MOST), [], committed
            last = None
            continue
        if last is not None:
            committed += len(last.records)
        last = this

    assert set(topics.predictions) | set(topics.letters) == {record.offset for record in records}
    assert set(topics.predictions).isdisjoint(topics.letters)
    assert all(len(values) == 1 for values in topics.predictions.values())
    _compare_events_in_time(records, topics)
    found = checker.Topics(events=records)  # type: ignore[arg-type]  # as good as Kafka's
    found.changelog = [FakeRecord(key=user, value=value) for user, value in topics.changelog.items()]  # type: ignore[misc]
    assert checker.wrong_states(found, RULE.window, RULE.lateness_ms, IDLE_MS) == []


def _compare_events_in_time(records: list[FakeRecord], topics: Topics) -> None:
    """With a plain run in which nobody ever expires."""
    steps, newest = pipeline(), 0
    for record in records:
        batch, outputs = run(steps, [record])
        in_time = bool(batch.requests) and batch.requests[0].event.time_ms >= newest - RULE.lateness_ms
        for request in batch.requests:
            newest = max(newest, request.event.time_ms)
        if in_time:
            assert topics.predictions[record.offset] == {outputs.predictions[0][1].value}


@given(lives)
def test_after_two_quiet_sweeps_exactly_the_live_are_left(life: list[tuple[str, int, int]]) -> None:
    table: Table = {}
    steps = expiring(table)
    records = records_of(life)
    for record in records:
        work(steps, table, [record])
    newest = max((read_ms(record) for record in records), default=0)
    last = {key: history_codec.last_event_ms(value) for key, value in table.items()}
    for n in (1, 2):
        newest = max(newest, NOW_MS) + IDLE_MS // SWEEPS + 1
        work(steps, table, [at("zoe", 100 + n, newest - NOW_MS)])
    assert set(table) == {user for user, ms in last.items() if newest - ms <= IDLE_MS} | {b"zoe"}


def read_ms(record: FakeRecord) -> int:
    return int(checker._event(record)["timestamp"])  # type: ignore[arg-type, index]


def test_a_tombstone_that_is_durable_before_the_commit() -> None:
    """The chunk comes again after the crash, cut longer: with an event of the user who has gone."""
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0)])
    first, returns = at("ben", 1, 5000), at("anna", 2, 5001)
    assert work(steps, table, [first]) == ["anna"]
    steps = expiring(table)  # the crash
    _, outputs = run(steps, [first, returns])
    assert [read(message).history_length for _, message in outputs.predictions] == [1, 1]


def test_a_tombstone_that_was_lost_with_the_crash() -> None:
    table: Table = {}
    steps = expiring(table)
    work(steps, table, [at("anna", 0, 0)])
    first, returns = at("ben", 1, 5000), at("anna", 2, 5001)
    assert run(steps, [first])[0].expired == ["anna"]
    steps = expiring(table)  # the crash: nothing was delivered
    batch, outputs = run(steps, [first, returns])
    assert batch.expired == []
    assert [read(message).history_length for _, message in outputs.predictions] == [1, 1]


def test_nobody_goes_among_records_that_may_have_been_answered_before() -> None:
    """Anna's events are so late that she is idle at once. Her second one was answered, and her history was not written."""
    table: Table = {}
    chunk = [at("ben", 0, 5000), at("anna", 1, 0), at("ben", 2, 5000), at("anna", 3, 400)]
    _, outputs = run(expiring(table, unsettled=4), chunk)
    first = [message.value for _, message in outputs.predictions]
    steps = expiring(table, unsettled=4)  # the crash; now the chunks are shorter
    again = [message.value for record in chunk for _, message in _delivered(steps, table, record).predictions]
    assert again == first
    assert work(steps, table, [at("ben", 4, 5000)]) == ["anna"]


def _delivered(steps: Pipeline, table: Table, record: FakeRecord) -> Outputs:
    _, outputs = run(steps, [record])
    apply(table, outputs)
    return outputs


def test_erasures_and_expiry_do_not_mind_each_other() -> None:
    expiry = Expiry(IDLE_MS, list, 0)
    erasure = (FakeRecord(key=b"anna"), Erasure("anna"))
    assert expiry.expired([erasure], lambda _: None) == []


def test_without_a_table_to_walk_over_nobody_expires() -> None:
    steps = pipeline(predictor=Echo())
    for offset, ms in enumerate([0, 10**8]):
        assert run(steps, [at(f"u{offset}", offset, ms)])[0].expired == []
    steps.forget()
