"""Kafka records for tests, without a Kafka client."""

import json
from typing import Any, NamedTuple

NOW_MS = 1_750_000_000_000  # a moment in June 2025


class FakeRecord(NamedTuple):
    """What aiokafka's ConsumerRecord looks like to the core."""

    topic: str = "user-events"
    partition: int = 0
    offset: int = 0
    timestamp: int = NOW_MS
    key: bytes | None = None
    value: bytes | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def json_record(fields: Any, *, offset: int = 0, **place: Any) -> FakeRecord:
    """A record without a key whose value is `fields` as JSON."""
    return FakeRecord(offset=offset, value=json.dumps(fields).encode(), **place)


def event_record(user: str, offset: int, time_ms: int = NOW_MS, **fields: Any) -> FakeRecord:
    """A keyed event: a view of item `i` at `time_ms`, unless `fields` say otherwise."""
    event = {"user_id": user, "behavior": "view", "item_id": "i", "timestamp": time_ms, **fields}
    return FakeRecord(offset=offset, key=user.encode(), value=json.dumps(event).encode())
