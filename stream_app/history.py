"""A user's history: a small value, a pure fold, and a compact codec.

The fold is `(history, event, offset) → (history, outcome)`. It is idempotent: an event at or below the last offset
changes nothing, and the window *as of* that offset can still be read, so that a redelivered record is answered just as
it was the first time. For that the ring keeps `margin` more events than a window needs; whoever calls must not let
more than `margin` events of one user become durable beyond the committed offset (`intake.py` sees to it).

Knows nothing of Kafka, of tables or of models, and reads no clock.
"""

from __future__ import annotations

import struct
from bisect import insort
from dataclasses import dataclass
from enum import Enum, auto
from hashlib import blake2b
from typing import NamedTuple

from model.window import Window, WindowRule
from stream_app.events import Event

SCHEMA = 1
HEADER = struct.Struct("<BiqH")  # schema, partition, last offset, number of entries
ROW = struct.Struct("<qqQBHH")  # time (ms), offset, hash of event_id (0: none), bytes of behaviour, item, category
NONE = 0xFFFF  # the length that stands for "no item" or "no category"


class HistoryError(Exception):
    """A stored history that cannot be read: damaged, or written by a newer version. One line."""


class Outcome(Enum):
    """What the fold did with an event."""

    FOLDED = auto()  # it is in the history now
    SEEN = auto()  # it was folded before: the record came again
    REPEAT = auto()  # another event with the same event_id is in the history
    TOO_LATE = auto()  # older than the watermark by more than the allowed lateness


class Entry(NamedTuple):
    """One event in the ring."""

    time_ms: int
    offset: int
    item: str | None
    behavior: str
    category: str | None
    event_hash: int  # 0: no event_id
    row: bytes  # this entry as stored; packed once, when the event arrives


@dataclass(frozen=True, slots=True)
class HistoryRule:
    """How much is kept: the model's window, the margin for redelivery, and how late an event may come."""

    window: WindowRule
    margin: int = 16  # events
    lateness_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class History:
    """One user's events, ordered by (time, offset), all from one partition of the input topic."""

    partition: int
    last_offset: int = -1
    entries: tuple[Entry, ...] = ()

    @property
    def watermark_ms(self) -> int | None:
        """The latest event time so far; the newest entry is never dropped, so it need not be stored."""
        return self.entries[-1].time_ms if self.entries else None


def fold(history: History, event: Event, offset: int, rule: HistoryRule) -> tuple[History, Outcome]:
    """Put `event`, read at `offset`, into `history`."""
    seen = offset <= history.last_offset
    entries = _before(history.entries, offset) if seen else history.entries
    if entries and event.time_ms < entries[-1].time_ms - rule.lateness_ms:
        return history, Outcome.TOO_LATE
    event_hash = hash_event_id(event.event_id)
    if event_hash and any(entry.event_hash == event_hash for entry in entries):
        return history, Outcome.REPEAT
    if seen:
        return history, Outcome.SEEN
    ring = _trim(_insert(entries, _entry(event, offset, event_hash)), rule)
    return History(history.partition, offset, ring), Outcome.FOLDED


def window(history: History, offset: int, rule: WindowRule) -> Window:
    """The window of the user as of `offset`, oldest event first; empty columns if there was nothing yet."""
    entries = history.entries if offset >= history.last_offset else _before(history.entries, offset + 1)
    entries = entries[-rule.events :]
    if not entries:
        return Window((), (), (), ())
    oldest_ms = entries[-1].time_ms - rule.age_ms
    if entries[0].time_ms < oldest_ms:
        entries = tuple(entry for entry in entries if entry.time_ms >= oldest_ms)
    times, _, items, behaviors, categories, _, _ = zip(*entries, strict=True)
    return Window(items, behaviors, categories, times)


def on_partition(history: History, partition: int) -> History:
    """`history` carried over to another partition, whose offsets say nothing about the old ones."""
    if history.partition == partition:
        return history
    moved = tuple(_at_offset(entry, -1) for entry in history.entries)
    return History(partition, -1, moved)


def encode(history: History) -> bytes:
    """`history` as bytes: a header and the rows, each of which was packed when its event arrived."""
    header = HEADER.pack(SCHEMA, history.partition, history.last_offset, len(history.entries))
    return header + b"".join([entry.row for entry in history.entries])


def decode(value: bytes) -> History:
    """The history in `value`. Raises HistoryError."""
    try:
        schema, partition, last_offset, count = HEADER.unpack_from(value)
        if schema != SCHEMA:
            raise HistoryError(f"stored history has schema {schema}, this version reads {SCHEMA}")
        entries, end = _decode_rows(value, count)
    except (struct.error, UnicodeDecodeError) as error:
        raise HistoryError(f"stored history is damaged: {error}") from None
    if end != len(value):
        raise HistoryError(f"stored history is damaged: {len(value) - end} bytes too many")
    return History(partition, last_offset, entries)


def hash_event_id(event_id: str | None) -> int:
    """64 bits of BLAKE2b, never 0; 0 for None. Two ids of one window collide with a chance below 1e-15."""
    if event_id is None:
        return 0
    return int.from_bytes(blake2b(event_id.encode(), digest_size=8).digest(), "little") or 1


def _before(entries: tuple[Entry, ...], offset: int) -> tuple[Entry, ...]:
    return tuple(entry for entry in entries if entry.offset < offset)


def _insert(entries: tuple[Entry, ...], entry: Entry) -> tuple[Entry, ...]:
    if not entries or _order(entries[-1]) <= _order(entry):
        return (*entries, entry)
    ordered = list(entries)
    insort(ordered, entry, key=_order)
    return tuple(ordered)


def _order(entry: Entry) -> tuple[int, int]:
    return entry.time_ms, entry.offset


def _trim(entries: tuple[Entry, ...], rule: HistoryRule) -> tuple[Entry, ...]:
    """Drop what no window can reach as of any of the last `margin` offsets."""
    entries = entries[-(rule.window.events + rule.margin) :]
    if entries[0].time_ms >= entries[-1].time_ms - rule.window.age_ms:
        return entries
    by_offset = sorted(entries, key=lambda entry: entry.offset)
    settled = by_offset[: -rule.margin] if rule.margin else by_offset
    if not settled:
        return entries
    oldest_ms = max(entry.time_ms for entry in settled) - rule.window.age_ms
    return tuple(entry for entry in entries if entry.time_ms >= oldest_ms)


def _entry(event: Event, offset: int, event_hash: int) -> Entry:
    row = _pack(event.time_ms, offset, event.item_id, event.behavior, event.category, event_hash)
    return Entry(event.time_ms, offset, event.item_id, event.behavior, event.category, event_hash, row)


def _at_offset(entry: Entry, offset: int) -> Entry:
    row = _pack(entry.time_ms, offset, entry.item, entry.behavior, entry.category, entry.event_hash)
    return entry._replace(offset=offset, row=row)


def _pack(time_ms: int, offset: int, item: str | None, behavior: str, category: str | None, event_hash: int) -> bytes:
    name = behavior.encode()
    item_bytes = b"" if item is None else item.encode()
    category_bytes = b"" if category is None else category.encode()
    lengths = (
        len(name),
        NONE if item is None else len(item_bytes),
        NONE if category is None else len(category_bytes),
    )
    return ROW.pack(time_ms, offset, event_hash, *lengths) + name + item_bytes + category_bytes


def _decode_rows(value: bytes, count: int) -> tuple[tuple[Entry, ...], int]:
    """`count` entries and the position behind the last one."""
    entries = []
    start = HEADER.size
    for _ in range(count):
        time_ms, offset, event_hash, *lengths = ROW.unpack_from(value, start)
        position = start + ROW.size
        texts: list[str | None] = []
        for length in lengths:
            end = position + (0 if length == NONE else length)
            if end > len(value):
                raise HistoryError("stored history is damaged: it ends too early")
            texts.append(None if length == NONE else value[position:end].decode())
            position = end
        behavior, item, category = texts
        entries.append(Entry(time_ms, offset, item, behavior or "", category, event_hash, value[start:position]))
        start = position
    return tuple(entries), start
