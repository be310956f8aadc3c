"""Histories as bytes: what is stored is read, by every version, and any bytes may come instead."""

import struct
from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.window import WindowRule
from stream_app import history as histories
from stream_app import history_codec
from stream_app.events import Event
from stream_app.history import HistoryRule, Outcome
from stream_app.history_codec import (
    HEADERS,
    HistoryError,
    decode,
    last_event_ms,
    newest_at_a_glance,
)
from stream_app.history_layout import END, HEADER, SCHEMA, History
from tests.stream_app.folding import ALL, START_MS, naive_window, rule, rules, run, streams

letters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
texts = st.text(letters, min_size=1, max_size=20) | st.just("語" * 512) | st.just("😀" * 512)
wild_events = st.builds(
    Event,
    st.just("u"),
    st.text(letters, min_size=1, max_size=10),
    st.integers(0, 4_102_444_800_000),
    st.none() | texts,
    st.none() | texts,
    st.none() | st.text(max_size=5),
)


@given(st.lists(wild_events, max_size=8), st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 100))
@example([], 0, 0)
def test_what_is_stored_is_what_is_read(events: list[Event], partition: int, offset: int) -> None:
    wide = HistoryRule(WindowRule(events=50), lateness_ms=2**62)
    history, steps = run(History.empty(partition), enumerate(events, start=offset), wide)
    folded = [(step.offset, step.event) for step in steps if step.outcome is Outcome.FOLDED]
    stored = history.stored
    read = decode(stored)
    assert read == history
    assert read.stored == stored
    assert last_event_ms(stored) == (history.watermark_ms or 0)
    window = histories.window(read, offset + 99, wide.window)
    assert window == naive_window(folded, wide.window)


def test_a_history_of_fifty_events_takes_less_than_four_kilobytes() -> None:
    history, _ = run(
        History.empty(0),
        enumerate(Event("u", "add_to_cart", START_MS + n, f"item-{n:08}", f"category-{n % 9}") for n in range(65)),
        HistoryRule(WindowRule(events=50)),
    )
    assert history.length == 65
    row = 8 + 8 + len("add_to_cart") + 1 + len("item-00000000") + 1 + len("category-0") + 1
    assert len(history.stored) == 1 + 4 + 8 + 2 + 4 + 4 + 8 + 65 * row < 4096 + 15 * row


def _stored() -> bytes:
    events = [Event("u", "view", START_MS + n, f"語{n}", None if n % 2 else "c", f"e{n}") for n in range(4)]
    return run(History.empty(3), enumerate(events), rule(events=4))[0].stored


def _as_stored_by(history: History, schema: int) -> bytes:
    entries = history.entries
    if schema == 4:
        numbers = b"".join(struct.pack("<qq8s", *entry[:3]) for entry in entries)
        header = (4, history.partition, history.last_offset, len(entries), len(history.texts), history.dropped)
        return struct.pack("<BiqHIQ", *header) + numbers + history.texts
    texts = [
        b"".join((text or "").encode() + b"\0" for text in column)
        for column in (
            [entry.item for entry in entries],
            [entry.behavior for entry in entries],
            [entry.category for entry in entries],
        )
    ]
    header = struct.pack("<BiqH", schema, history.partition, history.last_offset, len(entries))
    header += struct.pack("<III", *map(len, texts)) + (struct.pack("<Q", history.dropped) if schema == 3 else b"")
    columns = [struct.pack(f"<{len(entries)}q", *(entry[place] for entry in entries)) for place in (0, 1)]
    return b"".join((header, *columns, *(entry.event_hash for entry in entries), *texts))


OLDER = [schema for schema in HEADERS if schema < SCHEMA]


@given(streams(), rules, st.sampled_from(OLDER))
def test_what_earlier_versions_stored_is_read(records: list[tuple[int, Event]], rule: HistoryRule, schema: int) -> None:
    history, _ = run(History.empty(0), records, rule)
    stored = _as_stored_by(history, schema)
    dropped = history.dropped if schema > 2 else 0
    assert decode(stored) == History.of_rows(history.partition, history.last_offset, dropped, history.entries)
    assert last_event_ms(stored) == (history.watermark_ms or 0)
    for value in (stored, history.stored):
        assert newest_at_a_glance(value) == (0, history.watermark_ms or 0) or not history.length
    for length in (*range(1, HEADERS[schema].size), len(stored) - 1):
        with pytest.raises(HistoryError, match="damaged"):
            decode(stored[:length])


def test_a_truncated_history_is_refused_at_every_length() -> None:
    stored = _stored()
    for length in range(len(stored)):
        for read in (decode, last_event_ms):
            with pytest.raises(HistoryError, match="damaged"):
                read(stored[:length])


def test_bytes_behind_the_last_event_are_refused() -> None:
    stored = _stored()
    for read in (decode, last_event_ms):
        with pytest.raises(HistoryError, match=f"damaged: {len(stored) + 1} bytes where {len(stored)} should be"):
            read(stored + b"\x00")


@pytest.mark.parametrize("schema", [0, 1, 6, 255])
def test_another_schema_is_refused_by_name(schema: int) -> None:
    for read in (decode, last_event_ms):
        with pytest.raises(HistoryError, match=f"schema {schema}, this version reads 2, 3, 4 and 5"):
            read(bytes([schema]) + _stored()[1:])


@given(streams(), rules)
def test_the_time_of_the_newest_event_is_read_from_what_is_stored(
    records: list[tuple[int, Event]], rule: HistoryRule
) -> None:
    history, steps = run(History.empty(0), records, rule)
    folded = [step.event.time_ms for step in steps if step.outcome is Outcome.FOLDED]
    for one in (history, histories.on_partition(history, 1)):
        assert last_event_ms(one.stored) == (one.watermark_ms or 0) == max(folded, default=0)


def decode_or_refuse(value: bytes) -> History | None:
    """Anything raised but HistoryError is a failed test."""
    try:
        history = decode(value)
    except HistoryError as caught:
        error = caught
    else:
        assert last_event_ms(value) == (history.watermark_ms or 0)
        return history
    assert len(str(error).splitlines()) == 1
    with suppress(HistoryError):
        last_event_ms(value)
    return None


def value_of(count: int, numbers: bytes, texts: bytes, hashes: bytes = b"", dropped: int = 0) -> bytes:
    """A stored history whose header agrees with its length."""
    return HEADER.pack(SCHEMA, 0, 0, count, len(hashes), len(texts), dropped) + numbers + hashes + texts


def older_value(schema: int, count: int, numbers: bytes, columns: Sequence[bytes], dropped: int = 0) -> bytes:
    """The same for older schemas; from 4 on the texts are of one column."""
    columns = columns if schema < 4 else [b"".join(columns)]
    header = (schema, 0, 0, count, *map(len, columns), *([dropped] if schema > 2 else []))
    return HEADERS[schema].pack(*header) + numbers + b"".join(columns)


@st.composite
def well_formed(draw: st.DrawFn, *, sound: bool = False) -> bytes:
    """Lengths that agree, around numbers of any kind, and texts and hashes of any kind unless they shall be `sound`."""
    schema = draw(st.sampled_from([*HEADERS]))
    count = draw(st.integers(0, 3))
    numbers = draw(st.binary(min_size=3 * 8 * count, max_size=3 * 8 * count))
    any_text = st.sampled_from([b"", b"a", b"1", "語".encode()])
    texts = st.lists(any_text, min_size=count, max_size=count)
    if not sound:
        texts |= st.lists(any_text | st.sampled_from([b"\xe8", b"\xff"]), max_size=3)
    columns = [b"".join(text + END for text in draw(texts)) for _ in range(3)]
    if not sound and draw(st.booleans()):
        columns[0] = draw(st.binary(max_size=6))
    dropped = draw(st.integers(0, 9) | st.just(2**62) | (st.nothing() if sound else st.just(2**64 - 1)))
    if schema == SCHEMA:
        hashes = st.sampled_from([b"", numbers[16 * count :] if any(numbers[16 * count :]) else b""])
        if not sound:
            hashes |= st.binary(max_size=40)
        return value_of(count, numbers[: 16 * count], b"".join(columns), draw(hashes), dropped)
    return older_value(schema, count, numbers, columns, dropped)


@settings(max_examples=300)
@given(st.binary(max_size=120) | st.binary(max_size=80).map(lambda rest: bytes([SCHEMA]) + rest) | well_formed())
def test_garbage_raises_nothing_but_history_error(value: bytes) -> None:
    history = decode_or_refuse(value)
    if history is not None:
        assert history.stored == value or value[0] in OLDER
        assert decode(history.stored) == history


@settings(max_examples=300)
@given(well_formed())
def test_the_short_way_to_read_gives_what_the_long_way_gives(value: bytes) -> None:
    short = history_codec._sound(value)
    try:
        long = history_codec._read(value)
    except HistoryError:
        assert short is None
    else:
        assert short in (None, long)
        if value[0] == SCHEMA and not long.hashed:
            assert short is not None


@given(well_formed(sound=True), st.integers(-1, 2**62), streams(items=st.sampled_from([None, "a", "1"]), most=3))
def test_what_is_decoded_can_be_folded_whatever_its_numbers(
    value: bytes, as_of: int, records: list[tuple[int, Event]]
) -> None:
    history = decode(value)
    for offset, event_ in records:
        histories.window(history, as_of, rule().window)
        histories.recency_rank(history, "a", 10)
        histories.recency_rank(histories.until(history, event_.time_ms), "1", 10)
        history, _ = histories.fold(history, event_, offset, rule(), ALL)
        assert len(history.entries) == history.length


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"", "its texts are not as many as its events"),
        (b"a\0b\0c\0" + b"a\0b\0", "its texts are not as many as its events"),
        (b"a\0b\0c\0" + b"a\0b\0c\0" + b"\0", "its texts are not as many as its events"),
        (b"a\0b\0c\0" + b"a\0b\0\0c", "its texts are not as many as its events"),
        (b"a\0b\0c\0" + b"a\0b\0c", "its texts are not as many as its events"),
        (b"a\0b\0c\0" + b"a\0\xff\0c\0", "invalid start byte"),
        (b"a\0b\0c\0" + b"\xe8\xaa\0\x9e\0c\0", "invalid continuation byte"),
    ],
)
def test_texts_that_are_no_texts_are_refused(texts: bytes, message: str) -> None:
    assert decode(value_of(2, bytes(2 * 8 * 2), b"a\0b\0c\0" * 2)).length == 2
    with pytest.raises(HistoryError, match=message):
        decode(value_of(2, bytes(2 * 8 * 2), texts))


@pytest.mark.parametrize("size", [1, 8, 15, 17, 24])
def test_hashes_are_of_all_events_or_of_none(size: int) -> None:
    for right in (0, 2 * 8):
        assert decode(value_of(2, bytes(2 * 8 * 2), b"a\0b\0c\0" * 2, b"h" * right)).length == 2
    with pytest.raises(HistoryError, match=f"damaged: {size} bytes of hashes for 2 events"):
        decode(value_of(2, bytes(2 * 8 * 2), b"a\0b\0c\0" * 2, b"h" * size))


@pytest.mark.parametrize("schema", [3, 4, SCHEMA])
def test_more_dropped_events_than_can_be_are_refused(schema: int) -> None:
    """One more would be no number that can be stored."""

    def value(dropped: int) -> bytes:
        columns = [b"a\0"] * 3
        if schema == SCHEMA:
            return value_of(1, bytes(2 * 8), b"".join(columns), dropped=dropped)
        return older_value(schema, 1, bytes(3 * 8), columns, dropped)

    assert decode(value(2**62)).dropped == 2**62
    for dropped in (2**62 + 1, 2**64 - 1):
        with pytest.raises(HistoryError, match=f"damaged: {dropped} events before those that it has"):
            decode(value(dropped))


def test_hashes_of_no_event_are_refused() -> None:
    with pytest.raises(HistoryError, match="damaged: it has hashes, but of no event"):
        decode(value_of(2, bytes(2 * 8 * 2), b"a\0b\0c\0" * 2, bytes(2 * 8)))


@pytest.mark.parametrize("schema", [2, 3])
@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (b"", "its texts are not as many as its events"),
        (b"a\0", "its texts are not as many as its events"),
        (b"a\0b\0c\0", "its texts are not as many as its events"),
        (b"a\0b\0c", "its texts are not as many as its events"),
        (b"a\0b", "its texts are not as many as its events"),
        (b"a\0\xff\0", "invalid start byte"),
        (b"\xe8\xaa\0\x9e\0", "invalid continuation byte"),
    ],
)
def test_a_column_that_is_no_column_of_texts_is_refused(schema: int, column: int, texts: bytes, message: str) -> None:
    columns = [b"a\0b\0"] * 3
    assert decode(older_value(schema, 2, bytes(3 * 8 * 2), columns)).length == 2
    columns[column] = texts
    with pytest.raises(HistoryError, match=message):
        decode(older_value(schema, 2, bytes(3 * 8 * 2), columns))


def test_texts_without_an_event_are_refused() -> None:
    values = [value_of(0, b"", b"a")]
    for column in range(3):
        columns = [b""] * 3
        columns[column] = b"a"
        values.append(older_value(3, 0, b"", columns))
    for value in values:
        with pytest.raises(HistoryError, match="its texts are not as many as its events"):
            decode(value)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_byte_raises_nothing_but_history_error(data: st.DataObject) -> None:
    stored = bytearray(_stored())
    for _ in range(data.draw(st.integers(1, 3))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(stored))
