"""The steps of a batch, with a predictor whose answer shows all it was asked: what may fail alone fails alone,
and a record that comes again is answered as the first time, wherever a crash fell.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from model.engine import Engine
from model.forecast import Forecast, Item
from model.window import Step, Steps, Window, WindowRule
from stream_app import behaviors, history_codec, predictions
from stream_app import history as histories
from stream_app.chunk_states import Prepared
from stream_app.events import Event, EventDecoder, Reason, Rejected
from stream_app.history import HistoryRule, Outcome
from stream_app.history_cache import HistoryCache
from stream_app.history_layout import NO_ID, Entry, History
from stream_app.intake import Chunk, ChunkLimits, chunks
from stream_app.outgoing import Outgoing
from stream_app.pipeline import Batch, EngineFailed, Outputs, Pipeline, Request, Windows, _repeat_rank
from stream_app.predictions import Message, Prediction
from stream_app.producing import Parcel, unpacked
from stream_app.scoring import K
from tests.artefacts import untrained
from tests.stream_app.records import NOW_MS, FakeRecord, event_record, json_record
from tests.stream_app.test_history import naive_rank

NAMES = ("view", "purchase")
BEHAVIORS = behaviors.load()


def echo(window: Window) -> Forecast:
    """An answer that differs wherever the window does."""
    rows = list(zip(*window, strict=True))
    return Forecast(
        next_behaviors=[0.75, 0.25],
        next_items=[{"item_id": repr(row), "probability": 1 / len(rows), "behavior": None} for row in rows],
        next_categories=[{"category": "c", "probability": 0.5}],
        purchase_probability=0.25,
        time_to_next_s=(1.0, 2.0, 3.0),
        churn_probability=0.5,
        fallback="no_known_items" if window.items[-1] == "unknown" else None,
    )


class Echo:
    """Answers with the window; fails on any batch with a window that ends with the item "boom"."""

    version = "echo-1"
    behaviors = NAMES

    def __init__(self, window: WindowRule | None = None, answer: Callable[[Window], Forecast] = echo) -> None:
        self.window = window or WindowRule(events=3, age_ms=1000)
        self.answer = answer
        self.calls: list[int] = []

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        self.calls.append(len(windows))
        cut = list(windows)
        if any(window.items[-1] == "boom" for window in cut):
            raise RuntimeError("out of\nmemory")
        return [self.answer(window) for window in cut]


Table = dict[bytes, bytes]


def pipeline(table: Table | None = None, predictor: Any = None, **options: Any) -> Pipeline:
    cache = HistoryCache((table if table is not None else {}).get, options.pop("capacity", 1000))
    options = {"lateness_ms": 500, **options}
    steps = Pipeline(predictor or Echo(), EventDecoder(BEHAVIORS), cache, source="test", **options)
    steps.rule = steps.rule._replace(slack=1)  # so that histories drop what they may at once
    return steps


def run(pipeline: Pipeline, records: Iterable[FakeRecord], settled: int = 0) -> tuple[Batch, Outputs]:
    """The steps, in the order in which the worker and the replay take them."""
    events, batch = pipeline.decode(records)
    pipeline.fold(events, batch, settled)
    forecasts = pipeline.infer(pipeline.windows([batch]))
    pipeline.score(batch, forecasts)
    return batch, pipeline.conclude(batch, forecasts)


def apply(table: Table, outputs: Outputs) -> None:
    for user, state in outputs.states:
        if state is None:
            table.pop(user, None)
        else:
            table[user] = state


def read(message: Message) -> Prediction:
    return msgspec.json.decode(message.value or b"", type=Prediction)


def place_of(letter: Message) -> int:
    return int.from_bytes(dict(letter.headers)["kafka_dlt-original-offset"], "big")


def reasons(outputs: Outputs) -> dict[int, Reason]:
    return {place_of(letter): reason for letter, reason in outputs.dead_letters}


def windows(items: Iterable[str]) -> list[Window]:
    return [Window((item,), ("view",), (None,), (n,)) for n, item in enumerate(items)]


# One batch


def test_a_prediction_says_whom_why_when_and_on_how_much() -> None:
    steps = pipeline()
    run(steps, [event_record("u", 6, NOW_MS - 5)])
    _, outputs = run(steps, [event_record("u", 7, item_id="unknown", event_id="e7")])
    ((record, message),) = outputs.predictions
    assert record.offset == 7
    assert message.key == b"u"
    assert dict(message.headers)["ce_source"] == b"test"
    prediction = read(message)
    rows = [("i", "view", None, NOW_MS - 5), ("unknown", "view", None, NOW_MS)]
    assert prediction == Prediction(
        prediction_id="user-events-0-7",
        user_id="u",
        event_id="e7",
        as_of=NOW_MS,
        next_behaviors={"view": 0.75, "purchase": 0.25},
        next_items=[predictions.NextItem(repr(row), 1 / 2) for row in rows],
        next_categories=[predictions.NextCategory("c", 0.5)],
        purchase_probability=0.25,
        time_to_next_s=predictions.TimeToNext(1.0, 2.0, 3.0),
        churn_probability=0.5,
        model_version="echo-1",
        history_length=2,
        fallback="no_known_items",
    )
    assert outputs.fallbacks == {"no_known_items": 1}


def test_rejects_do_not_stop_a_batch() -> None:
    records = [
        event_record("a", 0),
        FakeRecord(offset=1, value=b"\xff"),
        event_record("b", 2),
        json_record({"behavior": "view"}, offset=3),
        event_record("c", 4, NOW_MS + 10**9),
        event_record("a", 5),
    ]
    batch, outputs = run(pipeline(), records)
    assert [record.offset for record, _ in outputs.predictions] == [0, 2, 5]
    assert reasons(outputs) == {1: Reason.UNDECODABLE, 3: Reason.INVALID, 4: Reason.FROM_THE_FUTURE}
    assert batch.outcomes == {Outcome.FOLDED: 3}
    assert {user for user, _ in outputs.states} == {b"a", b"b"}


def test_an_empty_batch_asks_the_model_nothing() -> None:
    predictor = Echo()
    _, outputs = run(pipeline(predictor=predictor), [FakeRecord(value=b"")])
    assert predictor.calls == []
    assert (outputs.predictions, outputs.states) == ([], [])


def test_all_windows_of_a_batch_go_to_the_model_together() -> None:
    predictor = Echo()
    run(pipeline(predictor=predictor), [event_record("u", n, NOW_MS + n) for n in range(4)])
    assert predictor.calls == [4]


def test_the_windows_of_several_batches_stand_in_order() -> None:
    steps = pipeline()
    batches = [steps.fold(*steps.decode([event_record(user, n, item_id=f"i{n}")]), 0) for n, user in enumerate("uvw")]
    assert [window.items for window in steps.windows(batches)] == [["i0"], ["i1"], ["i2"]]
    assert len(steps.windows([])) == len(steps.windows([Batch()])) == 0


def test_numbers_go_out_as_the_model_gave_them() -> None:
    third = structs.replace(
        echo(Window(["i"], ["view"], [None], [0])), churn_probability=1 / 3, next_behaviors=[2 / 3, 1 / 3]
    )
    _, outputs = run(pipeline(predictor=Echo(answer=lambda _: third)), [event_record("u", 0)])
    prediction = read(outputs.predictions[0][1])
    assert prediction.churn_probability == 1 / 3
    assert prediction.next_behaviors == {"view": 2 / 3, "purchase": 1 / 3}


def test_each_event_of_a_user_is_answered_as_of_itself() -> None:
    _, outputs = run(pipeline(), [event_record("u", n, NOW_MS + n, item_id=f"i{n}") for n in range(5)])
    assert [read(message).history_length for _, message in outputs.predictions] == [1, 2, 3, 3, 3]
    assert len(outputs.states) == 1


# Windows, cut when someone looks


class Cuts:
    """Counts the windows that are cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = 0
        self._cut = histories.window
        monkeypatch.setattr(histories, "window", self)

    def __call__(self, history: History, offset: int, rule: WindowRule) -> Window:
        self.made += 1
        return self._cut(history, offset, rule)


def folded(records: Iterable[FakeRecord]) -> tuple[Pipeline, Batch]:
    steps = pipeline()
    return steps, steps.fold(*steps.decode(records), 0)


def test_no_window_is_cut_before_the_model_looks_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = Cuts(monkeypatch)
    steps, batch = folded(event_record("u", n, NOW_MS + n) for n in range(5))
    windows = steps.windows([batch])
    assert (len(windows), len(windows[1:]), cuts.made) == (5, 4, 0)
    forecasts = steps.infer(windows)
    assert cuts.made == 5
    steps.score(batch, forecasts)
    steps.conclude(batch, forecasts)
    assert cuts.made == 5


class Incurious(Echo):
    """Has seen it all."""

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        return [echo(Window(["i"], ["view"], [None], [0]))] * len(windows)


def test_a_model_that_looks_at_no_window_has_none_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = Cuts(monkeypatch)
    _, outputs = run(pipeline(predictor=Incurious()), [event_record("u", n, NOW_MS + n) for n in range(5)])
    assert [read(message).history_length for _, message in outputs.predictions] == [1, 2, 3, 3, 3]
    assert cuts.made == 0


# The model fails


@given(st.lists(st.sampled_from(["good", "good", "boom"]), max_size=20))
def test_exactly_the_windows_that_fail_are_rejected(items: list[str]) -> None:
    asked = windows(items)
    forecasts = pipeline().infer(asked)
    for window, forecast in zip(asked, forecasts, strict=True):
        if window.items[0] == "boom":
            assert isinstance(forecast, Rejected)
            assert (forecast.reason, forecast.detail) == (Reason.INFERENCE, "RuntimeError: out of memory")
        else:
            assert forecast == echo(window)


def test_a_window_that_fails_becomes_a_dead_letter_and_its_event_stays() -> None:
    steps = pipeline()
    _, outputs = run(steps, [event_record("u", 0, item_id="boom"), event_record("v", 1)])
    assert reasons(outputs) == {0: Reason.INFERENCE}
    assert [record.offset for record, _ in outputs.predictions] == [1]
    assert {user for user, _ in outputs.states} == {b"u", b"v"}
    _, outputs = run(steps, [event_record("u", 2, NOW_MS + 1)])
    assert read(outputs.predictions[0][1]).history_length == 2


class Broken(Echo):
    """Fails on everything."""

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        raise RuntimeError("no device")


class Forgetful(Echo):
    """Returns one answer too few, and for a single window none at all."""

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        return [echo(window) for window in windows][1:]


class Uneven(Echo):
    """Returns too few answers for the first half of four windows and too many for the second."""

    def predict(self, windows: Sequence[Window]) -> list[Forecast]:
        forecasts = super().predict(windows)
        if len(windows) == 4:
            raise RuntimeError
        if len(windows) == 2:
            return forecasts[1:] if windows[0].times_ms == (0,) else [forecasts[0], *forecasts]
        return forecasts


@pytest.mark.parametrize("predictor", [Broken(), Forgetful()], ids=["broken", "forgetful"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_model_that_always_fails_blames_no_record(predictor: Any, count: int) -> None:
    with pytest.raises(EngineFailed):
        pipeline(predictor=predictor).infer(windows(["good"] * count))


def test_no_window_gets_the_answer_to_another() -> None:
    asked = windows(["good"] * 4)
    assert pipeline(predictor=Uneven()).infer(asked) == [echo(window) for window in asked]


# Records that come again, late or twice


def test_a_record_that_comes_again_is_answered_alike_and_its_state_put_again() -> None:
    table: Table = {}
    records = [event_record("u", n, NOW_MS + n, item_id=f"i{n}") for n in range(4)]
    _, first = run(pipeline(table), records)
    apply(table, first)
    batch, again = run(pipeline(table), records[1:3])
    assert batch.outcomes == {Outcome.SEEN: 2}
    assert [message for _, message in again.predictions] == [message for _, message in first.predictions[1:3]]
    assert again.states == first.states


def test_a_late_event_becomes_a_dead_letter_and_changes_nothing() -> None:
    table: Table = {}
    steps = pipeline(table)
    apply(table, run(steps, [event_record("u", 0)])[1])
    batch, outputs = run(steps, [event_record("u", 1, NOW_MS - 501)])
    assert reasons(outputs) == {1: Reason.TOO_LATE}
    assert (outputs.predictions, outputs.states, batch.outcomes) == ([], [], {Outcome.TOO_LATE: 1})


def test_a_repeat_changes_no_history_and_is_still_answered() -> None:
    steps = pipeline()
    _, first = run(steps, [event_record("u", 0, event_id="e")])
    batch, outputs = run(steps, [event_record("u", 1, NOW_MS + 9, event_id="e")])
    assert batch.outcomes == {Outcome.REPEAT: 1}
    assert outputs.states == []
    before, after = read(first.predictions[0][1]), read(outputs.predictions[0][1])
    assert after.prediction_id == "user-events-0-1"
    assert (after.next_items, after.history_length) == (before.next_items, 1)


def test_the_user_of_another_partition_keeps_the_events() -> None:
    table: Table = {}
    apply(table, run(pipeline(table), [event_record("u", 90)])[1])
    _, outputs = run(pipeline(table), [event_record("u", 3, NOW_MS + 1)._replace(partition=1)])
    assert read(outputs.predictions[0][1]).history_length == 2
    assert history_codec.decode(outputs.states[0][1] or b"").partition == 1


# Erasure


def test_an_erased_user_starts_anew() -> None:
    table: Table = {}
    steps = pipeline(table)
    apply(table, run(steps, [event_record("u", 0), event_record("v", 1)])[1])
    batch, outputs = run(steps, [FakeRecord(offset=2, key=b"u")])
    assert outputs.states == [(b"u", None)]
    ((record, message),) = outputs.predictions
    assert (record.offset, message.key, message.value) == (2, b"u", None)
    assert batch.erasures == [(record, "u")]
    apply(table, outputs)
    assert set(table) == {b"v"}
    for steps_after in (steps, pipeline(table)):
        _, outputs = run(steps_after, [event_record("u", 3, NOW_MS + 1), event_record("v", 4, NOW_MS + 1)])
        assert [read(message).history_length for _, message in outputs.predictions] == [1, 2]


def test_an_erasure_is_seen_before_the_table_knows() -> None:
    table: Table = {}
    steps = pipeline(table)
    apply(table, run(steps, [event_record("u", 0)])[1])
    run(steps, [FakeRecord(offset=1, key=b"u")])  # in flight: not applied
    _, outputs = run(steps, [event_record("u", 2, NOW_MS + 1)])
    assert read(outputs.predictions[0][1]).history_length == 1


def test_an_erased_user_is_not_scored() -> None:
    steps = pipeline()
    for records in ([event_record("u", 0)], [FakeRecord(offset=1, key=b"u")], [event_record("u", 2)]):
        run(steps, records)
    assert steps.scores.behavior.events == 0


# Scores


def test_each_event_is_scored_once_against_the_prediction_before_it() -> None:
    always_b: list[Item] = [{"item_id": "b", "probability": 0.5, "behavior": None}]
    steps = pipeline(predictor=Echo(answer=lambda window: structs.replace(echo(window), next_items=always_b)))
    records = [event_record("u", n, NOW_MS + n, item_id=item, event_id=item) for n, item in enumerate("aba")]
    run(steps, records[:2])
    assert (steps.scores.model.events, steps.scores.model.hits) == (1, 1)
    run(steps, records[:2])  # come again
    run(steps, [event_record("u", 2, NOW_MS + 2, item_id="b", event_id="b")])  # a repeat
    run(steps, [event_record("u", 3, NOW_MS - 999, item_id="b")])  # too late
    assert (steps.scores.model.events, steps.scores.behavior.events) == (1, 1)
    run(steps, [event_record("u", 4, NOW_MS + 2, item_id="b")])
    assert (steps.scores.model.events, steps.scores.model.hits) == (2, 2)


def test_of_a_large_batch_a_sample_of_users_is_scored() -> None:
    """Always the same ones, whole, and about as many events as are wanted."""
    steps = pipeline(most_scored=200)
    scored: list[set[str]] = []
    observe, seen = steps.scores.observe, set[str]()
    steps.scores.observe = lambda event, *rest: seen.add(event.user_id) or observe(event, *rest)  # type: ignore[method-assign, func-returns-value]
    for start in (0, 1000):
        run(steps, [event_record(f"u{n}", start + n) for n in range(1000)])
        scored.append(set(seen))
        seen.clear()
    assert scored[0] == scored[1]
    assert 140 < len(scored[0]) < 260  # 200, and five standard deviations of a binomial, √(1000 · .2 · .8) = 12.6
    assert steps.scores.model.events == len(scored[0])
    run(steps, [event_record("u1", 2000)])  # of a small one all are
    assert seen == {"u1"}
    assert steps.scores.model.events == len(scored[0]) + ("u1" in scored[0])


def test_an_event_without_an_answer_is_not_scored() -> None:
    steps = pipeline()
    run(steps, [event_record("u", 0), event_record("u", 1, NOW_MS + 1, item_id="boom")])
    assert steps.scores.behavior.events == 0


def test_what_a_late_event_repeats_came_before_it() -> None:
    """The repeat baseline knows neither the event it is scored on nor, of a late one, what happened after it."""
    steps = pipeline(predictor=Echo(WindowRule(events=9, age_ms=1000)))
    run(steps, [event_record("u", 0, NOW_MS, item_id="a"), event_record("u", 1, NOW_MS + 100, item_id="b")])
    repeat = steps.scores.repeat
    assert (repeat.events, repeat.hits) == (1, 0)
    run(steps, [event_record("u", 2, NOW_MS + 50, item_id="late")])
    assert (repeat.events, repeat.hits) == (2, 0)
    run(steps, [event_record("u", 3, NOW_MS + 60, item_id="b")])
    assert (repeat.events, repeat.hits) == (3, 0)
    run(steps, [event_record("u", 4, NOW_MS + 70, item_id="a")])
    assert (repeat.events, repeat.reciprocal_rank) == (4, pytest.approx(1 / 3))  # b, late, a


def test_a_late_event_outside_its_own_window_has_nothing_before_it() -> None:
    steps = pipeline(predictor=Echo(WindowRule(events=2, age_ms=1000)))
    run(steps, [event_record("u", n, NOW_MS + n, item_id="a") for n in range(2)])
    before = steps.scores.repeat.hits
    run(steps, [event_record("u", 2, NOW_MS - 1, item_id="a")])
    assert steps.scores.repeat.hits == before


def test_of_two_events_at_once_the_one_that_came_first_was_before() -> None:
    steps = pipeline(predictor=Echo(WindowRule(events=9, age_ms=1000)))
    first = [event_record("u", 0, item_id="a"), event_record("u", 1, NOW_MS + 9, item_id="b")]
    run(steps, [*first, event_record("u", 2, item_id="a")])
    assert (steps.scores.repeat.events, steps.scores.repeat.hits) == (2, 1)


# The law of a batch: every record ends in exactly one place

LIMITS = ChunkLimits(records=12, bytes=100_000, per_user=4)
RULE = HistoryRule(WindowRule(events=3, age_ms=1000), 500, slack=1)

users = st.sampled_from(["a", "b"])
jumps = st.integers(-100, 200) | st.sampled_from([-700, 0, 900, 2000])
good = st.tuples(
    st.just("event"),
    users,
    st.sampled_from(["x", "y", "boom"]),
    st.none() | st.sampled_from("ef"),
    jumps,
    st.booleans(),
)
bad = st.tuples(st.just("bad"), st.none() | users, st.sampled_from([b"", b"\xff", b"[]", b"{}"]))
erasures = st.tuples(st.just("erase"), users)


@st.composite
def partitions(draw: st.DrawFn) -> list[FakeRecord]:
    """The records of one partition in offset order: good, bad, late, repeated and null ones, with and without keys."""
    records, offset, time = [], 0, NOW_MS
    kinds = st.one_of(good, good, good, bad, erasures) if draw(st.booleans()) else st.one_of(good, good, bad)
    for kind, user, *rest in draw(st.lists(kinds, max_size=25)):
        offset += draw(st.sampled_from([1, 1, 3]))
        if kind == "event":
            item, event_id, jump, keyed = rest
            time += jump
            record = event_record(user, offset, time, item_id=item, event_id=event_id)
            records.append(record if keyed else record._replace(key=None))
        else:
            key = None if user is None else user.encode()
            records.append(FakeRecord(offset=offset, key=key, value=rest[0] if rest else None))
    return [record._replace(timestamp=NOW_MS + 10**6) for record in records]


@given(partitions(), st.slices(20), st.integers(-20, 19))
def test_windows_are_a_sequence_of_what_the_histories_say(
    records: list[FakeRecord], some: slice, position: int
) -> None:
    steps, batch = folded(records)
    windows = steps.windows([batch])
    expected = [histories.window(r.history, r.record.offset, RULE.window) for r in batch.requests]
    assert list(windows) == expected
    assert len(windows) == len(expected)
    assert isinstance(windows[some], Windows)
    assert list(windows[some]) == expected[some]
    if -len(expected) <= position < len(expected):
        assert windows[position] == expected[position]
    else:
        with pytest.raises(IndexError):
            windows[position]


@given(partitions())
def test_a_request_knows_the_history_before_its_event(records: list[FakeRecord]) -> None:
    _, batch = folded(records)
    for request in batch.requests:
        again, outcome = histories.fold(request.before, request.event, request.record.offset, RULE, 0)
        assert (again, outcome) == (request.history, request.outcome)
        assert all(entry.offset < request.record.offset for entry in request.before.entries)


item_streams = st.lists(st.tuples(st.sampled_from(["1", "11", "111", "x", None]), jumps), max_size=30)


@given(item_streams)
def test_the_repeat_baseline_lists_what_had_happened_by_then(stream: list[tuple[str | None, int]]) -> None:
    """The user's items, the most recent first, without the event itself and, of a late one, without what came after it."""
    records, time_ms = [], NOW_MS
    for offset, (item, jump) in enumerate(stream):
        time_ms += jump
        records.append(event_record("u", offset, time_ms, item_id=item, behavior="search" if item is None else "view"))
    _, batch = folded(record._replace(timestamp=NOW_MS + 10**6) for record in records)
    for request in batch.requests:
        by_then = [entry.item for entry in request.before.entries if entry.time_ms <= request.event.time_ms]
        item = request.event.item_id
        assert _repeat_rank(request.event, request.before) == (None if item is None else naive_rank(by_then, item, K))


def test_the_repeat_baseline_looks_at_ten_distinct_items() -> None:
    steps = pipeline(predictor=Echo(WindowRule(events=50)))
    before = steps.fold(*steps.decode(event_record("u", n, item_id=f"i{n}") for n in range(11)), 0).requests[-1].history
    for item, rank in (("i0", None), ("i1", 10), ("i10", 1), ("other", None)):
        assert _repeat_rank(Event("u", "view", NOW_MS, item), before) == rank


@given(partitions())
def test_every_record_of_a_batch_ends_in_one_place(records: list[FakeRecord]) -> None:
    _, outputs = run(pipeline(), records)
    for message in (message for _, message in outputs.predictions if message.value is not None):
        prediction = read(message)
        assert len(prediction.next_items) == prediction.history_length  # `echo` lists the window's rows
    places = Counter(record.offset for record, _ in outputs.predictions)
    places.update(place_of(letter) for letter, _ in outputs.dead_letters)
    assert places == {record.offset: 1 for record in records}
    ids = [dict(message.headers)["prediction_id"].decode() for _, message in outputs.predictions]
    assert ids == [f"user-events-0-{record.offset}" for record, _ in outputs.predictions]


# Windows as steps

strides = st.builds(
    lambda events, stride, age_stride_ms: WindowRule(events, 1000, stride=min(stride, events), age_stride_ms=age_stride_ms),
    st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 400, 1000]),
)  # fmt: skip
Rows = list[tuple[str | None, str, str | None, int]]


def rows(window: Window) -> Rows:
    return list(zip(*window, strict=True))


class Kept:
    """Every window that was a step, as somebody might have kept states for it, with no idea of what was erased or came again."""

    def __init__(self) -> None:
        self.windows: dict[tuple[str, int, int, int], Rows] = {}  # by user, partition, offset, start
        self.appended = 0  # steps that were known windows and one event

    def look(self, windows: Windows, requests: Sequence[Request]) -> None:
        """Each window must be what a step says of it."""
        for position, (window, request) in enumerate(zip(windows, requests, strict=True)):
            step = windows.step(position)
            if step is None:
                assert request.outcome is not Outcome.FOLDED or request.history.entries[-1] != _entry(request)
                continue
            assert (step.user_id, step.partition, step.offset) == (request.event.user_id, *request.record[1:3])
            assert step.length == len(window.times_ms)
            newest = (step.item, step.behavior, step.category, step.time_ms)
            assert newest == rows(window)[-1]
            before = self.windows.get((step.user_id, step.partition, step.before, step.start))
            if before is not None:
                self.appended += 1
                assert [*before, newest] == rows(window)
            self.windows[step.user_id, step.partition, step.offset, step.start] = rows(window)


def _entry(request: Request) -> Entry:
    event = request.event
    hash_ = NO_ID if event.event_id is None else histories.hash_event_id(event.event_id)
    return Entry(event.time_ms, request.record.offset, hash_, event.item_id, event.behavior, event.category)


@st.composite
def back_and_forth(draw: st.DrawFn) -> list[FakeRecord]:
    """One user's records, every third or so of them late, and some that repeat another."""
    records, time_ms = [], NOW_MS
    for offset, jump in enumerate(draw(st.lists(st.sampled_from([100, 100, 150, -120]), max_size=20))):
        time_ms += jump
        event_id = draw(st.none() | st.none() | st.sampled_from("ef"))
        records.append(event_record("a", offset, time_ms, item_id=f"i{offset}", event_id=event_id))
    return [record._replace(timestamp=NOW_MS + 10**6) for record in records]


@settings(max_examples=200)
@given(partitions() | back_and_forth(), strides, st.data())
def test_a_step_is_a_window_that_came_before_and_one_event(
    records: list[FakeRecord], rule: WindowRule, data: st.DataObject
) -> None:
    """Late, repeated and erased as events may be, and whatever comes again after a crash."""
    kept, table, committed, crashes = Kept(), Table(), 0, 0
    steps = pipeline(table, Echo(rule))
    while committed < len(records):
        until = data.draw(st.integers(committed + 1, len(records)))
        changes = []
        for record in records[committed:until]:
            events, batch = steps.decode([record])
            steps.fold(events, batch, records[committed].offset)
            kept.look(steps.windows([batch]), batch.requests)
            changes.append(steps.conclude(batch, steps.infer(steps.windows([batch]))))
        if crashes < 3 and data.draw(st.booleans()):
            crashes += 1
            for outputs in changes[: data.draw(st.integers(0, len(changes)))]:
                apply(table, outputs)
            steps = pipeline(table, Echo(rule))
        else:
            committed = until
            for outputs in changes:
                apply(table, outputs)


@given(partitions() | back_and_forth(), strides, st.lists(st.integers(0, 1), min_size=25, max_size=25))
def test_a_step_belongs_to_one_partition(records: list[FakeRecord], rule: WindowRule, places: list[int]) -> None:
    kept, steps = Kept(), pipeline(predictor=Echo(rule))
    for record, partition in zip(records, places, strict=False):
        batch = steps.fold(*steps.decode([record._replace(partition=partition)]), 0)
        kept.look(steps.windows([batch]), batch.requests)


@given(strides, st.integers(0, 30))
def test_a_user_in_order_needs_a_whole_window_only_where_its_start_moves(rule: WindowRule, events: int) -> None:
    steps, kept = pipeline(predictor=Echo(rule)), Kept()
    batch = steps.fold(*steps.decode(event_record("u", n, item_id=f"i{n}") for n in range(events)), 0)
    windows = steps.windows([batch])
    assert isinstance(windows, Steps)
    kept.look(windows, batch.requests)
    starts = [rule.first(count) for count in range(1, events + 1)]
    assert kept.appended == sum(start == before for before, start in pairwise(starts))
    for position in range(events):
        step = windows[position:].step(0)
        assert step is not None
        assert (step.before, step.start, step.length) == (
            position - 1,
            starts[position],
            position + 1 - starts[position],
        )


def test_which_windows_are_steps_by_hand() -> None:
    rule = WindowRule(events=4, age_ms=1000, stride=2)
    steps = pipeline(predictor=Echo(rule))
    late, repeat, erased = NOW_MS - 1, {"event_id": "e"}, FakeRecord(offset=7, key=b"u")
    life = [event_record("u", n, NOW_MS + n, item_id=f"i{n}") for n in range(3)]
    life += [
        event_record("u", 3, late),
        event_record("u", 4, NOW_MS + 4, **repeat),
        event_record("u", 5, NOW_MS + 5, **repeat),
    ]
    life += [event_record("u", 6, NOW_MS + 6), erased, event_record("u", 8, NOW_MS + 8)]
    found = []
    for record in [*life, life[-1], event_record("u", 1, NOW_MS + 9)._replace(partition=1)]:
        batch = steps.fold(*steps.decode([record]), 0)
        found += [steps.windows([batch]).step(position) for position in range(len(batch.requests))]
    assert [step and (step.before, step.start, step.length) for step in found] == [
        (-1, 0, 1),
        (0, 0, 2),
        (1, 0, 3),
        None,  # late
        (3, 2, 3),
        None,  # a repeat
        (4, 2, 4),
        (-1, 0, 1),  # a new life
        None,  # came again
        (-1, 0, 2),  # on another partition
    ]
    assert found[1] == Step("u", 0, 0, 1, 0, 2, "i1", "view", None, NOW_MS + 1)


def pure_fold(records: Iterable[FakeRecord], rule: HistoryRule = RULE) -> Table:
    """What an independent checker computes: each user's events folded one by one, with no batches and no crashes."""
    decoder, users = EventDecoder(BEHAVIORS), dict[str, History]()
    for record in records:
        try:
            event = decoder.decode(record)
        except Rejected:
            continue
        if isinstance(event, Event):
            before = users.get(event.user_id, History.empty(0))
            users[event.user_id] = histories.fold(before, event, record.offset, rule, record.offset)[0]
        else:
            users.pop(event.user_id, None)
    return {user.encode(): history.stored for user, history in users.items()}


def shown(table: Table, rule: HistoryRule = RULE) -> dict[bytes, tuple[int, int, Window]]:
    """What matters of the histories in a table; how much more each of them keeps depends on what was settled when."""
    kept = {user: history_codec.decode(value) for user, value in table.items()}
    return {
        user: (history.partition, history.last_offset, histories.window(history, history.last_offset, rule.window))
        for user, history in kept.items()
    }


class Topics:
    """What is durable: outputs by input offset, the changelog's last values, the committed position."""

    def __init__(self) -> None:
        self.predictions: dict[int, set[bytes | None]] = {}
        self.letters: dict[int, set[tuple[bytes | None, str]]] = {}
        self.changelog: Table = {}
        self.order: list[tuple[bytes | None, int]] = []  # of predictions, repeats left out

    def produce(self, outputs: Outputs, durable: Callable[[], bool]) -> bool:
        """Write what `durable` allows, in any combination; True if that was everything."""
        everything = True
        for record, message in outputs.predictions:
            if durable():
                if record.offset not in self.predictions:
                    self.order.append((message.key, record.offset))
                self.predictions.setdefault(record.offset, set()).add(message.value)
            else:
                everything = False
        for letter, reason in outputs.dead_letters:
            if durable():
                self.letters.setdefault(place_of(letter), set()).add((letter.value, reason.value))
            else:
                everything = False
        for user, state in outputs.states:
            if durable():
                apply(self.changelog, Outputs([], [], [(user, state)]))
            else:
                everything = False
        return everything


@given(partitions(), st.integers(1, 8))
def test_a_batch_in_parts_gives_what_it_gives_as_a_whole(records: list[FakeRecord], requests: int) -> None:
    whole, in_parts = pipeline(), pipeline()
    _, expected = run(whole, records)
    events, batch = in_parts.decode(records)
    in_parts.fold(events, batch, 0)
    forecasts = iter(in_parts.infer(in_parts.windows([batch])))
    outgoing = Outgoing(*(Parcel(lambda: BatchBuilder(1 << 20, 0), lingers=False) for _ in range(2)))
    for part in batch.parts(requests):
        assert max(len(part.requests), len(part.changed)) <= requests
        own = [next(forecasts) for _ in part.requests]
        in_parts.score(part, own)
        outgoing.add(in_parts.conclude(part, own))
    assert list(forecasts) == []
    predictions, states = (
        [message for one in parcel.batches() for message in unpacked(one)]
        for parcel in (outgoing.packed_predictions, outgoing.packed_states)
    )
    assert sorted(zip(outgoing.predictions, predictions, strict=True), key=offset_of) == sorted(
        expected.predictions, key=offset_of
    )
    assert sorted(outgoing.dead_letters, key=str) == sorted(expected.dead_letters, key=str)
    assert states == [(user, state, []) for user, state in outgoing.states]
    assert (outgoing.states, outgoing.fallbacks) == (expected.states, expected.fallbacks)
    for kind in ("model", "popularity", "repeat", "behavior"):
        assert getattr(in_parts.scores, kind) == getattr(whole.scores, kind)


def offset_of(sent: tuple[FakeRecord, Message]) -> int:
    return sent[0].offset


def prepared(chunk: Chunk, batch: Batch) -> Prepared:
    """A chunk as the agent asks about it."""
    return Prepared(cast(Any, None), chunk, batch, cast(Any, None), 0)


@settings(max_examples=200)
@given(partitions(), st.just(RULE.window) | strides, st.data())
def test_after_any_crashes_every_record_has_one_answer_and_every_user_one_history(
    records: list[FakeRecord], window: WindowRule, data: st.DataObject
) -> None:
    """Crashes fall anywhere between the deliveries of a chunk; then the worker starts from the changelog and the commit.

    A chunk may be delivered while the one before it is not committed, where the agent says so.
    """
    topics, committed, crashes, rule = Topics(), 0, 0, RULE._replace(window=window)
    steps = pipeline(topics.changelog, Echo(window))
    last: Prepared | None = None  # delivered, and not committed
    while committed < len(records):
        limits = replace(LIMITS, records=data.draw(st.integers(1, 12)))
        begin = committed + (0 if last is None else len(last.records))
        if begin == len(records):
            break
        chunk = next(chunks(records[begin:], limits))
        batch, outputs = run(steps, chunk, settled=records[committed].offset)
        this = prepared(chunk, batch)
        if last is not None and (not this.may_follow(last) or data.draw(st.booleans())):
            committed, last = committed + len(last.records), None
        crashing = crashes < 4 and data.draw(st.booleans())
        topics.produce(outputs, lambda crashing=crashing: not crashing or data.draw(st.booleans()))
        if crashing:
            crashes += 1
            steps, last = pipeline(topics.changelog, Echo(window)), None
            continue
        if last is not None:
            committed += len(last.records)
        last = this

    answered, refused = set(topics.predictions), set(topics.letters)
    assert answered | refused == {record.offset for record in records}
    assert answered.isdisjoint(refused)
    assert all(len(values) == 1 for values in (*topics.predictions.values(), *topics.letters.values()))
    assert shown(topics.changelog, rule) == shown(pure_fold(records, rule), rule)
    smooth = [run(one, [record])[1] for one in [pipeline(predictor=Echo(window))] for record in records]
    expected = {record.offset: {message.value} for outputs in smooth for record, message in outputs.predictions}
    assert topics.predictions == expected


def test_a_user_comes_again_with_and_without_a_key() -> None:
    """The worst crash: all histories of the chunk are written, and no prediction."""
    records = [event_record("u", n, NOW_MS + n) for n in range(8)]
    records = [record._replace(key=None) if record.offset % 2 else record for record in records]
    topics, committed = Topics(), 0
    smooth = [message for _, message in run(pipeline(), records)[1].predictions]
    while committed < len(records):
        chunk = next(chunks(records[committed:], LIMITS))
        apply(topics.changelog, run(pipeline(topics.changelog), chunk, settled=committed)[1])
        _, again = run(pipeline(topics.changelog), chunk, settled=committed)
        assert [message for _, message in again.predictions] == smooth[committed : committed + len(chunk)]
        committed += len(chunk)


@given(partitions())
def test_the_order_of_a_user_holds_through_chunks(records: list[FakeRecord]) -> None:
    steps, topics = pipeline(), Topics()
    for chunk in chunks(records, LIMITS):
        topics.produce(run(steps, chunk)[1], lambda: True)
    for user in (b"a", b"b"):
        offsets = [offset for key, offset in topics.order if key == user]
        assert offsets == sorted(offsets)


# The cache in front of the table


def _one_after_the_other(logs: Sequence[list[FakeRecord]]) -> list[FakeRecord]:
    return [record._replace(offset=1000 * n + record.offset) for n, log in enumerate(logs) for record in log]


@given(st.lists(partitions(), min_size=3, max_size=3).map(_one_after_the_other), st.integers(1, 6))
def test_the_cache_never_loses_a_change_that_the_table_does_not_have(records: list[FakeRecord], in_work: int) -> None:
    """As the agent does it: chunks are folded while those before are on their way to the table; then the cache is trimmed."""
    renamed = [_of_many_users(record) for record in records]
    cut = list(chunks(renamed, ChunkLimits(records=3, bytes=100_000, per_user=3)))
    changed = _changed(cut)
    together = [set().union(*changed[start : start + in_work]) for start in range(len(cut))]  # in flight at a time
    table: Table = {}
    steps = pipeline(table, capacity=max([1, *map(len, together)]))
    in_flight: deque[Outputs] = deque()
    for chunk in cut:
        _, prepared = run(steps, chunk)
        in_flight.append(prepared)
        if len(in_flight) > in_work:
            apply(table, in_flight.popleft())
            steps.cache.trim()
    for outputs in in_flight:
        apply(table, outputs)
    assert shown(table) == shown(pure_fold(renamed))


def _changed(cut: Sequence[Chunk]) -> list[set[bytes]]:
    """The users whose histories each chunk changes."""
    table: Table = {}
    steps, found = pipeline(table), []
    for chunk in cut:
        _, outputs = run(steps, chunk)
        apply(table, outputs)
        found.append({user for user, _ in outputs.states})
    return found


def _of_many_users(record: FakeRecord) -> FakeRecord:
    """The same record, of one of thirty users."""
    if record.value is None or not record.key or b'"user_id"' not in record.value:
        return record
    user = f"u{record.offset % 30}"
    fields = {**msgspec.json.decode(record.value), "user_id": user}
    return record._replace(key=user.encode(), value=msgspec.json.encode(fields))


@pytest.mark.parametrize(
    ("first", "second", "may_follow", "same_again"),
    [
        ("u u", "u u", True, True),
        ("u v u", "v u v u", True, True),
        ("u u u u u u u", "u u u u u u u", True, True),
        ("u v", "u!", False, False),
        ("v!", "v", False, True),
    ],
)
def test_two_chunks_that_come_again_are_answered_as_the_first_time_if_one_may_follow_the_other(
    first: str, second: str, may_follow: bool, same_again: bool
) -> None:
    """The worst crash behind two chunks: all their histories are written, nothing is committed, nothing was predicted."""
    table: Table = {}
    records = [
        FakeRecord(offset=offset, key=user[:-1].encode()) if user.endswith("!") else event_record(user, offset)
        for offset, user in enumerate(["u", "u", "v", *first.split(), *second.split()])
    ]
    steps, cuts = pipeline(table), [0, 3, 3 + len(first.split()), len(records)]
    chunks_of_them = [Chunk(records[begin:end]) for begin, end in pairwise(cuts)]
    batches, outputs = zip(
        *(run(steps, chunk, settled=min(chunk[0].offset, 3)) for chunk in chunks_of_them), strict=True
    )
    for output in outputs:
        apply(table, output)
    answers = [message.value for output in outputs[1:] for _, message in output.predictions]
    again = [
        message.value
        for one in [pipeline(table)]
        for record in records[3:]
        for _, message in run(one, [record], settled=3)[1].predictions
    ]
    assert (again == answers) == same_again
    _, before, this = (prepared(chunk, batch) for chunk, batch in zip(chunks_of_them, batches, strict=True))
    assert this.may_follow(before) == may_follow


# Another model, and what the one before knew


def keeping(seed: int, limit_bytes: int = 1 << 22) -> Engine:
    engine = Engine(untrained(seed, window=WindowRule(events=12, stride=6)), device="cpu")
    engine.keep_states(limit_bytes, buckets=(1, 4))
    return engine


def test_after_a_swap_users_are_known_before_their_next_events() -> None:
    """The most recent first; a full window is left out, for the next one begins elsewhere; answers are those of whole windows."""
    steps = pipeline(predictor=keeping(0), most_scored=0)
    records = [event_record(f"u{n % 7}", n, NOW_MS + n, item_id=f"i{n % 5}") for n in range(40)]
    run(steps, records)
    run(steps, [event_record("full", n, NOW_MS + n, item_id="i1") for n in range(40, 52)])
    run(steps, [event_record("strange", 52, NOW_MS + 52, item_id="unheard")])
    steps.swap(new := keeping(1))
    order: list[str] = []
    while pasts := steps.cold(3):
        order += [past.user_id for past in pasts]
        steps.restore(pasts)
    assert order == ["strange", "full", "u4", "u3", "u2", "u1", "u0", "u6", "u5"]
    assert (new.kept.restored, new.kept.users, new.kept.refills) == (8, 8, 0)
    assert new.recent_users() == [user for user in order if user != "full"]
    more = [event_record(user, 60 + n, NOW_MS + 60 + n, item_id="i3") for n, user in enumerate(order) if user != "full"]
    batch, outputs = run(steps, more)
    assert (new.kept.hits, new.kept.refills) == (8, 0)
    alone = Engine(untrained(1, window=new.window), device="cpu").predict(list(steps.windows([batch])))
    for (_, message), answer in zip(outputs.predictions, alone, strict=True):
        assert read(message).purchase_probability == pytest.approx(answer.purchase_probability, abs=1e-5)
        assert {i.item_id: i.probability for i in read(message).next_items} == pytest.approx(
            {i["item_id"]: i["probability"] for i in answer.next_items}, abs=1e-5
        )


def test_users_are_restored_where_there_is_room_and_nobody_gives_way() -> None:
    steps = pipeline(predictor=keeping(0), most_scored=0)
    run(steps, [event_record(f"u{n}", n, item_id="i1") for n in range(20)])
    each = keeping(1).kept.bytes // cast(Any, keeping(1).states).room
    steps.swap(new := keeping(1, 6 * each))
    run(steps, [event_record("u0", 20, item_id="i1")])
    while pasts := steps.cold(4):
        steps.restore(pasts)
    assert (new.kept.users, new.kept.evictions) == (6, 0)
    assert new.recent_users() == ["u0", "u19", "u18", "u17", "u16", "u15"]


def test_who_is_erased_is_cold_no_more_and_who_waits_longer_than_a_model_still_is() -> None:
    steps = pipeline(predictor=keeping(0), most_scored=0)
    run(steps, [event_record(f"u{n}", n, item_id="i1") for n in range(3)])
    steps.swap(keeping(1))
    run(steps, [FakeRecord(key=b"u1", value=None, offset=3)])
    steps.swap(keeping(2))
    assert [past.user_id for past in steps.cold(9)] == ["u2", "u0"]
    steps.swap(Echo(steps.rule.window))
    assert steps.cold(9) == []
