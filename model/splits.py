"""Which events are learned from and which are predicted: by time, day by day, or the last one of each user.

Pure functions over users' lives. In the splits by time nothing that is learned from happened after anything that is
tested. Leave-one-out lets a model learn from other users' later events, which flatters it; it is there to compare with
published figures (A. Klenitskiy, A. Vasilev, RecSys 2023, and the many others who use it). N events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from model.sequences import Sequences
from model.window import DAY_MS

Bools = npt.NDArray[np.bool_]

LEAST_EVENTS = 3  # of a user who gives up two for leave-one-out


@dataclass(frozen=True, slots=True)
class Fold:
    """One split; no event is in two of its parts, some may be in none."""

    name: str
    train: Bools  # [N]
    validation: Bools  # [N]
    test: Bools  # [N]
    forward: bool  # nothing of train or validation happened after any of test

    def chosen(self, _: Sequences) -> Fold:
        """Itself, as a `Split` of the events that it was made of."""
        return self


Split = Callable[[Sequences], Fold]


def by_share(data: Sequences, share: float) -> Fold:
    """The first `share` of the events by time is learned from, the rest is tested; ties in the order of the log."""
    train = data.order < int(len(data) * share)
    name = f"by global time: learned from the first {share * 100:g} % of the events, asked on the rest"
    return Fold(name, train, _nothing(data), ~train, forward=True)


def by_time(data: Sequences, at_ms: int) -> Fold:
    """What happened before `at_ms` is learned from, the rest is tested."""
    train = data.times_ms < at_ms
    return Fold(f"from {_moment(at_ms)}", train, _nothing(data), ~train, forward=True)


def daily(data: Sequences, after_ms: int | None = None) -> Iterator[Fold]:
    """Each day (UTC) with events is tested in turn and all before it is learned from; the first day is never tested.

    With `after_ms` only the days that begin after that time.
    """
    days = data.times_ms // DAY_MS
    for day in np.unique(days)[1:].tolist():
        if after_ms is None or day * DAY_MS > after_ms:
            yield Fold(_moment(day * DAY_MS)[:10], days < day, _nothing(data), days == day, forward=True)


def leave_one_out(data: Sequences) -> Fold:
    """Each user's last event is tested, the one before it validates, all others are learned from.

    Of a user with fewer than three events everything is learned from, as in the files of the SASRec paper (W.-C. Kang,
    J. McAuley, ICDM 2018).
    """
    places = np.arange(len(data))
    ends = np.append(data.first[1:] != data.first[:-1], True)[: len(data)]  # [N] a user's last event
    last = np.flatnonzero(ends)[np.searchsorted(np.flatnonzero(ends), places)]  # [N] the last event of the same user
    enough = last - data.first + 1 >= LEAST_EVENTS
    test, validation = enough & (places == last), enough & (places == last - 1)
    return Fold("leave-one-out", ~(test | validation), validation, test, forward=False)


def _nothing(data: Sequences) -> Bools:
    return np.zeros(len(data), np.bool_)


def _moment(ms: int) -> str:
    """RFC 3339; a time that no calendar holds as the number that it is."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"
