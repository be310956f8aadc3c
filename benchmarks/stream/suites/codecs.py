"""The steps that are pure functions, alone in this process: decoding, folding, encoding. No broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from statistics import median
from typing import Any

from benchmarks.notes import rounded
from benchmarks.stream.loads import skewed
from benchmarks.stream.peers.constant_predictor import ConstantPredictor, full_forecast
from benchmarks.stream.plan import Plan
from model.window import WindowRule
from stream_app import behaviors
from stream_app.events import Event, EventDecoder
from stream_app.history import HistoryRule, fold
from stream_app.history_cache import HistoryCache
from stream_app.history_codec import decode
from stream_app.history_layout import History
from stream_app.pipeline import Pipeline
from stream_app.predictions import PredictionEncoder
from stream_app.replay import NEVER_AGAIN, LogRecord, place

EVENTS = 4_000
REPEATS = 15
CHUNK = 512
NOW_MS = 1_800_000_000_000


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per step, the medians of repeats."""
    records = list(place(skewed(EVENTS).records, "user-events", 1, NOW_MS))
    decoder = EventDecoder(behaviors.load())
    events = [event for record in records if isinstance(event := decoder.decode(record), Event)]
    rule = HistoryRule(WindowRule(events=plan.window))
    full = rule.window.events + rule.slack // 2  # between one drop of the oldest and the next
    steps: dict[str, Callable[[], object]] = {
        "decode and validate an event": lambda: [decoder.decode(record) for record in records],
        **{f"fold into a history of {n}, as it is stored": _folding(events, n, rule) for n in (1, 20, full)},
        **{
            f"fold {what} into a history of {full}": _folding_unusual(events, full, rule, repeat=repeat)
            for what, repeat in (("a repeat", True), ("a late event", False))
        },
        f"read a stored history of {full}": _decoding(events, full, rule),
        "encode a prediction of full size": _encoding(events),
        "all steps of the pipeline": lambda: _pipeline(records, plan.window),
    }
    return [{"step": name, "us_per_event": rounded(_us_per_event(work))} for name, work in steps.items()]


def _history(events: Sequence[Event], length: int, rule: HistoryRule) -> History:
    history = History.empty(0)
    for offset, event in enumerate(events[:length]):
        history, _ = fold(history, event, offset, rule, offset)
    return history


def _folding(events: Sequence[Event], length: int, rule: HistoryRule) -> Callable[[], object]:
    """New events into a history of `length`, each as if it were the next; a full one goes through all lengths that it has."""
    starts = [_history(events, length, rule)]
    for event in events[length : length + (rule.slack - 1 if length > rule.window.events else 0)]:
        starts.append(fold(starts[-1], event, starts[-1].last_offset + 1, rule, starts[-1].last_offset + 1)[0])
    newest_ms = events[-1].time_ms + 1
    others = cycle(events[length + len(starts) - 1 :])  # of which no history holds an event
    following = [
        (starts[number % len(starts)], event._replace(time_ms=newest_ms))
        for number, event in enumerate(islice(others, EVENTS))
    ]
    return _folding_each(following, rule)


def _folding_unusual(events: Sequence[Event], length: int, rule: HistoryRule, *, repeat: bool) -> Callable[[], object]:
    """An event that repeats one of the history's last ten, or comes later than those."""
    history = _history(events, length, rule)
    if repeat:
        following = [event._replace(time_ms=events[-1].time_ms) for event in events[length - 10 : length]]
    else:
        following = [event._replace(time_ms=events[length - 10].time_ms) for event in events[length + 1 :]]
    return _folding_each([(history, event) for event in islice(cycle(following), EVENTS)], rule)


def _folding_each(following: Sequence[tuple[History, Event]], rule: HistoryRule) -> Callable[[], object]:

    def work() -> None:
        for start in range(0, len(following), CHUNK):  # what is encoded is held until its chunk is delivered
            [
                fold(history, event, history.last_offset + 1, rule, history.last_offset + 1)[0].stored
                for history, event in following[start : start + CHUNK]
            ]

    return work


def _decoding(events: Sequence[Event], length: int, rule: HistoryRule) -> Callable[[], object]:
    stored = _history(events, length, rule).stored
    return lambda: [decode(stored) for _ in range(EVENTS)]


def _encoding(events: Sequence[Event]) -> Callable[[], object]:
    encoder = PredictionEncoder(ConstantPredictor.behaviors, ConstantPredictor.version, "nextmove/benchmark")
    forecast = full_forecast()
    return lambda: [
        encoder.encode(f"user-events-0-{offset}", event, 10, forecast) for offset, event in enumerate(events)
    ]


def _pipeline(records: Sequence[LogRecord], window: int) -> None:
    """What an inline replay does: everything but the broker, from users without a history."""
    predictor = ConstantPredictor(WindowRule(events=window))
    decoder, cache = EventDecoder(behaviors.load()), HistoryCache(lambda _: None)
    pipeline = Pipeline(predictor, decoder, cache, source="nextmove/benchmark")
    for start in range(0, len(records), CHUNK):
        events, batch = pipeline.decode(records[start : start + CHUNK])
        pipeline.fold(events, batch, NEVER_AGAIN)
        forecasts = pipeline.infer(pipeline.windows([batch]))
        pipeline.score(batch, forecasts)
        pipeline.conclude(batch, forecasts)


def _us_per_event(work: Callable[[], object]) -> float:
    """Of work that goes once through all events."""
    work()  # warm
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds) / EVENTS * 1e6
