"""Histories: the fold against a model that keeps everything, its fast road against its slow one, redelivery, lateness."""

import hashlib
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.sequences import Sequences
from model.window import Window
from stream_app import history as histories
from stream_app.events import Event
from stream_app.history import HistoryRule, Outcome
from stream_app.history_codec import decode
from stream_app.history_layout import NO_ID, Entry, History
from tests.stream_app.folding import (
    ALL,
    NOTHING,
    START_MS,
    Step,
    backwards,
    event,
    in_reach,
    naive_window,
    rule,
    rules,
    run,
    steady,
    streams,
)

EMPTY = Window([], [], [], ())


def times(window: Window) -> list[int]:
    return [time_ms - START_MS for time_ms in window.times_ms]


# The fold


@settings(max_examples=250)
@given(streams() | streams(moves=backwards), rules, st.data())
def test_the_fold_agrees_with_keeping_everything(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """Whatever is settled on the way: what is dropped, and when, does not show."""
    history, folded, settled = History.empty(0), list[tuple[int, Event]](), 0
    for offset, event_ in records:
        watermark = max((past.time_ms for _, past in folded), default=None)
        late = watermark is not None and event_.time_ms < watermark - rule.lateness_ms
        ids_in_window = {past.event_id for past in in_reach(folded, rule.window)} - {None}
        settled = data.draw(st.sampled_from([settled, offset, offset + 1]))

        before = history
        history, outcome = histories.fold(history, event_, offset, rule, settled)

        assert (outcome is Outcome.TOO_LATE) == late
        if not late:
            assert (outcome is Outcome.REPEAT) == (event_.event_id in ids_in_window)
        if outcome is Outcome.FOLDED:
            folded.append((offset, event_))
        else:
            assert history is before
        assert outcome is not Outcome.SEEN
        assert histories.window(history, offset, rule.window) == naive_window(folded, rule.window)
        assert history.watermark_ms == max((past.time_ms for _, past in folded), default=None)
        assert len(history.entries) == history.length
        assert history.dropped + history.length == len(folded)


@given(streams(ids=st.none(), moves=backwards), rules, st.data())
def test_a_window_is_that_of_the_same_events_in_a_log(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """Training and evaluation cut what the stream cuts, however late events came."""
    history, folded, settled = History.empty(0), list[tuple[int, Event]](), 0
    for offset, event_ in records:
        settled = data.draw(st.sampled_from([settled, offset, offset + 1]))
        history, outcome = histories.fold(history, event_, offset, rule, settled)
        if outcome is Outcome.FOLDED:
            folded.append((offset, event_))
            log = in_a_log(event_ for _, event_ in sorted(folded, key=lambda record: record[1].time_ms))
            window = log.window(len(folded) - 1, rule.window)
            assert window._replace(times_ms=tuple(window.times_ms)) == histories.window(history, offset, rule.window)


def in_a_log(events: Iterable[Event]) -> Sequences:
    """One user's events in the order of a log."""
    life = list(events)
    return Sequences(
        users=np.zeros(len(life), np.int64),
        times_ms=np.array([event_.time_ms for event_ in life]),
        order=np.arange(len(life)),
        items=[event_.item_id for event_ in life],
        behaviors=[event_.behavior for event_ in life],
        categories=[event_.category for event_ in life],
        first=np.zeros(len(life), np.int64),
    )


@settings(max_examples=250)
@given(streams(), rules)
def test_a_ring_is_no_longer_than_it_must_be(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    """With all before the newest event settled, and no event late."""
    in_order = zip(
        (offset for offset, _ in records), sorted((e for _, e in records), key=lambda e: e.time_ms), strict=True
    )
    history = History.empty(0)
    for offset, event_ in in_order:
        history, _ = histories.fold(history, event_, offset, rule, offset)
        assert history.length <= rule.window.events + rule.slack


@settings(max_examples=250)
@given(streams(), rules, st.data())
def test_a_redelivered_record_is_answered_as_the_first_time(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """Whatever is not settled may come again, alone or with all that follow it, any number of times."""
    history, first, settled = History.empty(0), list[Step](), 0
    for record in records:
        settled = data.draw(st.sampled_from([settled, settled, record[0]]))
        history, steps = run(history, [record], rule, settled)
        first += steps
    may_come = [step for step in first if step.offset >= settled]
    for _ in range(data.draw(st.integers(1, 3))):
        tail = may_come[len(may_come) - data.draw(st.integers(0, len(may_come))) :]
        again, second = run(history, [(step.offset, step.event) for step in tail], rule, settled)
        assert again == history
        for then, now in zip(tail, second, strict=True):
            same_outcome(then.outcome, now.outcome)
            if then.outcome is not Outcome.TOO_LATE:
                assert now.window == then.window


def same_outcome(then: Outcome, now: Outcome) -> None:
    """A folded record is now seen; a repeat may be called seen, for what it repeated may have left since."""
    allowed = {
        Outcome.FOLDED: {Outcome.SEEN},
        Outcome.REPEAT: {Outcome.REPEAT, Outcome.SEEN},
        Outcome.TOO_LATE: {Outcome.TOO_LATE},
    }
    assert now in allowed[then]


@given(streams(ids=st.none()), rules)
def test_any_prefix_redelivered_changes_nothing(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    history, steps = run(History.empty(0), records, rule, NOTHING)
    folded = [(step.offset, step.event) for step in steps if step.outcome is Outcome.FOLDED]
    for end in range(len(folded) + 1):
        again, seen = run(history, folded[:end], rule, NOTHING)
        assert again == history
        assert {step.outcome for step in seen} <= {Outcome.SEEN}


@settings(max_examples=250)
@given(streams(), rules, st.data())
def test_a_crash_after_any_record_changes_nothing_that_shows(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """State is written, the offset is not: all records from the last commit on come again, once and once more."""
    _, smooth = run(History.empty(0), records, rule)
    history, stored, committed, crashes = History.empty(0), History.empty(0), 0, 0
    while committed < len(records):
        settled = records[committed][0]
        until = data.draw(st.integers(committed + 1, len(records)))
        for number in range(committed, until):
            history, (step,) = run(history, [records[number]], rule, settled)
            assert step.outcome is Outcome.TOO_LATE or step.window == smooth[number].window
            if data.draw(st.booleans()):
                stored = decode(history.stored)
        if crashes < 4 and data.draw(st.booleans()):
            crashes, history = crashes + 1, stored
        else:
            committed, stored = until, history
    assert histories.window(history, ALL, rule.window) == (smooth[-1].window if records else EMPTY)


@given(
    st.lists(st.integers(0, 500), unique=True, max_size=12).flatmap(
        lambda times: st.tuples(st.just(sorted(times)), st.permutations(times))
    ),
    rules,
)
def test_within_the_lateness_order_does_not_matter(orders: tuple[list[int], list[int]], small: HistoryRule) -> None:
    rule = HistoryRule(small.window, 500, small.slack)
    windows = []
    for order in orders:
        history, steps = run(History.empty(0), enumerate(map(event, order)), rule)
        assert {step.outcome for step in steps} <= {Outcome.FOLDED}
        windows.append(histories.window(history, len(order), rule.window))
    assert windows[0] == windows[1]


@given(streams(), rules)
def test_a_window_keeps_its_bounds(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    _, steps = run(History.empty(0), records, rule)
    for step in steps:
        columns = step.window
        assert len({len(column) for column in columns}) == 1
        assert 1 <= len(columns.times_ms) <= rule.window.events or step.outcome is Outcome.TOO_LATE
        assert list(columns.times_ms) == sorted(columns.times_ms)
        assert columns.times_ms[-1] - columns.times_ms[0] <= rule.window.age_ms


@given(streams(), rules, st.integers(-2, 40))
def test_a_window_is_as_long_as_is_said_without_cutting_it(
    records: list[tuple[int, Event]], rule: HistoryRule, as_of: int
) -> None:
    history, steps = run(History.empty(0), records, rule, NOTHING)
    length = histories.window_length(history, as_of, rule.window)
    assert length == len(histories.window(history, as_of, rule.window).times_ms)
    for step in steps:
        if step.outcome is not Outcome.TOO_LATE:
            assert histories.window_length(history, step.offset, rule.window) == len(step.window.times_ms)


@given(streams(), rules)
def test_the_fold_leaves_its_arguments_alone(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    history = History.empty(0)
    for offset, event_ in records:
        before = history.stored
        after, _ = histories.fold(history, event_, offset, rule, offset)
        assert histories.fold(history, event_, offset, rule, offset)[0] == after
        histories.window(history, offset, rule.window)
        histories.on_partition(history, 9)
        histories.until(history, event_.time_ms)
        assert history.stored == before
        history = after


# On bytes, and on rows


def slowly(history: History, event: Event, offset: int, rule: HistoryRule, settled: int) -> tuple[History, Outcome]:
    """The fold over rows, with nothing found by its place in a string of bytes; only what is dropped is left to the fold's own."""
    event_hash = NO_ID if event.event_id is None else histories.hash_event_id(event.event_id)
    rows = [row for row in history.entries if row.offset < offset]
    if rows and event.time_ms < rows[-1].time_ms - rule.lateness_ms:
        return history, Outcome.TOO_LATE
    if event_hash != NO_ID:
        reach = histories._in_window(rows, history.dropped, rule.window)
        if event_hash in [row.event_hash for row in reach]:
            return history, Outcome.REPEAT
    if offset <= history.last_offset:
        return history, Outcome.SEEN
    rows.append(Entry(event.time_ms, offset, event_hash, event.item_id, event.behavior, event.category))
    rows.sort(key=lambda row: (row.time_ms, row.offset))
    history = History.of_rows(history.partition, offset, history.dropped, rows)
    return histories._trimmed(history, rows[-1].time_ms, rule, settled), Outcome.FOLDED


wide_rules = st.builds(
    rule,
    events=st.integers(1, 5),
    age=st.integers(60, 200),
    slack=st.integers(1, 5),
    stride=st.integers(1, 5),
    age_stride=st.integers(1, 200),
)


@settings(max_examples=250)
@given(
    streams() | streams(moves=steady),
    st.lists(rules | wide_rules, min_size=1, max_size=3),
    st.sampled_from([-1, 3]),
    st.integers(0, 30),
)
def test_bytes_and_rows_lead_to_the_same_place(
    records: list[tuple[int, Event]], in_turn: list[HistoryRule], last_offset: int, settled: int
) -> None:
    """Also where the rule changes on the way, so that the ring is longer or older than it allows."""
    history = History.empty(0, last_offset)
    for number, (offset, event_) in enumerate(records):
        rule = in_turn[number * len(in_turn) // len(records)]
        after, outcome = histories.fold(history, event_, offset, rule, settled)
        assert (after, outcome) == slowly(history, event_, offset, rule, settled)
        for again in records[max(0, number - 2) : number + 1]:  # the record itself, and what came before it
            once_more = after, again[1], again[0], rule, settled
            assert histories.fold(*once_more) == slowly(*once_more)
        history = after


def test_the_usual_event_is_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(histories, "_fold_unusual")
    history, steps = run(History.empty(0), enumerate(event(n, event_id=f"e{n}") for n in range(100)), rule(events=3))
    assert {step.outcome for step in steps} == {Outcome.FOLDED}
    assert [entry.offset for entry in history.entries] == [96, 97, 98, 99]


@given(streams(), st.tuples(rules, rules))
def test_a_rule_may_become_tighter(records: list[tuple[int, Event]], pair: tuple[HistoryRule, HistoryRule]) -> None:
    one, other = pair
    wide = rule(
        events=max(one.window.events, other.window.events),
        age=max(one.window.age_ms, other.window.age_ms),
        slack=max(one.slack, other.slack),
    )
    tight = rule(
        events=min(one.window.events, other.window.events),
        age=min(one.window.age_ms, other.window.age_ms),
        slack=min(one.slack, other.slack),
        stride=min(one.window.stride, other.window.stride),
    )
    half = len(records) // 2
    history, before = run(History.empty(0), records[:half], wide)
    _, steps = run(history, records[half:], tight)
    folded = [(step.offset, step.event) for step in before if step.outcome is Outcome.FOLDED]
    for step in steps:
        history, outcome = histories.fold(history, step.event, step.offset, tight, ALL)
        if outcome is Outcome.FOLDED:
            folded.append((step.offset, step.event))
        assert histories.window(history, step.offset, tight.window) == naive_window(folded, tight.window)


def test_a_much_longer_ring_is_soon_cut() -> None:
    history, _ = run(History.empty(0), enumerate(map(event, range(60))), rule(events=50))
    after, _ = run(history, [(60, event(60)), (61, event(61))], rule(events=3, slack=2))
    assert [entry.offset for entry in after.entries] == [58, 59, 60, 61]


# Hashes that lie one behind the other


def with_hashes(hash_event_id: Callable[[str], bytes]) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setattr(histories, "hash_event_id", hash_event_id)
    return patch


alike = st.none() | st.text("\0\1", min_size=8, max_size=8).filter(lambda text: text.encode() != NO_ID)


@settings(max_examples=250)
@given(streams(ids=alike, moves=steady), wide_rules)
def test_a_repeat_is_a_whole_hash_and_not_the_end_of_one_with_the_start_of_the_next(
    records: list[tuple[int, Event]], rule: HistoryRule
) -> None:
    """Every event_id is its own hash here, of zeros and ones, so that unaligned matches are everywhere."""
    patch = with_hashes(str.encode)
    try:
        history = History.empty(0)
        for offset, event_ in records:
            hashes = [entry.event_hash for entry in histories._in_window(history.entries, history.dropped, rule.window)]
            repeats = event_.event_id is not None and event_.event_id.encode() in hashes
            after, outcome = histories.fold(history, event_, offset, rule, ALL)
            assert outcome is (Outcome.REPEAT if repeats else Outcome.FOLDED)
            assert (after, outcome) == slowly(history, event_, offset, rule, ALL)
            history = after
    finally:
        patch.undo()


def test_an_unaligned_hash_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histories, "hash_event_id", str.encode)
    history, _ = run(
        History.empty(0), enumerate([event(0, event_id="aaaabbbb"), event(1, event_id="ccccdddd")]), rule()
    )
    assert histories.fold(history, event(2, event_id="bbbbcccc"), 2, rule(), ALL)[1] is Outcome.FOLDED
    assert histories.fold(history, event(2, event_id="ccccdddd"), 2, rule(), ALL)[1] is Outcome.REPEAT


# By hand


def test_age_is_measured_from_the_newest_event() -> None:
    history, _ = run(History.empty(0), enumerate(map(event, [0, 1, 1000])), rule(events=9, age=1000))
    assert times(histories.window(history, 2, rule(events=9, age=1000).window)) == [0, 1, 1000]
    assert times(histories.window(history, 2, rule(events=9, age=999).window)) == [1, 1000]


def test_of_equal_times_the_later_offset_is_newer() -> None:
    records = [(4, event(5, "a")), (8, event(5, "b")), (9, event(5, "c"))]
    history, _ = run(History.empty(0), records, rule(events=2))
    assert histories.window(history, 9, rule(events=2).window).items == ["b", "c"]


def test_lateness_is_measured_from_the_latest_event_and_includes_its_bound() -> None:
    history, _ = run(History.empty(0), [(0, event(1000)), (1, event(700))], rule(lateness=500))
    assert history.watermark_ms == START_MS + 1000
    assert histories.fold(history, event(500), 2, rule(lateness=500), ALL)[1] is Outcome.FOLDED
    refused, outcome = histories.fold(history, event(499), 2, rule(lateness=500), ALL)
    assert (refused, outcome) == (history, Outcome.TOO_LATE)


def test_a_repeat_is_known_by_its_event_id_alone() -> None:
    history, _ = run(History.empty(0), [(0, event(10, event_id="e"))], rule())
    for other in (event(10, event_id="e"), Event("u", "purchase", START_MS + 20, "other", "c", "e")):
        assert histories.fold(history, other, 1, rule(), ALL) == (history, Outcome.REPEAT)
    assert histories.fold(history, event(10, event_id="f"), 1, rule(), ALL)[1] is Outcome.FOLDED
    assert histories.fold(history, event(10), 1, rule(), ALL)[1] is Outcome.FOLDED


def test_without_an_event_id_nothing_is_a_repeat() -> None:
    history, steps = run(History.empty(0), enumerate([event(10), event(10), event(10)]), rule())
    assert [step.outcome for step in steps] == [Outcome.FOLDED] * 3
    assert len(histories.window(history, 2, rule().window).items) == 3


def test_an_empty_history_has_an_empty_window() -> None:
    assert histories.window(History.empty(0), 5, rule().window) == EMPTY
    assert histories.window_length(History.empty(0), 5, rule().window) == 0
    assert (History.empty(0).watermark_ms, History.empty(0).entries, History.empty(0).length) == (None, [], 0)


@pytest.mark.parametrize(
    ("settled", "kept"),
    [
        (ALL, range(7, 10)),  # a window
        (10, range(7, 10)),
        (8, range(5, 10)),  # a window of what is settled, and what is not
        (3, range(10)),
        (NOTHING, range(10)),
    ],
)
def test_the_ring_holds_a_settled_window_and_all_that_is_not_settled(settled: int, kept: range) -> None:
    history, _ = run(History.empty(0), enumerate(map(event, range(10))), rule(events=3, slack=1), settled)
    assert [entry.offset for entry in history.entries] == [*kept]


def test_with_a_stride_the_start_stays_until_so_many_events_leave_together() -> None:
    strided = rule(events=4, slack=1, stride=2)
    history, steps = run(History.empty(0), enumerate(map(event, range(10))), strided)
    seen = [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [2, 3, 4],
        [2, 3, 4, 5],
        [4, 5, 6],
        [4, 5, 6, 7],
        [6, 7, 8],
        [6, 7, 8, 9],
    ]
    assert [times(step.window) for step in steps] == seen
    assert (history.dropped, history.length) == (6, 4)


def test_with_a_stride_late_events_may_need_more_than_a_window_shows() -> None:
    """The window of nine events begins with the seventh; with a late one it begins with what was the sixth."""
    strided = rule(events=4, slack=1, stride=2)
    history, _ = run(History.empty(0), enumerate(map(event, range(0, 90, 10))), strided)
    assert times(histories.window(history, 8, strided.window)) == [60, 70, 80]
    history, _ = run(history, [(9, event(5))], strided)
    assert times(histories.window(history, 9, strided.window)) == [50, 60, 70, 80]


def test_with_an_age_stride_events_leave_at_whole_multiples() -> None:
    strided = rule(events=9, age=100, age_stride=50, slack=1).window
    assert START_MS % 50 == 0
    history, _ = run(History.empty(0), enumerate(map(event, [0, 40, 60, 100])), HistoryRule(strided))
    assert times(histories.window(history, 3, strided)) == [0, 40, 60, 100]
    for newest in (101, 150):
        later, _ = run(history, [(4, event(newest))], HistoryRule(strided))
        assert times(histories.window(later, 4, strided)) == [60, 100, newest]


def test_a_late_event_that_is_not_settled_keeps_what_lies_before_it() -> None:
    history, _ = run(History.empty(0), enumerate(map(event, range(0, 100, 10))), rule(events=3, slack=100))
    late, _ = histories.fold(history, event(5), 10, rule(events=3, slack=1), 10)
    assert [entry.offset for entry in late.entries] == [10, *range(1, 10)]
    settled, _ = histories.fold(late, event(100), 11, rule(events=3, slack=1), 11)
    assert [entry.offset for entry in settled.entries] == [7, 8, 9, 11]


def test_the_oldest_are_dropped_together() -> None:
    small = rule(events=3, slack=4)
    lengths = [run(History.empty(0), enumerate(map(event, range(n))), small)[0].length for n in range(1, 13)]
    assert lengths == [1, 2, 3, 4, 5, 6, 3 + 4 - 4, 4, 5, 6, 3 + 4 - 4, 4]


def test_what_no_window_can_reach_any_more_is_dropped() -> None:
    small = rule(events=50, age=10)
    history, _ = run(History.empty(0), enumerate(map(event, [0, 1, 2, 1000, 1001, 1002])), small)
    assert [entry.time_ms - START_MS for entry in history.entries] == [1000, 1001, 1002]


def test_the_rows_of_a_history() -> None:
    first = Event("u", "view", START_MS, "i", None, "e1")
    history, _ = run(History.empty(0), [(4, first), (7, Event("u", "search", START_MS + 5, None, "c"))], rule())
    assert history.entries == [
        Entry(START_MS, 4, histories.hash_event_id("e1"), "i", "view", None),
        Entry(START_MS + 5, 7, NO_ID, None, "search", "c"),
    ]
    assert histories.recency_rank(history, "i", 10) == 1


# The user's own items, the most recent first

akin = st.sampled_from([None, "1", "11", "111", "21", "1 1", "é", "1é"])


def naive_rank(past: Iterable[str | None], item: str, most: int) -> int | None:
    """The list written out."""
    distinct = list(dict.fromkeys(one for one in reversed(list(past)) if one is not None))
    return distinct.index(item) + 1 if item in distinct[:most] else None


@settings(max_examples=250)
@given(streams(items=akin), rules, st.integers(1, 8))
def test_the_rank_of_an_item_is_its_place_in_the_list(
    records: list[tuple[int, Event]], rule: HistoryRule, most: int
) -> None:
    history, _ = run(History.empty(0), records, rule)
    past = [entry.item for entry in history.entries]
    for item in ("1", "11", "111", "21", "1 1", "é", "1é", "absent"):
        assert histories.recency_rank(history, item, most) == naive_rank(past, item, most)


@pytest.mark.parametrize(
    ("past", "rank"),
    [
        ([], None),
        ([None, None], None),
        (["1"], 1),
        (["1", None, None], 1),
        (["1", "11", "111"], 3),
        (["11", "111", "21"], None),
        (["1", "11", "1", "11"], 2),
        ([None, "1", "2", "2", "3"], 3),
    ],
)
def test_a_rank_by_hand(past: list[str | None], rank: int | None) -> None:
    events = [Event("u", "view", START_MS + n, item) for n, item in enumerate(past)]
    history, _ = run(History.empty(0), enumerate(events), rule(events=9))
    assert histories.recency_rank(history, "1", 3) == rank
    assert histories.recency_rank(history, "1", 2) == (rank if rank in (1, 2) else None)


@given(streams(), rules, st.integers(-10, 200))
def test_what_had_happened_by_a_time(records: list[tuple[int, Event]], rule: HistoryRule, back: int) -> None:
    history, _ = run(History.empty(0), records, rule)
    time_ms = (history.watermark_ms or START_MS) - back
    past = histories.until(history, time_ms)
    assert past.entries == [entry for entry in history.entries if entry.time_ms <= time_ms]
    kept = (history.partition, history.last_offset, history.dropped)
    assert (past.partition, past.last_offset, past.dropped) == kept
    assert decode(past.stored) == past
    if back <= 0:
        assert past == history


# Another partition


@given(streams(), rules, streams(ids=st.none()))
def test_on_another_partition_the_events_stay_and_offsets_start_again(
    records: list[tuple[int, Event]], rule: HistoryRule, later: list[tuple[int, Event]]
) -> None:
    history, _ = run(History.empty(0), records, rule)
    window = histories.window(history, 10**9, rule.window)
    moved = histories.on_partition(history, 1)
    assert (moved.partition, moved.last_offset) == (1, -1)
    assert (moved.watermark_ms, moved.dropped) == (history.watermark_ms, history.dropped)
    assert histories.window(moved, -1, rule.window) == histories.window(moved, 0, rule.window) == window
    assert decode(moved.stored) == moved
    assert histories.on_partition(history, 0) is history

    after, steps = run(moved, later, rule, NOTHING)
    assert Outcome.SEEN not in {step.outcome for step in steps}
    again, seen = run(after, later, rule, NOTHING)
    assert again == after
    for then, now in zip(steps, seen, strict=True):
        assert now.window == then.window


def test_offsets_of_the_old_partition_hide_nothing() -> None:
    history, _ = run(History.empty(0), enumerate(map(event, range(3)), start=900), rule(events=5))
    moved, first = run(histories.on_partition(history, 1), enumerate(map(event, (10, 11))), rule(events=5))
    _, again = run(moved, enumerate(map(event, (10, 11))), rule(events=5))
    assert [step.outcome for step in again] == [Outcome.SEEN] * 2
    assert [times(step.window) for step in first] == [[0, 1, 2, 10], [0, 1, 2, 10, 11]]
    assert [step.window for step in again] == [step.window for step in first]


# Texts and hashes


def test_an_empty_text_stands_for_none() -> None:
    """The event contract lets none through; whoever folds one gets nothing back, on both roads."""
    for item, category in [(None, ""), ("", None), (None, None), ("", "")]:
        event_ = Event("u", "view", START_MS, item, category)
        history, _ = run(History.empty(0), [(0, event_)], rule())
        assert slowly(History.empty(0), event_, 0, rule(), ALL)[0] == history
        window = histories.window(decode(history.stored), 0, rule().window)
        assert (window.items, window.categories) == ([None], [None])


def test_only_users_with_event_ids_have_hashes() -> None:
    first, second, third = Event("u", "view", START_MS, "i"), event(1, event_id="e"), event(2)
    history, _ = run(History.empty(0), enumerate([first]), rule())
    assert history.hashes == b""
    history, _ = run(history, enumerate([second], start=1), rule())
    assert history.hashes == NO_ID + histories.hash_event_id("e")
    history, _ = run(history, enumerate([third], start=2), rule())
    assert history.hashes == NO_ID + histories.hash_event_id("e") + NO_ID
    assert histories.fold(history, second, 3, rule(), NOTHING)[1] is Outcome.REPEAT
    _, outcome = histories.fold(histories.until(history, START_MS), second, 3, rule(), NOTHING)
    assert outcome is Outcome.FOLDED


def test_hashes_go_with_the_last_event_that_has_an_id() -> None:
    events = [event(0, event_id="e"), *map(event, range(1, 20))]
    history, _ = run(History.empty(0), enumerate(events), rule(events=3))
    assert history.length < 20
    assert history.hashes == b""


@given(st.text(), st.text())
def test_event_ids_are_told_apart_by_their_hash(one: str, other: str) -> None:
    assert (histories.hash_event_id(one) == histories.hash_event_id(other)) == (one == other)
    assert len(histories.hash_event_id(one)) == 64 // 8


def test_a_hash_is_the_same_in_every_process() -> None:
    assert histories.hash_event_id("e1").hex() == "1b5d5e51f54f0f04"  # printf e1 | b2sum -l 64


def test_no_event_id_has_the_hash_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Zeros:
        def copy(self) -> "Zeros":
            return self

        def update(self, _: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return bytes(8)

    assert histories.hash_event_id("e1") == hashlib.blake2b(b"e1", digest_size=8).digest()
    monkeypatch.setattr(histories, "NO_BYTES_YET", Zeros())
    assert histories.hash_event_id("e1") == b"\1" + bytes(7)
    history, _ = run(History.empty(0), [(0, event(0)), (1, event(1, event_id="e1"))], rule())
    assert histories.fold(history, event(2, event_id="e2"), 2, rule(), ALL)[1] is Outcome.REPEAT
    assert histories.fold(history, event(2), 2, rule(), ALL)[1] is Outcome.FOLDED
