"""Histories out of bytes that may be anything: of the table, of its changelog.

What earlier versions stored is read as well, and becomes of today's schema when it is read. Any bytes may come from a topic:
what is no history is refused in one line.
"""

from __future__ import annotations

import struct
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

from stream_app.history_layout import (
    BEGIN,
    END,
    HEADER,
    NO_ID,
    NUMBER,
    ROW_BYTES,
    SCHEMA,
    TEXTS,
    History,
    any_of,
    each,
)

HEADERS = {  # of each schema that is read: schema, partition, last offset, N, bytes of what follows, and from 3 on dropped
    2: struct.Struct("<BiqHIII"),  # N times, N offsets, N hashes; three columns of texts, of these bytes
    3: struct.Struct("<BiqHIIIQ"),  # the same
    4: struct.Struct("<BiqHIQ"),  # N × (time, offset, hash); texts, of these bytes
    SCHEMA: HEADER,  # N × (time, offset); hashes and texts, of these bytes
}
STRIDE = {2: 8, 3: 8, 4: 24, 5: 16}  # bytes from the time of an event to that of the next
MOST_DROPPED = 2**62  # events of one user; so that a few more can be counted as well
GLANCE = struct.Struct("<BiqH")  # a header up to N
new = tuple.__new__  # makes a named tuple at half the cost of calling it


class HistoryError(Exception):
    """A stored history that cannot be read: damaged, or written by a newer version. One line."""


class Stored(NamedTuple):
    """What a stored history says of itself."""

    partition: int
    last_offset: int
    dropped: int
    length: int  # N
    begin: int  # where its numbers begin
    sizes: tuple[int, ...]  # bytes of each part that follows the numbers


def decode(value: bytes) -> History:
    """The history in `value`. Raises HistoryError."""
    history = _sound(value)
    return _read(value) if history is None else history


def _sound(value: bytes) -> History | None:
    """The history, if it is of today's schema and nothing is wrong with it: what `_read` does, at a third of the cost."""
    if len(value) < BEGIN:
        return None
    schema, partition, last_offset, count, hashed, size, dropped = HEADER.unpack_from(value)
    texts_begin = BEGIN + ROW_BYTES * count + hashed
    texts = value[texts_begin:]
    is_sound = (
        schema == SCHEMA
        and len(texts) == size
        and (hashed == 0 or (hashed == NUMBER * count and value[texts_begin - NUMBER : texts_begin] != NO_ID))
        and texts.count(END) == TEXTS * count
        and dropped <= MOST_DROPPED
        and texts[-1:] in (b"", END)
        and (texts.isascii() or _is_text(texts))
    )
    return new(History, (value, partition, last_offset, dropped, count, hashed)) if is_sound else None


def _read(value: bytes) -> History:
    """Raises HistoryError, which says what is wrong."""
    stored = _stored(value)
    if value[0] != SCHEMA:
        return _of_schema(value[0], value, stored)
    partition, last_offset, dropped, count, _, (hashed, _) = stored
    if hashed not in (0, NUMBER * count):
        raise HistoryError(f"stored history is damaged: {hashed} bytes of hashes for {count} events")
    texts_begin = BEGIN + ROW_BYTES * count + hashed
    if hashed and not any_of(value[texts_begin - hashed : texts_begin]):
        raise HistoryError("stored history is damaged: it has hashes, but of no event")
    _check_texts(value[texts_begin:], TEXTS * count)
    return History(value, partition, last_offset, dropped, count, hashed)


def last_event_ms(value: bytes) -> int:
    """The time of the newest event of a stored history, without reading the rest; of an empty one 0. Raises HistoryError."""
    return newest_at_a_glance(value)[1] if _stored(value).length else 0


def newest_at_a_glance(value: bytes) -> tuple[int, int]:
    """Partition, and time of the newest event, of a stored history; of an empty or damaged one any numbers.

    For whoever looks at many, and decodes what matters.
    """
    if len(value) < GLANCE.size:
        return -1, 0
    schema, partition, _, count = GLANCE.unpack_from(value)
    if schema not in HEADERS:
        return -1, 0
    newest = HEADERS[schema].size + STRIDE[schema] * (count - 1)
    return partition, int.from_bytes(value[newest : newest + NUMBER], "little", signed=True)


def _stored(value: bytes) -> Stored:
    """Raises HistoryError where that is not what follows."""
    schema = value[0] if value else SCHEMA
    layout = HEADERS.get(schema)
    if layout is None:
        *older, newest = HEADERS
        raise HistoryError(
            f"stored history has schema {schema}, this version reads {', '.join(map(str, older))} and {newest}"
        )
    try:
        _, partition, last_offset, count, *sizes = layout.unpack_from(value)
    except struct.error as error:
        raise HistoryError(f"stored history is damaged: {error}") from None
    dropped = sizes.pop() if schema > 2 else 0
    numbers = (2 if schema == SCHEMA else 3) * NUMBER * count
    end = layout.size + numbers + sum(sizes)
    if end != len(value):
        raise HistoryError(f"stored history is damaged: {len(value)} bytes where {end} should be")
    if dropped > MOST_DROPPED:
        raise HistoryError(f"stored history is damaged: {dropped} events before those that it has")
    return Stored(partition, last_offset, dropped, count, layout.size, tuple(sizes))


def _check_texts(column: bytes, count: int) -> None:
    if column.count(END) != count or column[-1:] not in (b"", END):
        raise HistoryError("stored history is damaged: its texts are not as many as its events")
    try:
        column.decode()
    except UnicodeDecodeError as error:
        raise HistoryError(f"stored history is damaged: {error}") from None


def _is_text(column: bytes) -> bool:
    try:
        column.decode()
    except UnicodeDecodeError:
        return False
    return True


def _of_schema(schema: int, value: bytes, stored: Stored) -> History:
    """A history that an earlier version stored: with a column for each field, or with the hashes among the numbers."""
    partition, last_offset, dropped, count, begin, sizes = stored
    columns = _cut(value, begin, ((NUMBER * count,) * 3 if schema < 4 else (3 * NUMBER * count,)) + sizes)
    if schema < 4:
        times, offsets, hashes, *texts = columns
        for column in texts:
            _check_texts(column, count)
        rows = zip(*(column.split(END)[:-1] for column in texts), strict=True)
        text = b"".join([END.join(row) + END for row in rows])
    else:
        numbers, text = columns
        _check_texts(text, TEXTS * count)
        times, offsets, hashes = (b"".join(each(numbers)[field::3]) for field in range(3))
    pairs = zip(each(times), each(offsets), strict=True)
    return History.of_columns(partition, last_offset, dropped, b"".join(chain.from_iterable(pairs)), hashes, text)


def _cut(value: bytes, begin: int, sizes: tuple[int, ...]) -> list[bytes]:
    """Pieces of `value` of these sizes in bytes, one after the other."""
    return [value[start:end] for start, end in pairwise(accumulate(sizes, initial=begin))]
