"""How Faust's consumer hands over whole chunks instead of single records: of events to the agent, of the changelog to recovery.

Faust spends about 66 µs of its own on every message. Its public setting `ConsumerScheduler` sees the fetched records
before that, and may yield one *carrier* for many of them: its value is the list of records, its offset that of the
last. To Faust the carrier is one message, and the offsets before it a gap that is committed together with it.

A chunk holds at most `per_user` records of one user, since a history keeps all events whose chunks are not committed;
and an erasure stands alone, since nothing of its user may be durable and uncommitted when it is (see `agent.py`). Neither
matters to the changelog, whose records the table takes out of their carriers (`tables.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any, ClassVar

from faust.transport.utils import DefaultSchedulingStrategy
from faust.types import TP

from stream_app.events import Record


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """The bounds of a chunk; a single record may exceed `bytes` and then stands alone."""

    records: int = 2048
    bytes: int = 4_000_000
    per_user: int = 256


class ChunkLostError(Exception):
    """A chunk that was fetched never reached the agent; the ones behind it must not be folded first."""


class Chunk(list[Record]):
    """Records of one partition, in offset order.

    `follows` is the offset of the record fetched before the first; None after a start or a seek. `turn_goes_on`: chunks of
    other partitions come right behind it, which were fetched together with it.
    """

    follows: int | None = None
    turn_goes_on: bool = False

    @property
    def is_erasure(self) -> bool:
        """Whether it is the erasure of a user, which stands alone."""
        return self[0].value is None


class Carrier:
    """A chunk in the clothes of an aiokafka record, for Faust."""

    __slots__ = ("_last", "value")

    def __init__(self, records: Sequence[Record], follows: int | None = None) -> None:
        self.value = records if isinstance(records, Chunk) else Chunk(records)
        self.value.follows = follows
        self._last = records[-1]

    key = None
    headers: ClassVar[tuple[()]] = ()
    checksum = None
    serialized_key_size = 0
    serialized_value_size = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._last, name)


class ChunkScheduler(DefaultSchedulingStrategy):
    """Yields chunks of the input topic and of the changelog; other topics pass through record by record.

    The topics and `limits` are set on a subclass by `for_topics`, since Faust builds the scheduler itself.
    """

    input_topic: ClassVar[str]
    changelog_topic: ClassVar[str]
    limits: ClassVar[ChunkLimits] = ChunkLimits()

    def __init__(self) -> None:
        self._fetched: dict[TP, int] = {}  # the last offset fetched, by partition

    @classmethod
    def for_topics(cls, input_topic: str, changelog_topic: str, limits: ChunkLimits) -> type[ChunkScheduler]:
        """The scheduler class for one input topic, and the changelog of the histories that are made of it."""
        given = {"input_topic": input_topic, "changelog_topic": changelog_topic, "limits": limits}
        return type("ChunkSchedulerForTopics", (cls,), given)

    def iterate(self, records: Mapping[TP, list[Any]]) -> Iterator[tuple[TP, Any]]:
        """Faust's hook: what was fetched, in the order in which the worker shall see it."""
        others, changes, queues = {}, [], []
        for tp, fetched in records.items():  # now, and not when the first chunk is asked for: Faust may ask for none
            if tp.topic == self.changelog_topic:
                changes.append(self._changes(tp, fetched))
            elif tp.topic != self.input_topic:
                others[tp] = fetched
            elif fetched:
                before = self._fetched.get(tp)
                self._fetched[tp] = fetched[-1].offset
                queues.append(self._carriers(tp, fetched, before))
        return chain(super().iterate(others), *changes, _in_turn(queues))

    def _changes(self, tp: TP, fetched: Sequence[Record]) -> Iterator[tuple[TP, Carrier]]:
        """What was fetched together is in memory anyway, so that only the number matters: between two, others have their turn."""
        for start in range(0, len(fetched), self.limits.records):
            yield tp, Carrier(fetched[start : start + self.limits.records])

    def _carriers(self, tp: TP, fetched: Sequence[Record], before: int | None) -> Iterator[tuple[TP, Carrier]]:
        for chunk in chunks(fetched, self.limits):
            for part in (chunk[:1], chunk[1:]) if before == 0 else (chunk,):
                # Faust takes an offset of 0 for "nothing read yet": it would not count the records of a longer chunk
                # behind it as a gap, and never commit. So the first record behind it goes alone.
                if part:
                    yield tp, Carrier(part, before if before is not None and before < part[0].offset else None)
                    before = part[-1].offset

    def forget(self) -> None:
        """Partitions are moving: what was fetched before says nothing about what comes."""
        self._fetched.clear()


def _in_turn(queues: Sequence[Iterator[tuple[TP, Carrier]]]) -> Iterator[tuple[TP, Carrier]]:
    """One chunk of each partition per turn: none waits for a hot one."""
    for turn in zip_longest(*queues):
        carriers = [carrier for carrier in turn if carrier is not None]
        for _, carrier in carriers[:-1]:
            carrier.value.turn_goes_on = True
        yield from carriers


class ChunkOrder:
    """Watches that no chunk between two others is missing.

    Faust drops what waits in its queues whenever it resumes its flow, even if the records will not be fetched again.
    """

    def __init__(self) -> None:
        self._taken: dict[TP, int] = {}  # the last offset taken up, by partition

    def take(self, tp: TP, chunk: Chunk) -> None:
        """Take up the next chunk. Raises ChunkLostError if the one before it was not taken."""
        if chunk.follows is not None and self._taken.get(tp) != chunk.follows:
            raise ChunkLostError(f"{tp.topic}-{tp.partition}: the records up to {chunk.follows} never came")
        self._taken[tp] = chunk[-1].offset

    def forget(self) -> None:
        """Partitions are moving."""
        self._taken.clear()


def chunks(records: Sequence[Record], limits: ChunkLimits) -> Iterator[Chunk]:
    """Cut the records of one partition, in offset order, into chunks within `limits`."""
    start = 0
    while start < len(records):
        erases = records[start].value is None  # and stands alone; others are not looked at, for erasures come in crowds
        chunk = Chunk(records[start : start + (1 if erases else limits.records)])
        if not erases and not _fits(chunk, limits):
            chunk = Chunk(chunk[: _fitting(chunk, limits)])
        yield chunk
        start += len(chunk)


def _fits(chunk: Chunk, limits: ChunkLimits) -> bool:
    """Whether nothing is unusual about it, so that it need not be looked at record by record."""
    values, users = [record.value for record in chunk], Counter([record.key for record in chunk])
    if None in values or None in users or max(users.values()) > limits.per_user:
        return False
    size = sum([len(value or b"") for value in values]) + sum([len(key or b"") * n for key, n in users.items()])
    return size <= limits.bytes


def _fitting(records: Sequence[Record], limits: ChunkLimits) -> int:
    """How many of the first records, which begin with no erasure, make a chunk; at least one."""
    size, users = 0, Users()
    for position, record in enumerate(records):
        key, value = record.key, record.value
        size += (0 if key is None else len(key)) + (0 if value is None else len(value))
        is_full = size > limits.bytes or users.most_of(key) >= limits.per_user
        if position and (value is None or is_full):
            return position
        users.add(key)
    return len(records)


class Users(dict[bytes, int]):
    """How many records of a chunk each user has at most; one without a key may be of anybody."""

    def __init__(self) -> None:
        self._anybodys = 0
        self._most = 0

    def most_of(self, key: bytes | None) -> int:
        """At most so many of the chunk's records are of the user `key`, None: of any one user."""
        return self._anybodys + (self._most if key is None else self.get(key, 0))

    def add(self, key: bytes | None) -> None:
        """Count a record."""
        if key is None:
            self._anybodys += 1
            return
        count = self[key] = self.get(key, 0) + 1
        if count > self._most:
            self._most = count
