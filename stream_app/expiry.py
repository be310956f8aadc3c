"""Users who have been idle for so long that no window can reach their events any more: found, a few with each chunk.

The time is that of the events, and each partition has its own: the newest event so far, none counted as newer than its
record, so that an event from the future expires nobody. A restart begins without it, and then nobody is idle until records
say so. A *sweep* walks once over all stored users, a few steps with each chunk, and begins whenever a partition's time has
moved on by a good part of the idle time.

A record that comes again after a crash must be answered as the first time, even one so late that its user is idle. So a
user goes only together with a chunk of the user's own partition that holds no record of that user; and nobody goes among
the first records after a start, which may have been answered before, in a chunk that was cut otherwise.

Knows nothing of Faust or of tables, and reads no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from stream_app.events import Erasure, Event, Record
from stream_app.history import HistoryRule
from stream_app.history_codec import HistoryError, newest_at_a_glance
from stream_app.history_layout import History

SWEEPS = 8  # at most so many in the time that makes a user idle

Users = Callable[
    [], Iterable[tuple[bytes, bytes | None]]
]  # (user, stored history), None for one who has gone meanwhile


def most_expired(records: int) -> int:
    """How many users at most expire with a chunk of so many records, each of which may have been somebody's first."""
    return records + 16


def most_kept(records: int) -> int:
    """How many users at most are looked at with a chunk in vain."""
    return records // 4 + 16


def idle_limit_ms(idle_s: float | None, rule: HistoryRule) -> float:
    """The idle time of a setting; by default, and at least, what no window of an event in time can reach. Raises ValueError."""
    least_ms = rule.window.age_ms + rule.lateness_ms
    if idle_s is None:
        return least_ms
    if idle_s * 1000 < least_ms:
        raise ValueError(
            f"idle_s must be at least {least_ms / 1000:.0f}: the model's windows reach {rule.window.age_ms / 1000:.0f} s "
            f"back, and events may be {rule.lateness_ms / 1000:.0f} s late"
        )
    return idle_s * 1000


class Expiry:
    """Tells with each chunk which users' histories are to go."""

    def __init__(self, idle_ms: float, users: Users, unsettled: int) -> None:
        """`unsettled`: as many records of a partition as can come again after a crash."""
        self._idle_ms = idle_ms
        self._users = users
        self._unsettled = unsettled
        self.forget()

    def forget(self) -> None:
        """Partitions are moving: whose users are ours, and how far they are, is to be found out anew."""
        self._newest_ms: dict[int, int] = {}  # by partition: its time
        self._read: dict[int, int] = {}  # by partition: records read before this chunk, as long as there are few
        self._begun_ms: dict[int, int] = {}  # by partition: its time when the last sweep began
        self._sweep: Iterator[tuple[bytes, bytes | None]] | None = None  # what is left of the one under way
        self._waiting: dict[int, dict[bytes, None]] = {}  # by partition: idle users who wait for a chunk of theirs

    def expired(
        self, events: Sequence[tuple[Record, Event | Erasure]], history_of: Callable[[str], History | None]
    ) -> list[str]:
        """Who goes with this chunk, which is of one partition; `history_of` knows what the table does not know yet."""
        if not events:
            return []
        partition = events[0][0].partition
        self._advance(partition, events)
        if not self._is_settled(partition, len(events)):
            return []
        self._begin(partition)
        most = most_expired(len(events))
        candidates = self._take_waiting(partition, most)
        candidates += self._look_around(partition, most - len(candidates), most_kept(len(events)))
        if not candidates:
            return []
        present = {event.user_id for _, event in events}
        users = [user.decode() for user in candidates]
        return [user for user in users if user not in present and self._is_idle(user, partition, history_of)]

    def _advance(self, partition: int, events: Sequence[tuple[Record, Event | Erasure]]) -> None:
        newest_ms = self._newest_ms.get(partition, 0)
        for record, event in events:
            if type(event) is Event and event.time_ms > newest_ms:
                time_ms, timestamp = event.time_ms, record.timestamp
                if timestamp >= time_ms:
                    newest_ms = time_ms
                elif timestamp > newest_ms:
                    newest_ms = timestamp
        self._newest_ms[partition] = newest_ms

    def _begin(self, partition: int) -> None:
        newest_ms = self._newest_ms[partition]
        if self._sweep is None and newest_ms - self._begun_ms.get(partition, 0) >= self._idle_ms / SWEEPS:
            self._sweep = iter(self._users())
            self._begun_ms = dict(self._newest_ms)

    def _is_settled(self, partition: int, records: int) -> bool:
        read = self._read.get(partition, 0)
        if read < self._unsettled:
            self._read[partition] = read + records
        return read >= self._unsettled

    def _take_waiting(self, partition: int, most: int) -> list[bytes]:
        waiting = self._waiting.get(partition)
        if not waiting:
            return []
        taken = list(islice(waiting, most))
        for user in taken:
            del waiting[user]
        return taken

    def _look_around(self, partition: int, most: int, patience: int) -> list[bytes]:
        """The next idle users of the sweep, until there are enough or it takes too long; those of other partitions wait."""
        found: list[bytes] = []
        if self._sweep is None or most == 0:
            return found
        idle_ms, newest_ms = self._idle_ms, self._newest_ms
        anywhere_ms = max(newest_ms.values()) - idle_ms  # whoever was seen since is idle in no partition
        for user, stored in self._sweep:
            home, last_ms = (partition, math.inf) if stored is None else newest_at_a_glance(stored)
            if last_ms < anywhere_ms and last_ms < newest_ms.get(home, -math.inf) - idle_ms:
                if home == partition:
                    found.append(user)
                else:
                    self._waiting.setdefault(home, {})[user] = None
                most -= 1
            else:
                patience -= 1
            if most == 0 or patience == 0:
                return found
        self._sweep = None
        return found

    def _is_idle(self, user: str, partition: int, history_of: Callable[[str], History | None]) -> bool:
        try:
            history = history_of(user)
        except HistoryError:  # unreadable: for the worker to stumble over when its user comes, not before
            return False
        if history is None or history.partition != partition:
            return False
        return self._newest_ms[partition] - (history.watermark_ms or 0) > self._idle_ms
