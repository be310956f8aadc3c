"""What one can say without a network: popularity, repeat, decayed frequency, Markov.

They learn from the training part and answer the same windows as the model. Ties in counts go to the lower name.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model import measures
from model.measures import Bools, Floats, Ints

Names = Sequence[str | None]


class Popularity:
    """The most frequent names of the training part, for everyone."""

    def __init__(self, names: Iterable[str | None], limit: int = 100) -> None:
        counts = Counter(name for name in names if name is not None)
        self.names = ranked(counts)[:limit]

    def rank(self, window: Names, times_ms: Sequence[int], k: int) -> list[str]:
        """The k first names."""
        return self.names[:k]


class Repeat:
    """The names of the window, most recent first."""

    def rank(self, window: Names, times_ms: Sequence[int], k: int) -> list[str]:
        """At most k distinct names of the window."""
        return list(dict.fromkeys(name for name in reversed(window) if name is not None))[:k]


@dataclass(frozen=True, slots=True)
class Frequency:
    """The names of the window by how often they occurred, recent events weighing more; ties to the more recent."""

    per_event: float = 1.0  # weight of an event per event since
    time_constant_s: float = math.inf  # time after which an event weighs 1 / e

    def rank(self, window: Names, times_ms: Sequence[int], k: int) -> list[str]:
        """At most k distinct names of the window."""
        weights: dict[str, float] = {}
        for since, (name, at) in enumerate(zip(reversed(window), reversed(times_ms), strict=True)):
            if name is not None:
                age_s = max(0, times_ms[-1] - at) / 1000
                weight = self.per_event**since * math.exp(-age_s / self.time_constant_s)
                weights[name] = weights.get(name, 0.0) + weight
        return sorted(weights, key=weights.__getitem__, reverse=True)[:k]


DECAYS = (
    *(Frequency(per_event=weight) for weight in (1.0, 0.98, 0.95, 0.9, 0.8, 0.7, 0.6)),
    *(Frequency(time_constant_s=seconds) for seconds in (600.0, 3600.0, 6 * 3600.0, 24 * 3600.0, 7 * 24 * 3600.0)),
)


def best_decay(windows: Sequence[tuple[Names, Sequence[int]]], wanted: list[str | None]) -> Frequency:
    """The one of `DECAYS` with the highest NDCG@10 where these names came after these windows; the first of equals."""

    def quality(decay: Frequency) -> float:
        ranks = measures.ranks_of([decay.rank(names, times, 10) for names, times in windows], wanted)
        return measures.value(measures.ndcg(ranks, 10), len(ranks))

    return max(DECAYS, key=quality) if wanted else DECAYS[0]


class Markov:
    """What most often followed the newest name, then the names of the window, most recent first."""

    def __init__(self, names: Names, users: Ints, limit: int = 100) -> None:
        follows: defaultdict[str, Counter[str]] = defaultdict(Counter)
        same_user = (users[1:] == users[:-1]).tolist()
        for before, after, same in zip(names, names[1:], same_user, strict=False):
            if same and before is not None and after is not None:
                follows[before][after] += 1
        self.follows = {name: ranked(counts)[:limit] for name, counts in follows.items()}

    def rank(self, window: Names, times_ms: Sequence[int], k: int) -> list[str]:
        """At most k distinct names."""
        recent = list(dict.fromkeys(name for name in reversed(window) if name is not None))
        newest = window[-1] if window else None
        followers = self.follows.get(newest, []) if newest is not None else []
        return list(dict.fromkeys((*followers[:k], *recent)))[:k]


def ranked(counts: Counter[str]) -> list[str]:
    """Names by falling count, then by name."""
    return sorted(counts, key=lambda name: (-counts[name], name))


def behavior_shares(following: Ints, classes: int) -> Floats:
    """Majority: the share of each class, one added to each count; [C]."""
    counts = np.bincount(following, minlength=classes) + 1.0
    return np.asarray(counts / counts.sum(), np.float64)


def behavior_transitions(newest: Ints, following: Ints, classes: int) -> Floats:
    """Markov: the share of each class after each class, one added to each count; [C, C]."""
    counts = np.ones((classes, classes))
    np.add.at(counts, (newest, following), 1.0)
    return np.asarray(counts / counts.sum(1, keepdims=True), np.float64)


def rates_by_class(newest: Ints, happened: Bools, classes: int) -> Floats:
    """The share of events with a yes, by the class of the event, one yes and one no added to each; [C]."""
    yes = np.bincount(newest, weights=happened.astype(np.float64), minlength=classes) + 1.0
    return np.asarray(yes / (np.bincount(newest, minlength=classes) + 2.0), np.float64)
