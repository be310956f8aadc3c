"""Live quality: a user's last prediction against the event that came next, beside two baselines on the same events.

Predictions are kept in memory for the users seen last, so a restarted worker scores a user again from the second event
on. Whoever calls may leave out events, such as those of users outside a sample: an event is scored only against the prediction that
was made right before it. Knows nothing of Kafka or of metrics libraries, and reads no clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from operator import itemgetter
from typing import Any, Protocol, TypeVar

from stream_app.events import Event

K = 10
CALIBRATION_BINS = 10
ITEM_ID = itemgetter("item_id")

P = TypeVar("P")  # a user's past, in whatever form


class Predicted(Protocol):
    """What is scored of a prediction; a forecast has it."""

    @property
    def next_behaviors(self) -> Sequence[float]:
        """Probabilities, in the order of the behaviours that the scores were made for."""

    @property
    def next_items(self) -> Sequence[Mapping[str, Any]]:
        """Most probable first, each with its `item_id`."""


@dataclass(slots=True)
class Score:
    """Sums over scored events; a figure is its sum divided by `events`."""

    events: int = 0
    hits: int = 0  # the item was among the first K
    reciprocal_rank: float = 0.0  # 1 / rank, 0 past K

    def add(self, rank: int | None) -> None:
        """Count one event whose item stood at `rank`, from 1; None: nowhere among the first K."""
        self.events += 1
        if rank is not None and rank <= K:
            self.hits += 1
            self.reciprocal_rank += 1 / rank

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
    log_loss: float = 0.0  # sum of −ln p, with p at least 1e-6
    # count, sum of confidences, correct; by confidence of the favourite
    bins: list[list[float]] = field(default_factory=lambda: [[0, 0.0, 0] for _ in range(CALIBRATION_BINS)])

    def add(self, probabilities: Sequence[float], actual: int | None) -> None:
        """Count one event, whose behaviour is the one at `actual`; None: one that the model does not know."""
        confidence = max(probabilities)
        probability = 0.0 if actual is None else probabilities[actual]
        correct = actual is not None and probabilities.index(confidence) == actual
        self.events += 1
        self.log_loss -= math.log(probability if probability > 1e-6 else 1e-6)
        self.correct += correct
        count = self.bins[int(confidence * CALIBRATION_BINS) if confidence < 1 else CALIBRATION_BINS - 1]
        count[0] += 1
        count[1] += confidence
        count[2] += correct

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the favourite (Guo et al. 2017), in [0, 1]; NaN before the first event."""
        if not self.events:
            return math.nan
        return sum(abs(confidence - correct) for _, confidence, correct in self.bins) / self.events


class PopularItems:
    """The K items seen most, always up to date; counts are halved every `half_life` events, to follow the day."""

    def __init__(self, half_life: int) -> None:
        self._half_life = half_life
        self._since_halving = 0
        self._counts: dict[str, int] = {}
        self._top: dict[str, int] = {}  # at most K
        self._least = 0  # the smallest count in `_top` once it is full

    def rank(self, item: str) -> int | None:
        """1 + the number of items seen more often; None for one outside the first K."""
        count = self._top.get(item)
        return None if count is None else 1 + sum([other > count for other in self._top.values()])

    def count(self, item: str) -> None:
        """Note one event about `item`."""
        self._since_halving += 1
        if self._since_halving >= self._half_life:
            self._halve()
        count = self._counts[item] = self._counts.get(item, 0) + 1
        if count > self._least:
            self._rise(item, count)

    def _rise(self, item: str, count: int) -> None:
        before = self._top.get(item)
        self._top[item] = count
        if before is not None and before > self._least:
            return  # the least of the K is another one
        if len(self._top) > K:
            del self._top[min(self._top, key=self._top.__getitem__)]
        if len(self._top) == K:
            self._least = min(self._top.values())

    def _halve(self) -> None:
        self._since_halving = 0
        self._counts = {item: count // 2 for item, count in self._counts.items() if count > 1}
        first = nlargest(K, self._counts, key=self._counts.__getitem__)
        self._top = {item: self._counts[item] for item in first}
        self._least = min(self._top.values()) if len(self._top) == K else 0


class LiveScores:
    """Scores of the model, of popularity and of repeat (the user's own items, most recent first).

    `behaviors` is the order of an expectation's `next_behaviors`; `capacity` bounds the users remembered.
    """

    def __init__(self, behaviors: Sequence[str], *, capacity: int = 100_000, half_life: int = 50_000) -> None:
        self.model = Score()
        self.popularity = Score()
        self.repeat = Score()
        self.behavior = BehaviorScore()
        self._behaviors = _positions(behaviors)
        # by user: place of the event it was made after, probabilities of the behaviours, the first K items, best first
        self._expected: OrderedDict[str, tuple[int, Sequence[float], tuple[str, ...]]] = OrderedDict()
        self._capacity = capacity
        self._popular = PopularItems(half_life)

    def observe(self, event: Event, last: int, past: P, repeat_rank: Callable[[Event, P], int | None]) -> None:
        """Score what was expected of a user, after the event at the offset `last`, against the next event.

        `repeat_rank` tells the rank of its item among the user's own items in the `past` before it, the most recent first;
        it is asked only if that is to be scored.
        """
        user_id, behavior, _, item, _, _ = event
        expected = self._expected.pop(user_id, None)
        if expected is not None and expected[0] == last:
            _, behaviors, items = expected
            self.behavior.add(behaviors, self._behaviors.get(behavior))
            if item is not None:
                self.model.add(items.index(item) + 1 if item in items else None)
                self.popularity.add(self._popular.rank(item))
                self.repeat.add(repeat_rank(event, past))
        if item is not None:
            self._popular.count(item)

    def expect(self, user_id: str, offset: int, prediction: Predicted) -> None:
        """Keep what is expected of a user after the event at `offset`, until the next one."""
        items = tuple(map(ITEM_ID, prediction.next_items[:K]))
        expected = self._expected
        expected[user_id] = (offset, prediction.next_behaviors, items)
        expected.move_to_end(user_id)
        if len(expected) > self._capacity:
            expected.popitem(last=False)

    def reorder(self, behaviors: Sequence[str]) -> None:
        """From now on `next_behaviors` come in this order; if it is another one, what is expected so far is dropped."""
        positions = _positions(behaviors)
        if positions != self._behaviors:
            self._behaviors = positions
            self._expected.clear()

    def forget(self, user_id: str) -> None:
        """Drop what is kept of a user."""
        self._expected.pop(user_id, None)


def _positions(behaviors: Sequence[str]) -> dict[str, int]:
    return {name: position for position, name in enumerate(behaviors)}
