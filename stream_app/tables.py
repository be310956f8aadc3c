"""The table of histories: a Faust table whose changelog the agent writes, in batches, before the table changes.

Faust's own way costs about 90 µs per write and needs a stream's current event; and its buffer may still hold a write
when the offset is committed. The records are the very ones that Faust's recovery reads: key and value as raw bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import faust
from faust.types import TP
from mode.utils.collections import FastUserDict


class Change(NamedTuple):
    """A delivered change in the shape in which recovery hands it to a store: an event, and its own message."""

    key: bytes
    value: bytes | None
    tp: TP
    partition: int
    offset: int

    @property
    def message(self) -> Change:
        """What stores want to know of a changelog record."""
        return self


class HistoryTable(faust.Table[bytes, bytes]):
    """Stored histories by user id."""

    def read(self, key: bytes) -> bytes | None:
        """The stored history of a user, None if there is none."""
        store: Any = self.data
        if isinstance(store, FastUserDict):  # in memory; its own `get` raises and catches a KeyError for each new user
            store = store.data
        value: bytes | None = store.get(key)
        return value

    def apply(self, partition: int, states: Sequence[tuple[bytes, bytes | None]], offsets: Sequence[int]) -> None:
        """Take changes, delivered at `offsets` of the changelog, into the local store, as recovery would from there.

        A store on disk then knows how far it follows the changelog.
        """
        tp = TP(self.changelog_topic_name, partition)
        events: Any = [
            tuple.__new__(Change, (key, value, tp, partition, offset))  # at half the cost of calling Change
            for (key, value), offset in zip(states, offsets, strict=True)
        ]
        self.data.apply_changelog_batch(events, to_key=_as_it_is, to_value=_as_it_is)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Faust's hook after a rebalance, before it makes the input partitions readable.

        The flow is stopped until Faust resumes it, which is the last thing it does. Otherwise records come in while it
        still seeks, and are lost: they wait in a queue that resuming clears, and are not fetched again.
        """
        await super().on_recovery_completed(active_tps, standby_tps)
        self.app.consumer.stop_flow()
        self.app.flow_control.suspend()

    def on_key_set(self, key: bytes, value: Any) -> None:
        """No changelog write behind the agent's back."""
        raise TypeError("histories are delivered to the changelog and applied, never set by table[key] = value")

    def on_key_del(self, key: bytes) -> None:
        """As little as one by `on_key_set`."""
        raise TypeError("histories are delivered to the changelog and applied, never erased by del table[key]")


def _as_it_is(stored: bytes) -> bytes:
    return stored
