"""What one can say without a network: popularity, repeat, Markov.

They learn from the training part and answer the same windows as the model. Ties in counts go to the lower name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from model.measures import Bools, Floats, Ints


class Popularity:
    """The most frequent names of the training part, for everyone."""

    def __init__(self, names: Iterable[str | None], limit: int = 100) -> None:
        counts = Counter(name for name in names if name is not None)
        self.names = ranked(counts)[:limit]

    def rank(self, window: Sequence[str | None], k: int) -> list[str]:
        """The k first names."""
        return self.names[:k]


class Repeat:
    """The names of the window, most recent first."""

    def rank(self, window: Sequence[str | None], k: int) -> list[str]:
        """At most k distinct names of the window."""
        return list(dict.fromkeys(name for name in reversed(window) if name is not None))[:k]


class Markov:
    """What most often followed the newest name, then the names of the window, most recent first."""

    def __init__(self, names: Sequence[str | None], users: Ints, limit: int = 100) -> None:
        follows: defaultdict[str, Counter[str]] = defaultdict(Counter)
        same_user = (users[1:] == users[:-1]).tolist()
        for before, after, same in zip(names, names[1:], same_user, strict=False):
            if same and before is not None and after is not None:
                follows[before][after] += 1
        self.follows = {name: ranked(counts)[:limit] for name, counts in follows.items()}

    def rank(self, window: Sequence[str | None], k: int) -> list[str]:
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
