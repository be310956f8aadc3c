"""The table of histories: a Faust table whose changelog the agent writes, in batches, before the table changes.

Faust's own way costs about 90 µs per write and needs a stream's current event; and its buffer may still hold a write
when the offset is committed. The records are the very ones that Faust's recovery reads: key and value as raw bytes. Recovery
is Faust's own, but gets many records at once: one by one, each costs it 110 µs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast

import faust
from faust.stores.memory import Store as MemoryStore
from faust.types import TP, EventT

from stream_app.history_codec import newest_at_a_glance
from stream_app.intake import Chunk

PAGE_USERS = 256  # read together from a store on disk


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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._followed: dict[int, int] = {}  # by partition: the last offset of the changelog that a memory store has

    def read(self, key: bytes) -> bytes | None:
        """The stored history of a user, None if there is none."""
        store: Any = self.data
        if isinstance(store, MemoryStore):  # its own `get` raises and catches a KeyError for each new user
            store = store.data
        value: bytes | None = store.get(key)
        return value

    def users(self) -> Iterator[tuple[bytes, bytes | None]]:
        """All users and their stored histories, each as it is when it is reached; None for one who is gone by then.

        A walk may take as long as it likes: it keeps only names, or one page of a store on disk, which it holds open
        for no longer than it reads the page.
        """
        store: Any = self.data
        if isinstance(store, MemoryStore):
            users = list(store.data)
            return zip(users, map(store.data.get, users), strict=True)
        return _users_on_disk(store)

    def apply(self, partition: int, states: Sequence[tuple[bytes, bytes | None]], offsets: Sequence[int]) -> None:
        """Take changes, delivered at `offsets` of the changelog, into the local store, as recovery would from there.

        A store on disk then knows how far it follows the changelog.
        """
        store: Any = self.data
        if isinstance(
            store, MemoryStore
        ):  # its own way costs ten times as much, and keeps each user's partition as well
            store.data.update(states)
            for key in [key for key, value in states if value is None]:
                del store.data[key]
            if offsets:
                self._followed[partition] = max(offsets)
            return
        tp = TP(self.changelog_topic_name, partition)
        events: Any = [
            tuple.__new__(Change, (key, value, tp, partition, offset))  # at half the cost of calling Change
            for (key, value), offset in zip(states, offsets, strict=True)
        ]
        store.apply_changelog_batch(events, to_key=_as_it_is, to_value=_as_it_is)

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]]) -> None:
        """Faust's hook while it recovers: take carriers of records (`intake.py`), of each user's in a chunk only the newest.

        What comes of a partition that is not ours is left: its users would be there without those before them.
        """
        ours = self.app.tables.recovery.active_tps  # type: ignore[attr-defined]  # TableManager's
        for event in batch:
            if event.message.tp not in ours:
                continue
            newest = {cast(bytes, record.key): record for record in cast(Chunk, event.message.value)}
            self.apply(
                event.message.partition,
                [(key, record.value) for key, record in newest.items()],
                [record.offset for record in newest.values()],
            )

    def persisted_offset(self, tp: TP) -> int | None:
        """Faust's hook when partitions move: the last offset of the changelog that the store has; None: it is read from its beginning.

        Faust's memory store never knows, and would get all users of all partitions again whenever one moves.
        """
        return self._followed.get(tp.partition) if isinstance(self.data, MemoryStore) else super().persisted_offset(tp)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Faust's hook after a rebalance, before it makes the input partitions readable.

        The flow is stopped until Faust resumes it, which is the last thing it does. Otherwise records come in while it
        still seeks, and are lost: they wait in a queue that resuming clears, and are not fetched again.

        What Faust has noted of chunks that were dropped is forgotten: it takes all records of a carrier for a gap that may
        be committed as soon as any record in it is done, and a chunk that comes again may be cut otherwise.

        A memory store lets those users go whose partition has left; which that is, their histories say.
        """
        left = self._followed.keys() - {tp.partition for tp in active_tps}
        if left:
            store: Any = self.data
            homes = ((user, newest_at_a_glance(stored)[0]) for user, stored in store.data.items())
            store._key_partition = {user: home for user, home in homes if home in left}  # noqa: SLF001
            self._followed = {
                partition: offset for partition, offset in self._followed.items() if partition not in left
            }
        await super().on_recovery_completed(active_tps, standby_tps)
        consumer: Any = self.app.consumer
        for noted in (consumer._gap, consumer._acked, consumer._acked_index):  # noqa: SLF001  # there is no other way
            noted.clear()
        consumer.stop_flow()
        self.app.flow_control.suspend()

    def on_key_set(self, key: bytes, value: Any) -> None:
        """No changelog write behind the agent's back."""
        raise TypeError("histories are delivered to the changelog and applied, never set by table[key] = value")

    def on_key_del(self, key: bytes) -> None:
        """As little as one by `on_key_set`."""
        raise TypeError("histories are delivered to the changelog and applied, never erased by del table[key]")


def _users_on_disk(store: Any) -> Iterator[tuple[bytes, bytes]]:
    from rocksdict import ReadOptions  # of an extra

    reading = ReadOptions()
    reading.fill_cache(False)  # type: ignore[call-arg]  # its stub is wrong; what is walked over is not what is wanted next
    for partition in sorted(store._dbs):  # noqa: SLF001  # Faust's own way holds an iterator, and so the files
        begin: bytes | None = b""
        while begin is not None and (db := store._dbs.get(partition)) is not None:  # noqa: SLF001  # gone: moved away
            page = list(islice(db.items(from_key=begin, read_opt=reading), PAGE_USERS))
            del db
            yield from (user for user in page if user[0] != store.offset_key)
            begin = page[-1][0] + b"\0" if len(page) == PAGE_USERS else None


def _as_it_is(stored: bytes) -> bytes:
    return stored
