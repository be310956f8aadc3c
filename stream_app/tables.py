"""The table of histories: a Faust table whose changelog writes are handed to the producer together, and awaited.

Faust's own way costs about 90 µs per write and needs a stream's current event; and its buffer may still hold a write
when the offset is committed. The records are the very ones that Faust's recovery reads: key and value as raw bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

import faust
from faust.types import TP
from faust.types.tuples import RecordMetadata


class ChangeMessage(NamedTuple):
    """What Faust's stores want to know of a changelog record."""

    tp: TP
    partition: int
    offset: int
    key: bytes
    value: bytes | None


class Change(NamedTuple):
    """A delivered change in the shape in which recovery hands it to a store."""

    key: bytes
    value: bytes | None
    message: ChangeMessage

    @classmethod
    def of(cls, key: bytes, value: bytes | None, place: RecordMetadata) -> Change:
        """The change of `key` that lies at `place` in the changelog."""
        tp = TP(place.topic, place.partition)
        return cls(key, value, ChangeMessage(tp, tp.partition, place.offset, key, value))


class HistoryTable(faust.Table[bytes, bytes]):
    """Stored histories by user id."""

    def read(self, key: bytes) -> bytes | None:
        """The stored history of a user, None if there is none."""
        value: bytes | None = self.data.get(key)
        return value

    async def write_changelog(
        self, partition: int, states: Sequence[tuple[bytes, bytes | None]]
    ) -> list[Awaitable[RecordMetadata]]:
        """Hand the changes to the producer; the result is one future of delivery per change, in order."""
        send, topic = self.app.producer.send, self.changelog_topic_name
        return [await send(topic, key, value, partition, None, None) for key, value in states]

    def apply(self, states: Sequence[tuple[bytes, bytes | None]], delivered: Sequence[RecordMetadata]) -> None:
        """Take delivered changes into the local store, the way recovery would, had it read them from the changelog.

        A store on disk then knows how far it follows the changelog.
        """
        events: Any = [Change.of(*state, place) for state, place in zip(states, delivered, strict=True)]
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
        """No changelog write behind the back of `write_changelog`."""
        raise TypeError("histories are written by write_changelog and apply, never by table[key] = value")

    def on_key_del(self, key: bytes) -> None:
        """As little as one by `on_key_set`."""
        raise TypeError("histories are erased by write_changelog and apply, never by del table[key]")


def _as_it_is(stored: bytes) -> bytes:
    return stored
