"""A user's history as it is stored: one string of bytes, which is never taken apart as a whole.

A header; then N × (time, offset), oldest first, N hashes of event ids, or none at all if no event has an id, and the texts of
N events with an END behind each. Numbers are little endian, texts are UTF-8; an empty text stands for "none". What the fold
makes is what the table holds and the changelog gets, so that a history is in memory once. `history_codec` reads what may be
damaged, or of an earlier version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Self

SCHEMA = 5
HEADER = struct.Struct(
    "<BiqHIIQ"
)  # schema, partition, last offset, N, bytes of the hashes, bytes of the texts, dropped
BEGIN = HEADER.size  # of the numbers
ROW = struct.Struct("<qq")  # the numbers of an event: time in ms, offset
ROW_BYTES = ROW.size
NUMBER = 8  # bytes of a number, and of the hash of an event_id
TEXTS = 3  # of an event: item, behaviour, category
INT64 = struct.Struct("<q")
END = b"\0"  # behind every text; the event contract keeps it out of texts
NO_ID = bytes(NUMBER)  # the hash of "no event_id"


class Entry(NamedTuple):
    """One event in the ring, as a row."""

    time_ms: int
    offset: int
    event_hash: bytes  # NUMBER bytes; NO_ID: no event_id
    item: str | None
    behavior: str
    category: str | None


class History(NamedTuple):
    """One user's events, ordered by (time, offset), all from one partition of the input topic.

    `stored` says it all; the other fields are what its header says. The strings that are cut out of it are copies.
    """

    stored: bytes
    partition: int
    last_offset: int  # of the events so far; -1 if there is none
    dropped: int  # events of the user before these, out of every window's reach
    length: int  # N
    hashed: int  # bytes of the hashes: N × NUMBER, or 0

    @classmethod
    def empty(cls, partition: int, last_offset: int = -1) -> Self:
        """Of a user without events."""
        return cls.of_columns(partition, last_offset, 0, b"", b"", b"")

    @classmethod
    def of_columns(
        cls, partition: int, last_offset: int, dropped: int, numbers: bytes, hashes: bytes, texts: bytes
    ) -> Self:
        """From what follows the header; hashes of which none is one of an event_id are left out."""
        hashes = any_of(hashes)
        length, hashed = len(numbers) // ROW_BYTES, len(hashes)
        header = HEADER.pack(SCHEMA, partition, last_offset, length, hashed, len(texts), dropped)
        return cls(b"".join((header, numbers, hashes, texts)), partition, last_offset, dropped, length, hashed)

    @classmethod
    def of_rows(cls, partition: int, last_offset: int, dropped: int, entries: Iterable[Entry]) -> Self:
        """From events as rows, in their order."""
        rows = list(entries)
        numbers = b"".join([ROW.pack(*row[:2]) for row in rows])
        hashes = b"".join([row.event_hash for row in rows])
        texts = b"".join([text_of(*row[3:]) for row in rows])
        return cls.of_columns(partition, last_offset, dropped, numbers, hashes, texts)

    @property
    def numbers_end(self) -> int:
        """Where the numbers end in `stored`, and the hashes begin."""
        return BEGIN + ROW_BYTES * self.length

    @property
    def texts_begin(self) -> int:
        """Where the texts begin in `stored`."""
        return BEGIN + ROW_BYTES * self.length + self.hashed

    @property
    def numbers(self) -> bytes:
        """N × (time, offset), see `ROW`."""
        return self.stored[BEGIN : self.numbers_end]

    @property
    def hashes(self) -> bytes:
        """N × the hash of an event_id; nothing if no event has one."""
        return self.stored[self.numbers_end : self.texts_begin]

    @property
    def texts(self) -> bytes:
        """N × (item, behaviour, category)."""
        return self.stored[self.texts_begin :]

    @property
    def newest_offset(self) -> int:
        """The offset of the newest event, which is not the last one folded where that was late; -1 if there is none."""
        return self._number(self.length - 1, NUMBER) if self.length else -1

    @property
    def watermark_ms(self) -> int | None:
        """The latest event time so far; the newest entry is never dropped, so it need not be stored."""
        return self._number(self.length - 1, 0) if self.length else None

    def time_ms(self, place: int) -> int:
        """Of the event at `place` of 0 … N - 1."""
        return self._number(place, 0)

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

    def _number(self, place: int, field: int) -> int:
        value: int = INT64.unpack_from(self.stored, BEGIN + ROW_BYTES * place + field)[0]
        return value


@lru_cache(maxsize=1024)
def nothing(partition: int) -> History:
    """`History.empty`, always the same one for a partition."""
    return History.empty(partition)


def text_of(item: str | None, behavior: str, category: str | None) -> bytes:
    """The texts of one event."""
    return f"{item or ''}\0{behavior}\0{category or ''}\0".encode()


def each(numbers: bytes) -> list[bytes]:
    """Numbers, or hashes, one by one."""
    return [numbers[start : start + NUMBER] for start in range(0, len(numbers), NUMBER)]


def any_of(hashes: bytes) -> bytes:
    """`hashes`, or nothing if none of them is one of an event_id."""
    return hashes if hashes.strip(b"\0") else b""
