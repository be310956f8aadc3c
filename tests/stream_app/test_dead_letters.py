"""Dead letters: the record as it was, and headers that any reader of Spring's can decode."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.dead_letters import dead_letter, without_value
from stream_app.events import Reason, Rejected
from stream_app.predictions import Message
from tests.stream_app.records import NOW_MS, FakeRecord

OWN = {
    "kafka_dlt-original-topic",
    "kafka_dlt-original-partition",
    "kafka_dlt-original-offset",
    "kafka_dlt-original-timestamp",
    "kafka_dlt-exception-message",
    "dlq-reason",
    "dlq-attempt",
}
INVALID = Rejected(Reason.INVALID, "no item")

foreign = st.tuples(st.text(max_size=8).filter(lambda name: not name.startswith(("kafka_dlt-", "dlq-"))), st.binary())
own = st.tuples(st.sampled_from([*OWN, "dlq-anything", "kafka_dlt-exception-fqcn"]), st.binary(max_size=8) | st.none())
records = st.builds(
    FakeRecord,
    topic=st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True),
    partition=st.integers(0, 2**31 - 1),
    offset=st.integers(0, 2**63 - 1),
    timestamp=st.integers(-1, 2**63 - 1),
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=st.lists(foreign | own, max_size=6).map(tuple),
)


def again(letter: Message, **place: Any) -> FakeRecord:
    """The letter sent to the input topic once more."""
    return FakeRecord(key=letter.key, value=letter.value, headers=tuple(letter.headers), **place)


@given(records, st.sampled_from(Reason), st.text())
def test_any_record_becomes_a_letter_that_says_where_it_came_from(
    record: FakeRecord, reason: Reason, detail: str
) -> None:
    letter = dead_letter(record, Rejected(reason, detail))
    assert letter.key == record.key
    nothing = record.key is None and record.value is None  # which aiokafka refuses to send
    assert letter.value == (b"" if nothing else record.value)
    kept = [(name, value) for name, value in record.headers if not name.startswith(("kafka_dlt-", "dlq-"))]
    assert letter.headers[: len(kept)] == kept
    written = letter.headers[len(kept) :]
    headers = dict(written)
    assert headers.pop("dlq-value-omitted", None) == (b"null" if nothing else None)
    assert headers.keys() == OWN
    assert len(written) == len(OWN) + nothing
    assert headers["kafka_dlt-original-topic"].decode() == record.topic
    assert int.from_bytes(headers["kafka_dlt-original-partition"], "big") == record.partition
    assert int.from_bytes(headers["kafka_dlt-original-offset"], "big") == record.offset
    assert int.from_bytes(headers["kafka_dlt-original-timestamp"], "big", signed=True) == record.timestamp
    assert headers["kafka_dlt-exception-message"].decode() == detail
    assert headers["dlq-reason"].decode() == reason.value
    assert int(headers["dlq-attempt"]) >= 1


def test_numbers_have_the_widths_of_java() -> None:
    headers = dict(dead_letter(FakeRecord(partition=1, offset=258, timestamp=NOW_MS), INVALID).headers)
    assert headers["kafka_dlt-original-partition"] == b"\x00\x00\x00\x01"
    assert headers["kafka_dlt-original-offset"] == b"\x00\x00\x00\x00\x00\x00\x01\x02"
    assert len(headers["kafka_dlt-original-timestamp"]) == 8


def test_the_reasons_are_a_closed_list() -> None:
    assert {reason.value for reason in Reason} == {
        "undecodable",
        "invalid",
        "too_large",
        "too_late",
        "from_the_future",
        "inference",
        "emit",
    }


def test_each_sending_counts_as_an_attempt_and_replaces_what_was_said_before() -> None:
    letter = dead_letter(FakeRecord(offset=5, value=b"x", headers=(("trace", b"1"),)), INVALID)
    for attempt in range(2, 12):
        letter = dead_letter(again(letter, offset=attempt), Rejected(Reason.TOO_LATE, f"try {attempt}"))
        headers = dict(letter.headers)
        assert len(headers) == len(letter.headers) == 1 + len(OWN)
        assert headers["trace"] == b"1"
        assert headers["dlq-attempt"] == str(attempt).encode()
        assert headers["dlq-reason"] == b"too_late"
        assert int.from_bytes(headers["kafka_dlt-original-offset"], "big") == attempt


@pytest.mark.parametrize(
    "written", [b"", b"one", b"\xff", b"-3", b"1.5", b"1_0", b"9" * 4300, b"9" * 5000, "٣".encode(), None]
)
def test_an_attempt_that_somebody_else_wrote_stops_nothing(written: bytes | None) -> None:
    record = FakeRecord(headers=(("dlq-attempt", written),))  # type: ignore[arg-type]  # Kafka knows null headers
    assert dict(dead_letter(record, INVALID).headers)["dlq-attempt"] == b"1"


def test_a_detail_that_is_no_unicode_stops_nothing() -> None:
    headers = dict(dead_letter(FakeRecord(), Rejected(Reason.INVALID, "\ud800")).headers)
    assert headers["kafka_dlt-exception-message"] == b"\\ud800"


@given(records)
def test_a_letter_without_its_value_says_how_large_it_was(record: FakeRecord) -> None:
    letter = dead_letter(record, INVALID)
    short = without_value(letter)
    assert (short.key, short.value) == (record.key, b"" if record.key is None else None)
    assert short.headers == [*letter.headers, ("dlq-value-omitted", str(len(record.value or b"")).encode())]


def test_a_letter_sent_again_says_no_more_that_its_value_was_omitted() -> None:
    short = without_value(dead_letter(FakeRecord(value=b"xx"), INVALID))
    assert "dlq-value-omitted" not in dict(dead_letter(again(short), INVALID).headers)
