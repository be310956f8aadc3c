"""What happened to a batch, as one object for whoever observes: metrics, logs, tests, the demo's live view; and to a model.

Working code fills it and knows none of the observers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from time import perf_counter, time

import numpy as np
import numpy.typing as npt

from stream_app.events import Record
from stream_app.outgoing import Outgoing
from stream_app.pipeline import Batch, Outputs

Seconds = npt.NDArray[np.float64]

STAGES = ("decode", "fold", "infer", "score", "emit", "ack")


class Swap(StrEnum):
    """What became of another model that was found in the place of the one at work."""

    SWAPPED = "swapped"
    REFUSED = "refused"


@dataclass(slots=True)
class BatchReport:
    """One chunk's way through the steps; complete once `done` was called."""

    partition: int
    records: int
    last_timestamp_ms: int = 0  # of the last record
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    predictions: int = 0
    erasures: int = 0
    expired: int = 0  # users whose histories went because they were idle
    histories: int = 0  # users written
    outcomes: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)  # by reason
    fallbacks: Counter[str] = field(default_factory=Counter)
    latencies_s: Seconds = field(default_factory=lambda: np.zeros(0))  # record produced → outputs delivered
    freshness_s: Seconds = field(default_factory=lambda: np.zeros(0))  # event happened → outputs delivered

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure a stage in seconds."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = perf_counter() - start

    def done(self, batch: Batch, outputs: Outputs | Outgoing, records: Sequence[Record]) -> BatchReport:
        """Fill in the figures once everything is delivered."""
        now = time()
        self.last_timestamp_ms = records[-1].timestamp
        self.erasures = len(batch.erasures)
        self.expired = len(batch.expired)
        self.predictions = len(outputs.predictions) - self.erasures
        self.histories = len(outputs.states)
        self.outcomes.update(batch.outcomes)
        self.dead_letters.update(str(reason) for _, reason in outputs.dead_letters)
        self.fallbacks.update(outputs.fallbacks)
        self.latencies_s = now - np.array([record.timestamp for record in records]) / 1000
        self.freshness_s = now - np.array(batch.times_ms) / 1000
        return self


Observer = Callable[[BatchReport], None]
