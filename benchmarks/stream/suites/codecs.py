"""The steps that are pure functions, alone in this process: decoding, folding, encoding. No broker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from benchmarks.stream.loads import skewed
from benchmarks.stream.peers.constant_predictor import ConstantPredictor, full_forecast
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import rounded
from model.window import WindowRule
from stream_app import behaviors
from stream_app.events import Event, EventDecoder
from stream_app.history import History, HistoryRule, decode, encode, fold
from stream_app.pipeline import HistoryCache, Pipeline
from stream_app.predictions import PredictionEncoder
from stream_app.replay import LogRecord, place

EVENTS = 4_000
REPEATS = 15
MARGIN = 16
CHUNK = 512
NOW_MS = 1_800_000_000_000


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per step, the medians of repeats."""
    records = list(place(skewed(EVENTS).records, "user-events", 1, NOW_MS))
    decoder = EventDecoder(behaviors.load())
    events = [event for record in records if isinstance(event := decoder.decode(record), Event)]
    rule = HistoryRule(WindowRule(events=plan.window), margin=MARGIN)
    steps: dict[str, Callable[[], object]] = {
        "decode and validate an event": lambda: [decoder.decode(record) for record in records],
        **{f"fold into a history of {n}, and encode it": _folding(events, n, rule) for n in (1, 20, rule.capacity)},
        f"decode a stored history of {rule.capacity}": _decoding(events, rule),
        "encode a prediction of full size": _encoding(events),
        "all steps of the pipeline": lambda: _pipeline(records, plan.window),
    }
    return [{"step": name, "us_per_event": rounded(_us_per_event(work))} for name, work in steps.items()]


def _history(events: Sequence[Event], length: int, rule: HistoryRule) -> History:
    history = History(0)
    for offset, event in enumerate(events[:length]):
        history, _ = fold(history, event, offset, rule)
    return history


def _folding(events: Sequence[Event], length: int, rule: HistoryRule) -> Callable[[], object]:
    """Every event into the same history, as if it were the next."""
    history, newest_ms = _history(events, length, rule), events[-1].time_ms + 1
    following = [event._replace(time_ms=newest_ms) for event in events]
    return lambda: [encode(fold(history, event, length, rule)[0]) for event in following]


def _decoding(events: Sequence[Event], rule: HistoryRule) -> Callable[[], object]:
    stored = encode(_history(events, rule.capacity, rule))
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
    pipeline = Pipeline(predictor, decoder, cache, source="nextmove/benchmark", margin=MARGIN)
    for start in range(0, len(records), CHUNK):
        events, batch = pipeline.decode(records[start : start + CHUNK])
        pipeline.fold(events, batch)
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
