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
from faust.tables.recovery import Recovery
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
        """Take changes, delivered at `offsets` of the changelog, into the local store.

        It follows the changelog as far as all changes in it are ours. Somebody who had the partition while this worker was out of
        reach may have written before it was told: from there on it is read again when partitions move.
        """
        tp = TP(self.changelog_topic_name, partition)
        reached = self._reached(tp)
        following = range(reached + 1, reached + 1 + len(offsets))
        self._take(tp, states, reached + len(offsets) if list(offsets) == list(following) else reached)

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]]) -> None:
        """Faust's hook while it recovers: take carriers of records (`intake.py`), of each user's in a chunk only the newest.

        What comes of a partition that is not ours is left: its users would be there without those before them. So is what comes
        late, behind changes of our own.
        """
        ours = self._recovery.active_tps
        for event in batch:
            tp, reached = event.message.tp, event.message.offset
            if tp in ours and reached > self._reached(tp):
                newest = {cast(bytes, record.key): record.value for record in cast(Chunk, event.message.value)}
                self._take(tp, list(newest.items()), reached)

    def persisted_offset(self, tp: TP) -> int | None:
        """Faust's hook when partitions move: the offset up to which the store follows the changelog; -1 or None: it has nothing.

        Faust's memory store never knows, and would read again all that was written since the last recovery.
        """
        return self._followed.get(tp.partition, -1) if self._in_memory else super().persisted_offset(tp)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Faust's hook after a rebalance, before it makes the input partitions readable.

        The flow is stopped until Faust resumes it, which is the last thing it does. Otherwise records come in while it
        still seeks, and are lost: they wait in a queue that resuming clears, and are not fetched again.

        What Faust has noted of chunks that were dropped is forgotten: it takes all records of a carrier for a gap that may
        be committed as soon as any record in it is done, and a chunk that comes again may be cut otherwise.

        A memory store lets those users go whose partition has left; which that is, their histories say. What is ours is asked anew:
        partitions may have moved again since Faust called.
        """
        left = self._followed.keys() - {tp.partition for tp in self._recovery.active_tps}
        if left:
            histories: dict[bytes, bytes] = cast(Any, self.data).data
            for user in [user for user, stored in histories.items() if newest_at_a_glance(stored)[0] in left]:
                del histories[user]
            for partition in left:
                del self._followed[partition]
        await super().on_recovery_completed(active_tps, standby_tps)
        consumer: Any = self.app.consumer
        for noted in (consumer._gap, consumer._acked, consumer._acked_index):  # noqa: SLF001  # there is no other way
            noted.clear()
        consumer.stop_flow()
        self.app.flow_control.suspend()

    def _reached(self, tp: TP) -> int:
        followed = self.persisted_offset(tp)
        return -1 if followed is None else followed

    def _take(self, tp: TP, states: Sequence[tuple[bytes, bytes | None]], reached: int) -> None:
        """Changes of different users, after which the store follows the changelog up to the offset `reached`."""
        store: Any = self.data
        if self._in_memory:  # its own way costs ten times as much, and keeps each user's partition as well
            store.data.update(states)
            for key in [key for key, value in states if value is None]:
                del store.data[key]
            self._followed[tp.partition] = reached
            return
        events: Any = [
            tuple.__new__(Change, (key, value, tp, tp.partition, reached))  # at half the cost of calling Change
            for key, value in states
        ]
        store.apply_changelog_batch(events, to_key=_as_it_is, to_value=_as_it_is)

    @property
    def _in_memory(self) -> bool:
        return isinstance(self.data, MemoryStore)

    @property
    def _recovery(self) -> Recovery:
        return cast(Any, self.app.tables).recovery  # type: ignore[no-any-return]

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
