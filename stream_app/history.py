"""A user's history: a small value, and a pure fold.

The fold is `(history, event, offset) → (history, outcome)`. It is idempotent: an event at or below the last offset
changes nothing, and the window *as of* that offset can still be read, so that a redelivered record is answered just as
it was the first time. For that the ring keeps, beside all events that may come again, a whole window of those that are
*settled*: whoever calls says from which offset on records may come again, and nothing that a window as of such an offset
can reach is dropped. What an event changes, and what a window shows, does not depend on when something is dropped: how
many were is kept, so that the events of a user have the same numbers ever after.

A history is kept as it is stored (`history_layout`), so that the usual event, which is the user's newest, is appended in one
copy, and nothing is left to do when it is written. A repeat, an event that is late and a cut work on the same bytes; what came
before, and comes again, takes the slow road over rows. Knows nothing of Kafka, of tables or of models, and reads no clock.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

from model.window import Window, WindowRule
from stream_app.events import Event
from stream_app.history_layout import (
    BEGIN,
    END,
    HEADER,
    INT64,
    NO_ID,
    NUMBER,
    ROW,
    ROW_BYTES,
    SCHEMA,
    TEXTS,
    Entry,
    History,
    text_of,
)

NO_BYTES_YET = blake2b(digest_size=NUMBER)
new = tuple.__new__  # makes a named tuple at half the cost of calling it


class Outcome(StrEnum):
    """What the fold did with an event."""

    FOLDED = "folded"  # it is in the history now
    SEEN = "seen"  # it was folded before: the record came again
    REPEAT = "repeat"  # another event with the same event_id is in the history
    TOO_LATE = "too_late"  # older than the watermark by more than the allowed lateness


FOLDED = Outcome.FOLDED  # looked up once


class HistoryRule(NamedTuple):
    """How much is kept: the model's window, and how late an event may come."""

    window: WindowRule
    lateness_ms: int = 3_600_000
    slack: int = 16  # events that are dropped together, whenever so many more than a window's have gathered


def fold(history: History, event: Event, offset: int, rule: HistoryRule, settled: int) -> tuple[History, Outcome]:
    """Put `event`, read at `offset`, into `history`; no record below the offset `settled` comes again."""
    stored, partition, last_offset, dropped, length, hashed = history
    _, behavior, time_ms, item, category, event_id = event
    numbers_end = BEGIN + ROW_BYTES * length
    texts_begin = numbers_end + hashed
    event_hash = NO_ID if event_id is None else hash_event_id(event_id)
    if offset <= last_offset or (
        length
        and (
            time_ms < INT64.unpack_from(stored, numbers_end - ROW_BYTES)[0]
            or (event_id is not None and stored.find(event_hash, numbers_end, texts_begin) >= 0)
        )
    ):
        return _fold_unusual(history, event, offset, event_hash, rule, settled)
    text = f"{item or ''}\0{behavior}\0{category or ''}\0".encode()
    row = ROW.pack(time_ms, offset)
    size = len(stored) - texts_begin + len(text)
    if event_id is None and not hashed:
        header = HEADER.pack(SCHEMA, partition, offset, length + 1, 0, size, dropped)
        folded = b"".join((header, stored[BEGIN:numbers_end], row, stored[texts_begin:], text))
    else:
        hashes = stored[numbers_end:texts_begin] if hashed else NO_ID * length
        hashed = NUMBER * (length + 1)
        header = HEADER.pack(SCHEMA, partition, offset, length + 1, hashed, size, dropped)
        folded = b"".join((header, stored[BEGIN:numbers_end], row, hashes, event_hash, stored[texts_begin:], text))
    after = new(History, (folded, partition, offset, dropped, length + 1, hashed))
    return (_trimmed(after, time_ms, rule, settled) if length else after), FOLDED


def window(history: History, offset: int, rule: WindowRule) -> Window:
    """The window of the user as of `offset`, oldest event first; empty columns if there was nothing yet."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    length = window_length(history, offset, rule)
    if length == 0:
        return Window([], [], [], ())
    texts: list[str] = history.texts.decode().split("\0")[-1 - TEXTS * length : -1]
    items, categories = texts[0::TEXTS], texts[2::TEXTS]
    return Window(_or_none(items), texts[1::TEXTS], _or_none(categories), _times(history)[-length:])


def window_length(history: History, offset: int, rule: WindowRule) -> int:
    """How many events `window` gives."""
    if offset < history.last_offset:
        history = _as_of(history, offset)
    stored, _, _, dropped, kept, _ = history
    length, total = kept, dropped + kept
    if total > rule.events:
        length = min(length, total - rule.first(total))
    if length < 2:
        return length
    end = BEGIN + ROW_BYTES * kept
    newest_ms: int = INT64.unpack_from(stored, end - ROW_BYTES)[0]
    if INT64.unpack_from(stored, end - ROW_BYTES * length)[0] >= newest_ms - rule.age_ms + rule.age_stride_ms - 1:
        return length  # not too old wherever multiples of the stride lie
    return length - bisect_left(_times(history)[-length:], rule.oldest_ms(newest_ms))


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
    return History.of_rows(history.partition, history.last_offset, history.dropped, entries)


def on_partition(history: History, partition: int) -> History:
    """`history` carried over to another partition, whose offsets say nothing about the old ones."""
    if history.partition == partition:
        return history
    entries = [entry._replace(offset=-1) for entry in history.entries]
    return History.of_rows(partition, -1, history.dropped, entries)


def hash_event_id(event_id: str) -> bytes:
    """64 bits of BLAKE2b, never NO_ID. Two ids of one window collide with a chance below 1e-15."""
    hasher = NO_BYTES_YET.copy()  # at three quarters of the cost of a new one
    hasher.update(event_id.encode())
    digest = hasher.digest()
    return digest if digest != NO_ID else b"\1" + NO_ID[1:]


def _fold_unusual(
    history: History, event: Event, offset: int, event_hash: bytes, rule: HistoryRule, settled: int
) -> tuple[History, Outcome]:
    """What is not simply the newest event: late, seen, or perhaps a repeat."""
    if offset <= history.last_offset:
        return history, _outcome_as_of(history, event, offset, event_hash, rule)
    newest_ms = history.watermark_ms
    if newest_ms is not None and event.time_ms < newest_ms - rule.lateness_ms:
        return history, Outcome.TOO_LATE
    if event_hash != NO_ID and _has(history, event_hash, rule.window):
        return history, Outcome.REPEAT
    place = bisect_right(_times(history), event.time_ms)  # of equal times the later offset is newer
    history = _with(history, place, event, offset, event_hash)
    return _trimmed(history, history.time_ms(history.length - 1), rule, settled), FOLDED


def _outcome_as_of(history: History, event: Event, offset: int, event_hash: bytes, rule: HistoryRule) -> Outcome:
    """Of a record that came before, by what there was before it."""
    entries = _before(history.entries, offset)
    if entries and event.time_ms < entries[-1].time_ms - rule.lateness_ms:
        return Outcome.TOO_LATE
    if event_hash != NO_ID:
        reach = _in_window(entries, history.dropped, rule.window)
        if any(entry.event_hash == event_hash for entry in reach):
            return Outcome.REPEAT
    return Outcome.SEEN


def _has(history: History, event_hash: bytes, rule: WindowRule) -> bool:
    """Whether the window holds an event of that id; what lies before is dropped sooner or later, and must not matter."""
    hashes, length = history.hashes, history.length
    last = hashes.rfind(event_hash)
    while last % NUMBER and last > 0:  # the end of one hash with the start of the next
        last = hashes.rfind(event_hash, 0, last + NUMBER - 1)
    if last < 0:
        return False
    place = last // NUMBER  # events are in the order of their times: if any is in the window, this one is
    return place >= rule.first(history.dropped + length) - history.dropped and history.time_ms(place) >= rule.oldest_ms(
        history.time_ms(length - 1)
    )


def _with(history: History, place: int, event: Event, offset: int, event_hash: bytes) -> History:
    """`history` and the event, put at `place` of 0 … N."""
    _, partition, _, dropped, length, hashed = history
    numbers, texts = history.numbers, history.texts
    hashes = history.hashes if hashed else NO_ID * length
    row, hash_ = ROW_BYTES * place, NUMBER * place
    text = len(texts) - len(texts.split(END, TEXTS * place)[TEXTS * place])
    return History.of_columns(
        partition,
        offset,
        dropped,
        numbers[:row] + ROW.pack(event.time_ms, offset) + numbers[row:],
        hashes[:hash_] + event_hash + hashes[hash_:],
        texts[:text] + text_of(event.item_id, event.behavior, event.category) + texts[text:],
    )


def _before(entries: list[Entry], offset: int) -> list[Entry]:
    return [entry for entry in entries if entry.offset < offset]


def _as_of(history: History, offset: int) -> History:
    return History.of_rows(history.partition, offset, history.dropped, _before(history.entries, offset + 1))


def _in_window(entries: list[Entry], dropped: int, rule: WindowRule) -> list[Entry]:
    """The last of them; what lies before is dropped sooner or later, and must not matter."""
    last = entries[max(0, rule.first(dropped + len(entries)) - dropped) :]
    oldest_ms = rule.oldest_ms(last[-1].time_ms) if last else 0
    return [entry for entry in last if entry.time_ms >= oldest_ms]


def _trimmed(history: History, newest_ms: int, rule: HistoryRule, settled: int) -> History:
    """`history` without its oldest events, if it is time to drop some; what an age stride leaves out sooner waits."""
    window, _, slack = rule
    beyond = history.length - window.events
    if (beyond > 0 and beyond % slack == 0) or newest_ms - INT64.unpack_from(history.stored, BEGIN)[0] > window.age_ms:
        return _without(history, _out_of_reach(history, window, settled))
    return history


def _out_of_reach(history: History, rule: WindowRule, settled: int) -> int:
    """How many of the oldest events no window can reach as of `settled` or later.

    Those that are settled, and older than a whole window of others that are, or than the newest of them allows. A window of the
    most events that there are: late ones, put before it, may have the start of a shorter one lie further back.
    """
    numbers = _numbers(history)
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
    left = history.texts.split(END, TEXTS * oldest)[TEXTS * oldest]
    numbers, hashes = history.numbers[ROW_BYTES * oldest :], history.hashes[NUMBER * oldest :]
    return History.of_columns(history.partition, history.last_offset, history.dropped + oldest, numbers, hashes, left)


def _times(history: History) -> tuple[int, ...]:
    """Of all events, in ms."""
    return _numbers(history)[0::2]


def _numbers(history: History) -> tuple[int, ...]:
    """Time, offset, time, …"""
    return struct.unpack_from(f"<{2 * history.length}q", history.stored, BEGIN)


def _or_none(texts: list[str]) -> Sequence[str | None]:
    return [text or None for text in texts] if "" in texts else texts
