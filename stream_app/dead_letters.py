"""What a rejected record becomes: its key and value untouched, and headers that say where it came from and why.

The `kafka_dlt-…` headers are those of Spring for Apache Kafka's DeadLetterPublishingRecoverer: texts in UTF-8, partition
as 4 and offset and timestamp as 8 bytes, big endian.
"""

from __future__ import annotations

from stream_app.events import Record, Rejected
from stream_app.predictions import Message

ATTEMPT = "dlq-attempt"
REASON = "dlq-reason"
OMITTED = "dlq-value-omitted"
OWN = ("kafka_dlt-", "dlq-")  # prefixes of the headers that this module writes


def dead_letter(record: Record, rejected: Rejected) -> Message:
    """The dead letter for `record`; its attempt is one more than that of the record, if it was sent again before."""
    attempt = _attempts_before(record) + 1
    headers = [
        *((name, value) for name, value in record.headers if not name.startswith(OWN)),
        ("kafka_dlt-original-topic", record.topic.encode()),
        ("kafka_dlt-original-partition", record.partition.to_bytes(4, "big")),
        ("kafka_dlt-original-offset", record.offset.to_bytes(8, "big")),
        ("kafka_dlt-original-timestamp", record.timestamp.to_bytes(8, "big", signed=True)),
        ("kafka_dlt-exception-message", rejected.detail.encode(errors="backslashreplace")),
        (REASON, rejected.reason.encode()),
        (ATTEMPT, str(attempt).encode()),
    ]
    if record.key is None and record.value is None:
        return _keyless(Message(None, None, [*headers, (OMITTED, b"null")]))
    return Message(record.key, record.value, headers)


def without_value(letter: Message) -> Message:
    """`letter` for a topic that refuses its size: the original stays where its headers point."""
    size = str(len(letter.value or b"")).encode()
    return _keyless(Message(letter.key, None, [*letter.headers, (OMITTED, size)]))


def _keyless(letter: Message) -> Message:
    """A record with neither key nor value is one that aiokafka refuses to send: the value is empty then."""
    return letter._replace(value=b"") if letter.key is None else letter


def _attempts_before(record: Record) -> int:
    """Anybody may write headers: what is no small number there counts as none."""
    written = next((value for name, value in record.headers if name == ATTEMPT), None) or b""
    return int(written) if written.isdigit() and len(written) < 10 else 0
