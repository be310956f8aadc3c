"""Histories in front of a table of bytes."""

from __future__ import annotations

from collections.abc import Callable

from stream_app.history import on_partition
from stream_app.history_codec import decode
from stream_app.history_layout import History, nothing

UNKNOWN = History.empty(-1)  # stands for "not remembered"
AT_ONCE = 4096  # users who are dropped together at least, which takes about a millisecond


class HistoryCache:
    """Histories in front of a table of bytes, each checked once.

    `load` reads the table. What a batch in flight has changed is never dropped: `trim` keeps at least the `capacity` users
    touched last, and `capacity` is no less than the users of the batches in flight. It keeps at most twice as many, and twice
    those that are put between two calls.

    Users come in two generations, the young ones touched later than the old. When the young are as many as `capacity`, they
    take the place of the old ones, which leave: for each user who is put from then on two of them, so that they are gone
    before the next ones leave. Order within a generation is not kept, which would cost three memory accesses for each event.
    """

    def __init__(self, load: Callable[[bytes], bytes | None], capacity: int = 100_000) -> None:
        self._load = load
        self._capacity = capacity
        self._young: dict[str, History | None] = {}
        self._old: dict[str, History | None] = {}
        self._leaving: dict[str, History | None] = {}  # nobody looks there any more
        self._put_before = 0  # of the young ones: before the last `trim`

    def __len__(self) -> int:
        """Histories in memory."""
        return len(self._young) + len(self._old) + len(self._leaving)

    def get(self, user_id: str, partition: int) -> History:
        """The history of a user as read from `partition`; an empty one if there is none."""
        found = self._young.get(user_id, UNKNOWN)
        if found is UNKNOWN:
            found = self.peek(user_id)
        if found is None:
            return nothing(partition)
        return found if found.partition == partition else on_partition(found, partition)

    def peek(self, user_id: str) -> History | None:
        """The history of a user as it is, None if there is none; not remembered."""
        for generation in (self._young, self._old):
            found = generation.get(user_id, UNKNOWN)
            if found is not UNKNOWN:
                return found
        stored = self._load(user_id.encode())
        return None if stored is None else decode(stored)

    def put(self, user_id: str, history: History | None) -> None:
        """Remember a user's history, None for one who has none any more."""
        self._young[user_id] = history

    def trim(self) -> None:
        """Drop users untouched for longest, a few at a time, where there are too many."""
        leaving = max(AT_ONCE, 2 * (len(self._young) - self._put_before))
        if len(self._young) >= self._capacity:
            self._leaving, self._old, self._young = self._old, self._young, {}
        for _ in range(min(leaving, len(self._leaving))):
            self._leaving.popitem()
        self._put_before = len(self._young)

    def clear(self) -> None:
        """Forget everything: the table is no longer ours alone."""
        for generation in (self._young, self._old, self._leaving):
            generation.clear()
        self._put_before = 0
