"""Histories: the fold against a model that keeps everything, redelivery, lateness, and a codec that any bytes may meet."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.window import Window, WindowRule
from stream_app import history as histories
from stream_app.events import Event
from stream_app.history import History, HistoryError, HistoryRule, Outcome

START_MS = 1_750_000_000_000
EMPTY = Window((), (), (), ())


def event(time: int, item: str | None = None, event_id: str | None = None) -> Event:
    """A view at `time` ms after the start; the item says which one, unless another is given."""
    return Event("u", "view", START_MS + time, item or f"i{time}", None, event_id)


def rule(events: int = 3, age: int = 1000, margin: int = 2, lateness: int = 500) -> HistoryRule:
    return HistoryRule(WindowRule(events=events, age_ms=age), margin=margin, lateness_ms=lateness)


class Step(NamedTuple):
    """What the fold did with one record, and the window then."""

    offset: int
    event: Event
    outcome: Outcome
    window: Window


def run(history: History, records: Iterable[tuple[int, Event]], rule: HistoryRule) -> tuple[History, list[Step]]:
    """Fold records in order."""
    steps = []
    for offset, event_ in records:
        history, outcome = histories.fold(history, event_, offset, rule)
        steps.append(Step(offset, event_, outcome, histories.window(history, offset, rule.window)))
    return history, steps


def times(window: Window) -> list[int]:
    return [time_ms - START_MS for time_ms in window.times_ms]


# The model: keep all, sort, cut


def naive_window(folded: Sequence[tuple[int, Event]], rule: WindowRule) -> Window:
    ordered = sorted(folded, key=lambda record: (record[1].time_ms, record[0]))[-rule.events :]
    kept = [event_ for _, event_ in ordered if event_.time_ms >= ordered[-1][1].time_ms - rule.age_ms]
    if not kept:
        return EMPTY
    return Window(
        tuple(event_.item_id for event_ in kept),
        tuple(event_.behavior for event_ in kept),
        tuple(event_.category for event_ in kept),
        tuple(event_.time_ms for event_ in kept),
    )


rules = st.builds(
    rule,
    events=st.integers(1, 5),
    age=st.integers(1, 60),
    margin=st.integers(0, 5),
    lateness=st.integers(0, 80),
)
moves = st.integers(-60, 60) | st.integers(0, 20) | st.sampled_from([0, 100, -100])
ids = st.none() | st.sampled_from(["a", "b", "c"])


@st.composite
def streams(draw: st.DrawFn, ids: st.SearchStrategy[str | None] = ids, most: int = 25) -> list[tuple[int, Event]]:
    """One user's records in offset order, with gaps, and with times that go back and forth."""
    records, offset, time = [], -1, 1000
    for _ in range(draw(st.integers(0, most))):
        offset += draw(st.sampled_from([1, 1, 1, 7]))
        time = max(0, time + draw(moves))
        item = draw(st.sampled_from([None, "x", "y"]))
        records.append((offset, Event("u", "view", START_MS + time, item, draw(st.none() | st.just("c")), draw(ids))))
    return records


@settings(max_examples=250)
@given(streams(), rules)
def test_the_fold_agrees_with_keeping_everything(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    history, folded = History(0), list[tuple[int, Event]]()
    for offset, event_ in records:
        watermark = max((past.time_ms for _, past in folded), default=None)
        late = watermark is not None and event_.time_ms < watermark - rule.lateness_ms
        ids_ever = {past.event_id for _, past in folded} - {None}
        newest = sorted(folded, key=lambda record: (record[1].time_ms, record[0]))[-rule.window.events :]
        reach = watermark is not None and watermark - rule.window.age_ms
        ids_in_window = {past.event_id for _, past in newest if past.time_ms >= reach} - {None}

        before = history
        history, outcome = histories.fold(history, event_, offset, rule)

        assert (outcome is Outcome.TOO_LATE) == late
        if outcome is Outcome.REPEAT:
            assert event_.event_id in ids_ever
        if event_.event_id in ids_in_window and not late:
            assert outcome is Outcome.REPEAT
        if outcome is Outcome.FOLDED:
            folded.append((offset, event_))
        else:
            assert history is before
        assert outcome is not Outcome.SEEN
        assert histories.window(history, offset, rule.window) == naive_window(folded, rule.window)
        assert history.watermark_ms == max((past.time_ms for _, past in folded), default=None)
        assert len(history.entries) <= rule.window.events + rule.margin


@settings(max_examples=250)
@given(streams(), rules, st.data())
def test_a_redelivered_record_is_answered_as_the_first_time(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """Whatever the last `margin` records were, each may come again, alone or with all that follow it, any number of times."""
    history, first = run(History(0), records, rule)
    for _ in range(data.draw(st.integers(1, 3))):
        back = data.draw(st.integers(0, min(rule.margin, len(records))))
        tail = first[len(first) - back :]
        again, second = run(history, [(step.offset, step.event) for step in tail], rule)
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
    history, steps = run(History(0), records, rule)
    folded = [(step.offset, step.event) for step in steps if step.outcome is Outcome.FOLDED]
    for end in range(len(folded) + 1):
        again, seen = run(history, folded[:end], rule)
        assert again == history
        assert {step.outcome for step in seen[-rule.margin :] if end == len(folded) and rule.margin} <= {Outcome.SEEN}


@given(streams(), rules, st.data())
def test_a_crash_after_any_record_changes_nothing_in_the_end(
    records: list[tuple[int, Event]], rule: HistoryRule, data: st.DataObject
) -> None:
    """State is written, the offset is not: up to `margin` records come again, once and once more."""
    smooth, _ = run(History(0), records, rule)
    history, position, crashes = History(0), 0, 0
    while position < len(records):
        until = data.draw(st.integers(position, min(len(records), position + rule.margin)))
        history, _ = run(history, records[position:until], rule)
        history = histories.decode(histories.encode(history))
        if until > position and crashes < 4 and data.draw(st.booleans()):
            crashes += 1  # from `position` on again
        else:
            position = max(until, position + 1)
            history, _ = run(history, records[until:position], rule)
    assert history == smooth


@given(
    st.lists(st.integers(0, 500), unique=True, max_size=12).flatmap(
        lambda times: st.tuples(st.just(sorted(times)), st.permutations(times))
    ),
    rules,
)
def test_within_the_lateness_order_does_not_matter(orders: tuple[list[int], list[int]], small: HistoryRule) -> None:
    rule = HistoryRule(small.window, small.margin, lateness_ms=500)
    windows = []
    for order in orders:
        history, steps = run(History(0), enumerate(map(event, order)), rule)
        assert {step.outcome for step in steps} <= {Outcome.FOLDED}
        windows.append(histories.window(history, len(order), rule.window))
    assert windows[0] == windows[1]


@given(streams(), rules)
def test_a_window_keeps_its_bounds(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    _, steps = run(History(0), records, rule)
    for step in steps:
        columns = step.window
        assert len({len(column) for column in columns}) == 1
        assert 1 <= len(columns.times_ms) <= rule.window.events or step.outcome is Outcome.TOO_LATE
        assert list(columns.times_ms) == sorted(columns.times_ms)
        assert columns.times_ms[-1] - columns.times_ms[0] <= rule.window.age_ms


@given(streams(), rules)
def test_the_fold_leaves_its_arguments_alone(records: list[tuple[int, Event]], rule: HistoryRule) -> None:
    history = History(0)
    for offset, event_ in records:
        before = histories.encode(history)
        after, _ = histories.fold(history, event_, offset, rule)
        assert histories.fold(history, event_, offset, rule)[0] == after
        histories.window(history, offset, rule.window)
        histories.on_partition(history, 9)
        assert histories.encode(history) == before
        history = after


# By hand


def test_age_is_measured_from_the_newest_event() -> None:
    history, _ = run(History(0), enumerate(map(event, [0, 1, 1000])), rule(events=9, age=1000))
    assert times(histories.window(history, 2, rule(events=9, age=1000).window)) == [0, 1, 1000]
    assert times(histories.window(history, 2, rule(events=9, age=999).window)) == [1, 1000]


def test_of_equal_times_the_later_offset_is_newer() -> None:
    records = [(4, event(5, "a")), (8, event(5, "b")), (9, event(5, "c"))]
    history, _ = run(History(0), records, rule(events=2))
    assert histories.window(history, 9, rule(events=2).window).items == ("b", "c")


def test_lateness_is_measured_from_the_latest_event_and_includes_its_bound() -> None:
    history, _ = run(History(0), [(0, event(1000)), (1, event(700))], rule(lateness=500))
    assert history.watermark_ms == START_MS + 1000
    assert histories.fold(history, event(500), 2, rule(lateness=500))[1] is Outcome.FOLDED
    refused, outcome = histories.fold(history, event(499), 2, rule(lateness=500))
    assert (refused, outcome) == (history, Outcome.TOO_LATE)


def test_a_repeat_is_known_by_its_event_id_alone() -> None:
    history, _ = run(History(0), [(0, event(10, event_id="e"))], rule())
    for other in (event(10, event_id="e"), Event("u", "purchase", START_MS + 20, "other", "c", "e")):
        assert histories.fold(history, other, 1, rule()) == (history, Outcome.REPEAT)
    assert histories.fold(history, event(10, event_id="f"), 1, rule())[1] is Outcome.FOLDED
    assert histories.fold(history, event(10), 1, rule())[1] is Outcome.FOLDED


def test_without_an_event_id_nothing_is_a_repeat() -> None:
    history, steps = run(History(0), enumerate([event(10), event(10), event(10)]), rule())
    assert [step.outcome for step in steps] == [Outcome.FOLDED] * 3
    assert len(histories.window(history, 2, rule().window).items) == 3


def test_an_empty_history_has_an_empty_window() -> None:
    assert histories.window(History(0), 5, rule().window) == EMPTY
    assert History(0).watermark_ms is None


def test_the_ring_holds_a_margin_beyond_the_window_and_no_more() -> None:
    history, _ = run(History(0), enumerate(map(event, range(100))), rule(events=3, margin=2))
    assert [entry.offset for entry in history.entries] == [95, 96, 97, 98, 99]


def test_what_no_window_can_reach_any_more_is_dropped() -> None:
    small = rule(events=50, age=10, margin=2)
    history, _ = run(History(0), enumerate(map(event, [0, 1, 2, 1000, 1001, 1002])), small)
    assert [entry.time_ms - START_MS for entry in history.entries] == [1000, 1001, 1002]


# Another partition


@given(streams(), rules, streams(ids=st.none()))
def test_on_another_partition_the_events_stay_and_offsets_start_again(
    records: list[tuple[int, Event]], rule: HistoryRule, later: list[tuple[int, Event]]
) -> None:
    history, _ = run(History(0), records, rule)
    window = histories.window(history, 10**9, rule.window)
    moved = histories.on_partition(history, 1)
    assert (moved.partition, moved.last_offset) == (1, -1)
    assert moved.watermark_ms == history.watermark_ms
    assert histories.window(moved, -1, rule.window) == histories.window(moved, 0, rule.window) == window
    assert histories.decode(histories.encode(moved)) == moved
    assert histories.on_partition(history, 0) is history

    after, steps = run(moved, later, rule)
    assert Outcome.SEEN not in {step.outcome for step in steps}
    tail = [(step.offset, step.event) for step in steps[max(0, len(steps) - rule.margin) :]]
    again, seen = run(after, tail, rule)
    assert again == after
    for then, now in zip(steps[len(steps) - len(tail) :], seen, strict=True):
        assert now.window == then.window


def test_offsets_of_the_old_partition_hide_nothing() -> None:
    history, _ = run(History(0), enumerate(map(event, range(3)), start=900), rule(events=5))
    moved, first = run(histories.on_partition(history, 1), enumerate(map(event, (10, 11))), rule(events=5))
    _, again = run(moved, enumerate(map(event, (10, 11))), rule(events=5))
    assert [step.outcome for step in again] == [Outcome.SEEN] * 2
    assert [times(step.window) for step in first] == [[0, 1, 2, 10], [0, 1, 2, 10, 11]]
    assert [step.window for step in again] == [step.window for step in first]


# The codec

texts = st.text(max_size=20) | st.just("語" * 512) | st.just("😀" * 512) | st.just("")
wild_events = st.builds(
    Event,
    st.just("u"),
    st.text(min_size=1, max_size=10),
    st.integers(0, 4_102_444_800_000),
    st.none() | texts,
    st.none() | texts,
    st.none() | st.text(max_size=5),
)


@given(st.lists(wild_events, max_size=8), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 100))
@example([], 0, 0)
def test_what_is_stored_is_what_is_read(events: list[Event], partition: int, offset: int) -> None:
    wide = HistoryRule(WindowRule(events=50), lateness_ms=2**62)
    history, _ = run(History(partition), enumerate(events, start=offset), wide)
    stored = histories.encode(history)
    read = histories.decode(stored)
    assert read == history
    assert histories.encode(read) == stored
    assert histories.window(read, offset + 99, wide.window) == histories.window(history, offset + 99, wide.window)


def test_nothing_and_an_empty_text_are_told_apart() -> None:
    for item, category in [(None, ""), ("", None), (None, None), ("", "")]:
        history, _ = run(History(0), [(0, Event("u", "view", START_MS, item, category))], rule())
        window = histories.window(histories.decode(histories.encode(history)), 0, rule().window)
        assert (window.items, window.categories) == ((item,), (category,))


def test_a_history_of_fifty_events_takes_less_than_four_kilobytes() -> None:
    history, _ = run(
        History(0),
        enumerate(Event("u", "add_to_cart", START_MS + n, f"item-{n:08}", f"category-{n % 9}") for n in range(66)),
        HistoryRule(WindowRule(events=50)),
    )
    assert len(history.entries) == 66
    row = 8 + 8 + 8 + 1 + 2 + 2 + len("add_to_cart") + len("item-00000000") + len("category-0")
    assert len(histories.encode(history)) == 1 + 4 + 8 + 2 + 66 * row


def _stored() -> bytes:
    events = [Event("u", "view", START_MS + n, f"語{n}", None if n % 2 else "c", f"e{n}") for n in range(4)]
    return histories.encode(run(History(3), enumerate(events), rule(events=4))[0])


def test_a_truncated_history_is_refused_at_every_length() -> None:
    stored = _stored()
    for length in range(len(stored)):
        with pytest.raises(HistoryError):
            histories.decode(stored[:length])


def test_bytes_behind_the_last_event_are_refused() -> None:
    with pytest.raises(HistoryError, match="1 bytes too many"):
        histories.decode(_stored() + b"\x00")


@pytest.mark.parametrize("schema", [0, 2, 255])
def test_another_schema_is_refused_by_name(schema: int) -> None:
    with pytest.raises(HistoryError, match=f"schema {schema}, this version reads 1"):
        histories.decode(bytes([schema]) + _stored()[1:])


def decode_or_refuse(value: bytes) -> History | None:
    """Anything raised but HistoryError is a failed test."""
    try:
        return histories.decode(value)
    except HistoryError as caught:
        error = caught
    assert len(str(error).splitlines()) == 1
    return None


@settings(max_examples=300)
@given(st.binary(max_size=120) | st.binary(max_size=80).map(lambda rest: b"\x01" + rest))
def test_garbage_raises_nothing_but_history_error(value: bytes) -> None:
    history = decode_or_refuse(value)
    if history is not None:
        assert histories.decode(histories.encode(history)) == history


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_byte_raises_nothing_but_history_error(data: st.DataObject) -> None:
    stored = bytearray(_stored())
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(stored))


@given(st.text(), st.text())
def test_event_ids_are_told_apart_by_their_hash(one: str, other: str) -> None:
    assert (histories.hash_event_id(one) == histories.hash_event_id(other)) == (one == other)
    assert 0 < histories.hash_event_id(one) < 2**64
    assert histories.hash_event_id(None) == 0


def test_a_hash_is_the_same_in_every_process() -> None:
    assert histories.hash_event_id("e1") == 0x040F4FF5515E5D1B  # printf e1 | b2sum -l 64
