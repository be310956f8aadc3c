"""Live quality: a user's last prediction against the event that came next, beside two baselines on the same events.

Predictions are kept in memory for the users seen last, so a restarted worker scores a user again from the second event
on. Knows nothing of Kafka or of metrics libraries, and reads no clock.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stream_app.events import Event

K = 10
CALIBRATION_BINS = 10


class Expectation(NamedTuple):
    """What is kept of a prediction until the user's next event."""

    items: tuple[str, ...]  # most probable first
    categories: tuple[str, ...]
    behaviors: dict[str, float]


@dataclass(slots=True)
class Score:
    """Sums over scored events; a figure is its sum divided by `events`."""

    events: int = 0
    hits: int = 0  # the item was among the first K
    reciprocal_rank: float = 0.0  # 1 / rank, 0 past K

    def add(self, ranking: Sequence[str], item: str) -> None:
        """Count one event about `item` against `ranking`, most probable first."""
        self.events += 1
        if item in ranking[:K]:
            self.hits += 1
            self.reciprocal_rank += 1 / (ranking.index(item) + 1)

    @property
    def hit_rate(self) -> float:
        """hit@K; NaN before the first event."""
        return self.hits / self.events if self.events else math.nan

    @property
    def mrr(self) -> float:
        """Mean reciprocal rank, cut at K; NaN before the first event."""
        return self.reciprocal_rank / self.events if self.events else math.nan


@dataclass(slots=True)
class BehaviorScore:
    """Log loss and calibration of the predicted behaviour."""

    events: int = 0
    correct: int = 0
    log_loss: float = 0.0  # sum of −ln p, in nats; p is cut at 1e-6
    bins: list[list[float]] = field(default_factory=lambda: [[0.0, 0.0, 0.0] for _ in range(CALIBRATION_BINS)])

    def add(self, probabilities: dict[str, float], behavior: str) -> None:
        """Count one event."""
        self.events += 1
        self.log_loss -= math.log(max(probabilities.get(behavior, 0.0), 1e-6))
        favorite = max(probabilities, key=probabilities.__getitem__)
        confidence = probabilities[favorite]
        self.correct += favorite == behavior
        count = self.bins[min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1)]
        count[0] += 1
        count[1] += confidence
        count[2] += favorite == behavior

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the favourite (Guo et al. 2017), in [0, 1]; NaN before the first event."""
        if not self.events:
            return math.nan
        return sum(abs(confidence - correct) for _, confidence, correct in self.bins) / self.events


class LiveScores:
    """Scores of the model, of popularity and of repeat (the user's own items, most recent first).

    `capacity` bounds the users remembered; popularity counts what has been seen, halved every `half_life` events so
    that it follows the day.
    """

    def __init__(self, *, capacity: int = 100_000, half_life: int = 50_000) -> None:
        self.model = Score()
        self.popularity = Score()
        self.repeat = Score()
        self.behavior = BehaviorScore()
        self._expected: OrderedDict[str, Expectation] = OrderedDict()
        self._capacity = capacity
        self._counts: Counter[str] = Counter()
        self._half_life = half_life
        self._since_halving = 0
        self._since_ranking = 0
        self._popular: tuple[str, ...] = ()

    def observe(self, event: Event, past_items: Sequence[str | None]) -> None:
        """Score what was expected of this user against `event`; `past_items` came before it, oldest first."""
        expected = self._expected.pop(event.user_id, None)
        if expected is not None:
            self.behavior.add(expected.behaviors, event.behavior)
            if event.item_id is not None:
                self.model.add(expected.items, event.item_id)
                self.popularity.add(self._popular, event.item_id)
                self.repeat.add(_most_recent(past_items), event.item_id)
        if event.item_id is not None:
            self._count(event.item_id)

    def expect(self, user_id: str, expectation: Expectation) -> None:
        """Keep what is expected of a user until the next event."""
        self._expected[user_id] = expectation
        self._expected.move_to_end(user_id)
        if len(self._expected) > self._capacity:
            self._expected.popitem(last=False)

    def forget(self, user_id: str) -> None:
        """Drop what is kept of a user."""
        self._expected.pop(user_id, None)

    def _count(self, item: str) -> None:
        self._counts[item] += 1
        self._since_halving += 1
        if self._since_halving >= self._half_life:
            self._since_halving = 0
            self._counts = Counter({item: count // 2 for item, count in self._counts.items() if count > 1})
        self._since_ranking += 1
        if self._since_ranking >= max(100, len(self._counts) // 10) or not self._popular:  # ranking reads every count
            self._since_ranking = 0
            self._popular = tuple(item for item, _ in self._counts.most_common(K))


def _most_recent(items: Iterable[str | None]) -> list[str]:
    """The first K distinct items, newest first."""
    distinct = dict.fromkeys(item for item in reversed(tuple(items)) if item is not None)
    return list(distinct)[:K]
