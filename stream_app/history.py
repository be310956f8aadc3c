"""A user's history: a small value, a pure fold, and a compact codec.

The fold is `(history, event, offset) → (history, outcome)`. It is idempotent: an event at or below the last offset
changes nothing, and the window *as of* that offset can still be read, so that a redelivered record is answered just as
it was the first time. For that the ring keeps, beside all events that may come again, a whole window of those that are
*settled*: whoever calls says from which offset on records may come again, and nothing that a window as of such an offset
can reach is dropped. What an event changes, and what a window shows, does not depend on when something is dropped: how
many were is kept, so that the events of a user have the same numbers ever after.

A history is kept as it is stored: one column of bytes per field, so that the usual event, which is the user's newest, is
appended in a few copies, and storing it joins the columns. Everything else takes the slow road over rows. Knows nothing
of Kafka, of tables or of models, and reads no clock.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, insort
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from model.window import Window, WindowRule
from stream_app.events import Event

SCHEMA = 3
HEADER = struct.Struct("<BiqHIIIQ")  # schema, partition, last offset, N, bytes of the three columns of texts, dropped
HEADERS = {2: struct.Struct("<BiqHIII"), SCHEMA: HEADER}  # those that are read; before 3 `dropped` was not kept
GLANCE = struct.Struct("<BiqH")  # a header up to N
NUMBER = 8  # bytes of a time (ms), of an offset, of the hash of an event_id
INT64 = struct.Struct("<q")
END = b"\0"  # behind every text of a column; the event contract keeps it out of texts
NO_ID = bytes(NUMBER)  # the hash of "no event_id"


class HistoryError(Exception):
    """A stored history that cannot be read: damaged, or written by a newer version. One line."""


class Outcome(StrEnum):
    """What the fold did with an event."""

    FOLDED = "folded"  # it is in the history now
    SEEN = "seen"  # it was folded before: the record came again
    REPEAT = "repeat"  # another event with the same event_id is in the history
    TOO_LATE = "too_late"  # older than the watermark by more than the allowed lateness


FOLDED = Outcome.FOLDED  # looked up once


class Entry(NamedTuple):
    """One event in the ring, as a row."""

    time_ms: int
    offset: int
    event_hash: bytes  # NUMBER bytes; NO_ID: no event_id
    item: str | None
    behavior: str
    category: str | None


class HistoryRule(NamedTuple):
    """How much is kept: the model's window, and how late an event may come."""

    window: WindowRule
    lateness_ms: int = 3_600_000
    slack: int = 16  # events that are dropped together, whenever so many more than a window's have gathered


class History(NamedTuple):
    """One user's events, ordered by (time, offset), all from one partition of the input topic.

    The columns hold N events, oldest first: numbers of 8 bytes, little endian, and texts in UTF-8 with an END behind each.
    An empty text stands for "none".
    """

    partition: int
    last_offset: int = -1
    dropped: int = 0  # events of the user before these, out of every window's reach
    times: bytes = b""  # N × int64, ms UTC
    offsets: bytes = b""  # N × int64
    hashes: bytes = b""  # N × 8, see `hash_event_id`
    items: bytes = b""
    behaviors: bytes = b""
    categories: bytes = b""

    @property
    def length(self) -> int:
        """N."""
        return len(self.times) // NUMBER

    @property
    def newest_offset(self) -> int:
        """The offset of the newest event, which is not the last one folded where that was late; -1 if there is none."""
        return _last(self.offsets) if self.offsets else -1

    @property
    def watermark_ms(self) -> int | None:
        """The latest event time so far; the newest entry is never dropped, so it need not be stored."""
        return _last(self.times) if self.times else None

    @property
    def entries(self) -> list[Entry]:
        """The events as rows."""
        hashes = [self.hashes[start : start + NUMBER] for start in range(0, len(self.hashes), NUMBER)]
        items, categories = _texts(self.items, self.length), _texts(self.categories, self.length)
        behaviors = self.behaviors.decode().split("\0")[:-1]
        return list(map(Entry, _numbers(self.times), _numbers(self.offsets), hashes, items, behaviors, categories))


def fold(history: History, event: Event, offset: int, rule: HistoryRule, settled: int) -> tuple[History, Outcome]:
    """Put `event`, read at `offset`, into `history`; no record below the offset `settled` comes again."""
    partition, last_offset, dropped, times, offsets, hashes, items, behaviors, categories = history
    _, behavior, time_ms, item, category, event_id = event
    event_hash = NO_ID if event_id is None else hash_event_id(event_id)
    if offset <= last_offset or (
        times
        and (
            time_ms < INT64.unpack_from(times, len(times) - NUMBER)[0] or (event_hash in hashes and event_hash != NO_ID)
        )
    ):
        return _fold_slowly(history, event, offset, event_hash, rule, settled)
    columns = (
        partition,
        offset,
        dropped,
        times + time_ms.to_bytes(NUMBER, "little"),
        offsets + offset.to_bytes(NUMBER, "little"),
        hashes + event_hash,
        items + (END if item is None else f"{item}\0".encode()),
        behaviors + f"{behavior}\0".encode(),
        categories + (END if category is None else f"{category}\0".encode()),
    )
    folded = tuple.__new__(History, columns)  # at half the cost of calling History
    return (_trimmed(folded, time_ms, rule, settled) if times else folded), FOLDED


def window(history: History, offset: int, rule: WindowRule) -> Window:
    """The window of the user as of `offset`, oldest event first; empty columns if there was nothing yet."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    length = window_length(history, offset, rule)
    if length == 0:
        return Window([], [], [], ())
    return Window(
        _texts(history.items, length),
        history.behaviors.decode().split("\0")[-1 - length : -1],
        _texts(history.categories, length),
        _numbers(history.times[-NUMBER * length :]),
    )


def window_length(history: History, offset: int, rule: WindowRule) -> int:
    """How many events `window` gives."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    times = history.times
    length = len(times) // NUMBER
    total = history.dropped + length
    if total > rule.events:
        length = min(length, total - rule.first(total))
    if length < 2:
        return length
    newest_ms = _last(times)
    start = len(times) - NUMBER * length
    if int.from_bytes(times[start : start + NUMBER], "little") >= newest_ms - rule.age_ms + rule.age_stride_ms - 1:
        return length  # not too old wherever multiples of the stride lie
    numbers = _numbers(times[start:])
    return length - bisect_left(numbers, rule.oldest_ms(newest_ms))


def recency_rank(history: History, item: str, most: int) -> int | None:
    """The rank of `item` among the distinct items of `history`, the most recent first; None beyond `most`, or if absent."""
    name = item.encode() + END
    start = 0 if history.items.startswith(name) else -1
    later = history.items.rfind(END + name)
    if later >= 0:
        start = later + 1
    if start < 0:
        return None
    newer = set(history.items[start + len(name) : -1].split(END)) - {b"", name[:-1]}
    return len(newer) + 1 if len(newer) < most else None


def until(history: History, time_ms: int) -> History:
    """What of `history` had happened by `time_ms`."""
    entries = [entry for entry in history.entries if entry.time_ms <= time_ms]
    return _of_rows(history.partition, history.last_offset, history.dropped, entries)


def on_partition(history: History, partition: int) -> History:
    """`history` carried over to another partition, whose offsets say nothing about the old ones."""
    if history.partition == partition:
        return history
    nowhere = (-1).to_bytes(NUMBER, "little", signed=True)
    return history._replace(partition=partition, last_offset=-1, offsets=nowhere * history.length)


def encode(history: History) -> bytes:
    """`history` as bytes: a header and the columns."""
    partition, last_offset, dropped, times, offsets, hashes, items, behaviors, categories = history
    header = HEADER.pack(
        SCHEMA, partition, last_offset, len(times) // NUMBER, len(items), len(behaviors), len(categories), dropped
    )
    return b"".join((header, times, offsets, hashes, items, behaviors, categories))


def decode(value: bytes) -> History:
    """The history in `value`. Raises HistoryError."""
    begin, partition, last_offset, count, items, behaviors, dropped = _header(value)
    numbers = count * NUMBER
    times_end = begin + numbers
    offsets_end = times_end + numbers
    hashes_end = offsets_end + numbers
    items_end = hashes_end + items
    behaviors_end = items_end + behaviors
    history = History(
        partition,
        last_offset,
        dropped,
        value[begin:times_end],
        value[times_end:offsets_end],
        value[offsets_end:hashes_end],
        value[hashes_end:items_end],
        value[items_end:behaviors_end],
        value[behaviors_end:],
    )
    _check_texts(history.items, count)
    _check_texts(history.behaviors, count)
    _check_texts(history.categories, count)
    return history


def last_event_ms(value: bytes) -> int:
    """The time of the newest event of a stored history, without reading the rest; of an empty one 0. Raises HistoryError."""
    begin, _, _, count, *_ = _header(value)
    return _last(value[begin : begin + NUMBER * count])


def newest_at_a_glance(value: bytes) -> tuple[int, int]:
    """Partition, and time of the newest event, of a stored history; of an empty or damaged one any numbers.

    For whoever looks at many, and decodes what matters.
    """
    if len(value) < GLANCE.size:
        return -1, 0
    schema, partition, _, count = GLANCE.unpack_from(value)
    end = HEADERS.get(schema, HEADER).size + NUMBER * count
    return partition, int.from_bytes(value[end - NUMBER : end], "little")


def hash_event_id(event_id: str) -> bytes:
    """64 bits of BLAKE2b, never NO_ID. Two ids of one window collide with a chance below 1e-15."""
    digest = blake2b(event_id.encode(), digest_size=NUMBER).digest()
    return digest if digest != NO_ID else b"\1" + NO_ID[1:]


def _fold_slowly(
    history: History, event: Event, offset: int, event_hash: bytes, rule: HistoryRule, settled: int
) -> tuple[History, Outcome]:
    """What is not simply the newest event: late, seen, or perhaps a repeat."""
    seen = offset <= history.last_offset
    entries = _before(history.entries, offset) if seen else history.entries
    if entries and event.time_ms < entries[-1].time_ms - rule.lateness_ms:
        return history, Outcome.TOO_LATE
    if event_hash != NO_ID:
        reach = _in_window(entries, history.dropped, rule.window)
        if any(entry.event_hash == event_hash for entry in reach):
            return history, Outcome.REPEAT
    if seen:
        return history, Outcome.SEEN
    entry = Entry(event.time_ms, offset, event_hash, event.item_id, event.behavior, event.category)
    insort(entries, entry, key=_order)
    history = _of_rows(history.partition, offset, history.dropped, entries)
    return _trimmed(history, _last(history.times), rule, settled), Outcome.FOLDED


def _before(entries: list[Entry], offset: int) -> list[Entry]:
    return [entry for entry in entries if entry.offset < offset]


def _as_of(history: History, offset: int) -> History:
    return _of_rows(history.partition, offset, history.dropped, _before(history.entries, offset + 1))


def _in_window(entries: list[Entry], dropped: int, rule: WindowRule) -> list[Entry]:
    """The last of them; what lies before is dropped sooner or later, and must not matter."""
    last = entries[max(0, rule.first(dropped + len(entries)) - dropped) :]
    oldest_ms = rule.oldest_ms(last[-1].time_ms) if last else 0
    return [entry for entry in last if entry.time_ms >= oldest_ms]


def _order(entry: Entry) -> tuple[int, int]:
    return entry.time_ms, entry.offset


def _trimmed(history: History, newest_ms: int, rule: HistoryRule, settled: int) -> History:
    """`history` without its oldest events, if it is time to drop some; what an age stride leaves out sooner waits."""
    times, (window, _, slack) = history.times, rule
    beyond = len(times) // NUMBER - window.events
    if (beyond > 0 and beyond % slack == 0) or newest_ms - INT64.unpack_from(times)[0] > window.age_ms:
        return _without(history, _out_of_reach(history, window, settled))
    return history


def _out_of_reach(history: History, rule: WindowRule, settled: int) -> int:
    """How many of the oldest events no window can reach as of `settled` or later.

    Those that are settled, and older than a whole window of others that are, or than the newest of them allows. A window of the
    most events that there are: late ones, put before it, may have the start of a shorter one lie further back.
    """
    times, offsets = _numbers(history.times), _numbers(history.offsets)
    places = [place for place, offset in enumerate(offsets) if offset < settled]
    if not places:
        return 0
    leading = len(places)  # settled events before the first that is not
    if places[-1] >= leading:
        leading = next(place for place, offset in enumerate(offsets) if offset >= settled)
    too_old = bisect_left(times, rule.oldest_ms(times[places[-1]]), hi=leading)
    return min(leading, max(too_old, len(places) - rule.events))


def _without(history: History, oldest: int) -> History:
    """`history` without so many of its oldest events."""
    if oldest == 0:
        return history
    partition, last_offset, dropped, times, offsets, hashes, items, behaviors, categories = history
    return History(
        partition,
        last_offset,
        dropped + oldest,
        times[NUMBER * oldest :],
        offsets[NUMBER * oldest :],
        hashes[NUMBER * oldest :],
        items.split(END, oldest)[oldest],
        behaviors.split(END, oldest)[oldest],
        categories.split(END, oldest)[oldest],
    )


def _of_rows(partition: int, last_offset: int, dropped: int, entries: list[Entry]) -> History:
    times, offsets, hashes, items, behaviors, categories = zip(*entries, strict=True) if entries else [()] * 6
    return History(
        partition,
        last_offset,
        dropped,
        struct.pack(f"<{len(times)}q", *times),
        struct.pack(f"<{len(offsets)}q", *offsets),
        b"".join(hashes),
        _column(items),
        _column(behaviors),
        _column(categories),
    )


def _column(texts: tuple[str | None, ...]) -> bytes:
    return b"".join([(text or "").encode() + END for text in texts])


def _last(times: bytes) -> int:
    return int.from_bytes(times[-NUMBER:], "little", signed=True)


def _numbers(column: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(column) // NUMBER}q", column)


def _texts(column: bytes, last: int) -> Sequence[str | None]:
    """The `last` texts of a column."""
    texts = column.decode().split("\0")[-1 - last : -1]
    return [text or None for text in texts] if END + END in column or column.startswith(END) else texts


def _header(value: bytes) -> tuple[int, int, int, int, int, int, int]:
    """Where the columns begin, and what is said before: partition, last offset, events, bytes of items, of behaviours, dropped."""
    layout = HEADERS.get(value[0]) if value else HEADER
    if layout is None:
        known = " and ".join(map(str, HEADERS))
        raise HistoryError(f"stored history has schema {value[0]}, this version reads {known}")
    try:
        _, partition, last_offset, count, items, behaviors, categories, *rest = layout.unpack_from(value)
    except struct.error as error:
        raise HistoryError(f"stored history is damaged: {error}") from None
    end = layout.size + 3 * NUMBER * count + items + behaviors + categories
    if end != len(value):
        raise HistoryError(f"stored history is damaged: {len(value)} bytes where {end} should be")
    return layout.size, partition, last_offset, count, items, behaviors, rest[0] if rest else 0


def _check_texts(column: bytes, count: int) -> None:
    if column.count(END) != count or column[-1:] not in (b"", END):
        raise HistoryError("stored history is damaged: its texts are not as many as its events")
    try:
        column.decode()
    except UnicodeDecodeError as error:
        raise HistoryError(f"stored history is damaged: {error}") from None
