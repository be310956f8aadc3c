"""Decoded histories in front of a table of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from stream_app import history as histories
from stream_app.history import History

UNKNOWN = History(-1)  # stands for "not remembered"
new = tuple.__new__  # makes a named tuple at half the cost of calling it


class HistoryCache:
    """Decoded histories in front of a table of bytes.

    `load` reads the table. What a batch in flight has changed is never dropped: `trim` keeps the `capacity` users
    touched last, so `capacity` must exceed the users of the batches in flight.
    """

    def __init__(self, load: Callable[[bytes], bytes | None], capacity: int = 100_000) -> None:
        self._load = load
        self._capacity = capacity
        self._users: OrderedDict[str, History | None] = OrderedDict()

    def get(self, user_id: str, partition: int) -> History:
        """The history of a user as read from `partition`; an empty one if there is none."""
        found = self._users.get(user_id, UNKNOWN)
        if found is UNKNOWN:
            stored = self._load(user_id.encode())
            found = None if stored is None else histories.decode(stored)
        if found is None:
            return new(History, (partition, -1, 0, b"", b"", b""))
        return found if found.partition == partition else histories.on_partition(found, partition)

    def peek(self, user_id: str) -> History | None:
        """The history of a user as it is, None if there is none; not remembered."""
        try:
            return self._users[user_id]
        except KeyError:
            stored = self._load(user_id.encode())
            return None if stored is None else histories.decode(stored)

    def put(self, user_id: str, history: History | None) -> None:
        """Remember a user's history, None for one who has none any more."""
        self._users[user_id] = history
        self._users.move_to_end(user_id)

    def trim(self) -> None:
        """Drop the users untouched for longest beyond the capacity."""
        while len(self._users) > self._capacity:
            self._users.popitem(last=False)

    def clear(self) -> None:
        """Forget everything: the table is no longer ours alone."""
        self._users.clear()
