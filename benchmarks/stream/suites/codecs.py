"""The steps that are pure functions, alone in this process: decoding, folding, encoding. No broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.stream.loads import skewed
from benchmarks.stream.peers.constant_predictor import ConstantPredictor
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import rounded
from model.window import WindowRule
from stream_app import behaviors
from stream_app.events import Event, EventDecoder
from stream_app.history import History, HistoryRule, encode, fold
from stream_app.pipeline import HistoryCache, Pipeline
from stream_app.replay import LogRecord, place

EVENTS = 2_000
REPEATS = 15
MARGIN = 16


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per step, the medians of repeats."""
    records = list(place(skewed(EVENTS).records, "events", 1, now_ms=1_800_000_000_000))
    return [
        {"step": name, "us_per_event": rounded(us)}
        for name, us in [
            ("decode and validate", _decode(records)),
            *((f"fold into and encode a history of {n}", _fold(records, plan.window, n)) for n in lengths(plan.window)),
            ("score and encode a prediction of full size", _conclude(records, plan.window)),
        ]
    ]


def lengths(window: int) -> tuple[int, ...]:
    """Of a history before the event: new, young, full."""
    return 1, 20, window + MARGIN


def _decode(records: list[LogRecord]) -> float:
    decode = EventDecoder(behaviors.load()).decode
    return _us_per_event(lambda: [decode(record) for record in records])


def _fold(records: list[LogRecord], window: int, length: int) -> float:
    rule = HistoryRule(WindowRule(events=window), margin=MARGIN)
    decode = EventDecoder(behaviors.load()).decode
    events = [event for record in records if isinstance(event := decode(record), Event)]
    history = History(0)
    for offset, event in enumerate(events[:length]):
        history, _ = fold(history, event, offset, rule)
    newest = [event._replace(time_ms=events[-1].time_ms + 1) for event in events[length:]]

    def work() -> None:
        for event in newest:
            encode(fold(history, event, length, rule)[0])

    return _us_per_event(work, len(newest))


def _conclude(records: list[LogRecord], window: int) -> float:
    predictor = ConstantPredictor(WindowRule(events=window))
    cache = HistoryCache(lambda _: None)
    pipeline = Pipeline(predictor, EventDecoder(behaviors.load()), cache, source="nextmove/benchmark", margin=MARGIN)
    events, batch = pipeline.decode(records)
    pipeline.fold(events, batch)
    forecasts = pipeline.infer(batch.windows)

    def work() -> None:
        pipeline.score(batch, forecasts)
        pipeline.conclude(batch, forecasts)

    return _us_per_event(work)


def _us_per_event(work: Callable[[], object], events: int = EVENTS) -> float:
    work()  # warm
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return median(seconds) / events * 1e6
