"""A user's history: a small value, and a pure fold.

The fold is `(history, event, offset) → (history, outcome)`. It is idempotent: an event at or below the last offset
changes nothing, and the window *as of* that offset can still be read, so that a redelivered record is answered just as
it was the first time. For that the ring keeps, beside all events that may come again, a whole window of those that are
*settled*: whoever calls says from which offset on records may come again, and nothing that a window as of such an offset
can reach is dropped. What an event changes, and what a window shows, does not depend on when something is dropped: how
many were is kept, so that the events of a user have the same numbers ever after.

A history is kept as it is stored: its numbers as one string of bytes and its texts as another, so that the usual event,
which is the user's newest, is appended in two copies, and storing it puts a header before them (`history_codec`). The hashes
of event ids are a third string, in which each new id is looked for; it is empty as long as no event has an id. Everything
else takes the slow road over rows. Knows nothing of Kafka, of tables or of models, and reads no clock.
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

ROW = struct.Struct("<qq")  # the numbers of an event: time in ms, offset
ROW_BYTES = ROW.size
NUMBER = 8  # bytes of a number, and of the hash of an event_id
TEXTS = 3  # of an event: item, behaviour, category
INT64 = struct.Struct("<q")
END = b"\0"  # behind every text; the event contract keeps it out of texts
NO_ID = bytes(NUMBER)  # the hash of "no event_id"


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

    The strings of bytes hold N events, oldest first: numbers of 8 bytes, little endian, and texts in UTF-8 with an END behind
    each. An empty text stands for "none".
    """

    partition: int
    last_offset: int = -1
    dropped: int = 0  # events of the user before these, out of every window's reach
    numbers: bytes = b""  # N × (time, offset), see `ROW`
    hashes: bytes = b""  # N × the hash of an event_id; nothing if no event has one
    texts: bytes = b""  # N × (item, behaviour, category)

    @property
    def length(self) -> int:
        """N."""
        return len(self.numbers) // ROW_BYTES

    @property
    def newest_offset(self) -> int:
        """The offset of the newest event, which is not the last one folded where that was late; -1 if there is none."""
        return _number(self.numbers, -ROW_BYTES + NUMBER) if self.numbers else -1

    @property
    def watermark_ms(self) -> int | None:
        """The latest event time so far; the newest entry is never dropped, so it need not be stored."""
        return _number(self.numbers, -ROW_BYTES) if self.numbers else None

    @property
    def entries(self) -> list[Entry]:
        """The events as rows."""
        texts = [text or None for text in self.texts.decode().split("\0")[:-1]]
        items, behaviors, categories = texts[0::TEXTS], texts[1::TEXTS], texts[2::TEXTS]
        hashes = each(self.hashes or NO_ID * self.length)
        rows = zip(ROW.iter_unpack(self.numbers), hashes, items, behaviors, categories, strict=True)
        return [
            Entry(time_ms, offset, event_hash, item, behavior or "", category)
            for (time_ms, offset), event_hash, item, behavior, category in rows
        ]


def fold(history: History, event: Event, offset: int, rule: HistoryRule, settled: int) -> tuple[History, Outcome]:
    """Put `event`, read at `offset`, into `history`; no record below the offset `settled` comes again."""
    partition, last_offset, dropped, numbers, hashes, texts = history
    _, behavior, time_ms, item, category, event_id = event
    event_hash = NO_ID if event_id is None else hash_event_id(event_id)
    if offset <= last_offset or (
        numbers
        and (
            time_ms < INT64.unpack_from(numbers, len(numbers) - ROW_BYTES)[0]
            or (event_id is not None and event_hash in hashes)
        )
    ):
        return _fold_slowly(history, event, offset, event_hash, rule, settled)
    if hashes or event_id is not None:
        hashes = (hashes or NO_ID * (len(numbers) // ROW_BYTES)) + event_hash
    columns = (
        partition,
        offset,
        dropped,
        numbers + ROW.pack(time_ms, offset),
        hashes,
        texts + f"{item or ''}\0{behavior}\0{category or ''}\0".encode(),
    )
    folded = tuple.__new__(History, columns)  # at half the cost of calling History
    return (_trimmed(folded, time_ms, rule, settled) if numbers else folded), FOLDED


def window(history: History, offset: int, rule: WindowRule) -> Window:
    """The window of the user as of `offset`, oldest event first; empty columns if there was nothing yet."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    length = window_length(history, offset, rule)
    if length == 0:
        return Window([], [], [], ())
    texts: list[str] = history.texts.decode().split("\0")[-1 - TEXTS * length : -1]
    items, categories = texts[0::TEXTS], texts[2::TEXTS]
    return Window(_or_none(items), texts[1::TEXTS], _or_none(categories), _times(history.numbers, length))


def window_length(history: History, offset: int, rule: WindowRule) -> int:
    """How many events `window` gives."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    _, _, dropped, numbers, _, _ = history
    size = len(numbers)
    length = size // ROW_BYTES
    total = dropped + length
    if total > rule.events:
        length = min(length, total - rule.first(total))
    if length < 2:
        return length
    newest_ms: int = INT64.unpack_from(numbers, size - ROW_BYTES)[0]
    if INT64.unpack_from(numbers, size - ROW_BYTES * length)[0] >= newest_ms - rule.age_ms + rule.age_stride_ms - 1:
        return length  # not too old wherever multiples of the stride lie
    return length - bisect_left(_times(numbers, length), rule.oldest_ms(newest_ms))


def recency_rank(history: History, item: str, most: int) -> int | None:
    """The rank of `item` among the distinct items of `history`, the most recent first; None beyond `most`, or if absent."""
    name = item.encode()
    newer: set[bytes] = set()
    for other in history.texts.split(END)[-1 - TEXTS :: -TEXTS]:
        if other == name:
            return len(newer) + 1
        if other:
            newer.add(other)
            if len(newer) == most:
                break
    return None


def until(history: History, time_ms: int) -> History:
    """What of `history` had happened by `time_ms`."""
    entries = [entry for entry in history.entries if entry.time_ms <= time_ms]
    return _of_rows(history.partition, history.last_offset, history.dropped, entries)


def on_partition(history: History, partition: int) -> History:
    """`history` carried over to another partition, whose offsets say nothing about the old ones."""
    if history.partition == partition:
        return history
    entries = [entry._replace(offset=-1) for entry in history.entries]
    return _of_rows(partition, -1, history.dropped, entries)


def hash_event_id(event_id: str) -> bytes:
    """64 bits of BLAKE2b, never NO_ID. Two ids of one window collide with a chance below 1e-15."""
    digest = blake2b(event_id.encode(), digest_size=NUMBER).digest()
    return digest if digest != NO_ID else b"\1" + NO_ID[1:]


def each(numbers: bytes) -> list[bytes]:
    """Numbers, or hashes, one by one."""
    return [numbers[start : start + NUMBER] for start in range(0, len(numbers), NUMBER)]


def any_of(hashes: bytes) -> bytes:
    """`hashes`, or nothing if none of them is one of an event_id."""
    return hashes if hashes.strip(b"\0") else b""


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
    return _trimmed(history, _number(history.numbers, -ROW_BYTES), rule, settled), Outcome.FOLDED


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
    numbers, (window, _, slack) = history.numbers, rule
    beyond = len(numbers) // ROW_BYTES - window.events
    if (beyond > 0 and beyond % slack == 0) or newest_ms - INT64.unpack_from(numbers)[0] > window.age_ms:
        return _without(history, _out_of_reach(history, window, settled))
    return history


def _out_of_reach(history: History, rule: WindowRule, settled: int) -> int:
    """How many of the oldest events no window can reach as of `settled` or later.

    Those that are settled, and older than a whole window of others that are, or than the newest of them allows. A window of the
    most events that there are: late ones, put before it, may have the start of a shorter one lie further back.
    """
    numbers = _numbers(history.numbers)
    times, offsets = numbers[0::2], numbers[1::2]
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
    partition, last_offset, dropped, numbers, hashes, texts = history
    left = texts.split(END, TEXTS * oldest)[TEXTS * oldest]
    hashes = any_of(hashes[NUMBER * oldest :])
    return History(partition, last_offset, dropped + oldest, numbers[ROW_BYTES * oldest :], hashes, left)


def _of_rows(partition: int, last_offset: int, dropped: int, entries: list[Entry]) -> History:
    numbers = b"".join([ROW.pack(*entry[:2]) for entry in entries])
    hashes = any_of(b"".join([entry.event_hash for entry in entries]))
    texts = "".join([f"{item or ''}\0{behavior}\0{category or ''}\0" for *_, item, behavior, category in entries])
    return History(partition, last_offset, dropped, numbers, hashes, texts.encode())


def _number(numbers: bytes, place: int) -> int:
    """The one that begins `place` bytes from the end, which is negative."""
    value: int = INT64.unpack_from(numbers, len(numbers) + place)[0]
    return value


def _times(numbers: bytes, last: int) -> tuple[int, ...]:
    """Of the `last` events, in ms."""
    return _numbers(numbers[-ROW_BYTES * last :])[0::2]


def _numbers(numbers: bytes) -> tuple[int, ...]:
    """Time, offset, time, …"""
    return struct.unpack(f"<{len(numbers) // NUMBER}q", numbers)


def _or_none(texts: list[str]) -> Sequence[str | None]:
    return [text or None for text in texts] if "" in texts else texts
