"""The event contract: bytes from a topic become an event, an erasure, or a rejection with a reason from a closed list.

Knows nothing of Kafka's client, of histories or of models, and reads no clock: "now" is the record's own timestamp.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from msgspec import Meta

from stream_app.behaviors import Behaviors

EARLIEST_MS = 631_152_000_000  # 1990-01-01: anything before is a mistake, most often seconds sent as milliseconds
LATEST_MS = 4_102_444_800_000  # 2100-01-01
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)
USER_ID_BYTES = 256
ID_CHARACTERS = 512

Id = Annotated[str, Meta(min_length=1, max_length=ID_CHARACTERS)]


class Reason(StrEnum):
    """Why a record became a dead letter."""

    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    TOO_LARGE = "too_large"
    TOO_LATE = "too_late"
    FROM_THE_FUTURE = "from_the_future"
    INFERENCE = "inference"
    EMIT = "emit"


class Rejected(Exception):
    """A record that will not become a prediction; `detail` is one line for a person."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class EventMessage(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What a user did, as a producer sends it: one JSON object in UTF-8."""

    user_id: Annotated[str, Meta(min_length=1, max_length=USER_ID_BYTES, description="1 to 256 bytes of UTF-8")]
    behavior: Annotated[str, Meta(min_length=1, description="a name or an alias of the behaviour vocabulary")]
    timestamp: Annotated[
        int | Annotated[datetime, Meta(tz=True)], Meta(description="when it happened: ms since 1970 UTC, or RFC 3339")
    ]
    item_id: Annotated[Id | None, Meta(description="required where the behaviour is about an item")] = None
    event_id: Annotated[Id | None, Meta(description="a second event with the same id changes no history")] = None
    session_id: Id | None = None
    category: Id | None = None
    price: float | None = None
    currency: str | None = None
    quantity: float | None = None
    text: str | None = None
    context: dict[str, Any] | None = None


class Event(NamedTuple):
    """A validated event; `behavior` is canonical and `time_ms` is ms UTC."""

    user_id: str
    behavior: str
    time_ms: int
    item_id: str | None = None
    category: str | None = None
    event_id: str | None = None


class Erasure(NamedTuple):
    """A null value for a key: forget this user."""

    user_id: str


class Record(Protocol):
    """What the core needs of a Kafka record; aiokafka's ConsumerRecord has it."""

    @property
    def topic(self) -> str:
        """Where it was read,"""

    @property
    def partition(self) -> int:
        """In which partition,"""

    @property
    def offset(self) -> int:
        """And at which place."""

    @property
    def timestamp(self) -> int:
        """When it was produced, ms UTC."""

    @property
    def key(self) -> bytes | None:
        """The user id in UTF-8, if the producer set one."""

    @property
    def value(self) -> bytes | None:
        """The event; None erases the user."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes]]:
        """Names and values."""


class EventDecoder:
    """Turns records into events. Unknown fields are left out and counted in `unknown_fields`, by record."""

    def __init__(self, behaviors: Behaviors, *, max_bytes: int = 1_000_000, max_future_ms: int = 3_600_000) -> None:
        self.unknown_fields = 0
        self._behaviors = behaviors
        self._max_bytes = max_bytes
        self._max_future_ms = max_future_ms
        self._decode = msgspec.json.Decoder(EventMessage).decode

    def decode_all(
        self, records: Iterable[Record]
    ) -> tuple[list[tuple[Record, Event | Erasure]], list[tuple[Record, Rejected]]]:
        """Events and erasures, and rejections, each with its record and in order.

        What has nothing unusual about it is decided here, in half the time; all else by `decode`.
        """
        events: list[tuple[Record, Event | Erasure]] = []
        rejects: list[tuple[Record, Rejected]] = []
        canonical, new, event_type = self._behaviors.canonical, tuple.__new__, Event
        for record in records:
            message = self._plain(record)
            if message is not None:
                user_id, behavior, time_ms = message.user_id, canonical.get(message.behavior), message.timestamp
                item, category, key = message.item_id, message.category, user_id.encode()
                if (
                    record.key == key
                    and len(key) <= USER_ID_BYTES
                    and b"\0" not in key
                    and behavior is not None
                    and item is not None
                    and "\0" not in item
                    and (category is None or "\0" not in category)
                    and type(time_ms) is int
                    and EARLIEST_MS <= time_ms <= LATEST_MS
                    and time_ms - self._max_future_ms <= record.timestamp
                ):
                    event = new(event_type, (user_id, behavior, time_ms, item, category, message.event_id))
                    events.append((record, event))
                    continue
            try:
                events.append((record, self.decode(record)))
            except Rejected as rejected:
                rejects.append((record, rejected))
        return events, rejects

    def _plain(self, record: Record) -> EventMessage | None:
        """The message of a record without headers, if it is plain JSON in the contract."""
        value = record.value
        if value is None or record.headers or len(value) > self._max_bytes:
            return None
        try:
            return self._decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def decode(self, record: Record) -> Event | Erasure:
        """The event in `record`. Raises Rejected."""
        value = record.value
        if value is None:
            return Erasure(_erased_user(record.key))
        if len(value) > self._max_bytes:
            raise Rejected(Reason.TOO_LARGE, f"{len(value)} bytes, the limit is {self._max_bytes}")
        try:
            message = self._decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            message = self._decode_slowly(value, record.headers)
        else:
            headers = record.headers
            if headers and message.event_id is None and any(name == "ce_specversion" for name, _ in headers):
                message = self._decode_slowly(value, headers)
        return self._validate(message, record)

    def _decode_slowly(self, value: bytes, headers: Sequence[tuple[str, bytes]]) -> EventMessage:
        """Anything but plain JSON in the contract: CloudEvents envelopes, unknown fields, or a mistake to name."""
        try:
            fields = msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Rejected(Reason.UNDECODABLE, _one_line(error)) from None
        if not isinstance(fields, dict):
            raise Rejected(Reason.INVALID, f"expected a JSON object, got {type(fields).__name__}")
        fields = _from_cloud_event(fields, {name: text for name, text in headers if name.startswith("ce_")})
        known = {name: fields[name] for name in EventMessage.__struct_fields__ if name in fields}
        if len(known) < len(fields):
            self.unknown_fields += 1
        try:
            return msgspec.convert(known, EventMessage)
        except msgspec.ValidationError as error:
            raise Rejected(Reason.INVALID, _one_line(error)) from None

    def _validate(self, message: EventMessage, record: Record) -> Event:
        user_id, item, category = message.user_id, message.item_id, message.category
        self._check_user(user_id, record.key)
        behavior = self._behaviors.resolve(message.behavior)
        if behavior is None:
            raise Rejected(Reason.INVALID, f"unknown behavior {message.behavior[:80]!r}")
        if item is None:
            if behavior in self._behaviors.about_item:
                raise Rejected(Reason.INVALID, f"a {behavior} event needs an item_id")
        elif "\0" in item:
            raise Rejected(Reason.INVALID, "item_id holds a NUL, which histories keep for themselves")
        if category is not None and "\0" in category:
            raise Rejected(Reason.INVALID, "category holds a NUL, which histories keep for themselves")
        timestamp, produced_ms = message.timestamp, record.timestamp
        time_ms = timestamp if isinstance(timestamp, int) else (timestamp - EPOCH) // MILLISECOND
        if not EARLIEST_MS <= time_ms <= LATEST_MS:
            raise Rejected(Reason.INVALID, f"timestamp {time_ms} is not in 1990 … 2100; the unit is ms since 1970 UTC")
        if 0 < produced_ms < time_ms - self._max_future_ms:
            ahead = (time_ms - produced_ms) / 1000
            raise Rejected(Reason.FROM_THE_FUTURE, f"it happened {ahead:.0f} s after it was sent")
        return Event(user_id, behavior, time_ms, item, category, message.event_id)

    def _check_user(self, user_id: str, key: bytes | None) -> None:
        encoded = user_id.encode()
        if len(encoded) > USER_ID_BYTES:
            raise Rejected(Reason.INVALID, f"user_id has {len(encoded)} bytes, the limit is {USER_ID_BYTES}")
        if b"\0" in encoded:
            raise Rejected(Reason.INVALID, "user_id holds a NUL, which stores keep for themselves")
        if key is not None and key != encoded:
            raise Rejected(Reason.INVALID, f"user_id {user_id!r} differs from the record's key {_show(key)}")


def _erased_user(key: bytes | None) -> str:
    if not key:
        raise Rejected(Reason.INVALID, "a null value without a key erases nobody")
    if len(key) > USER_ID_BYTES:
        raise Rejected(Reason.INVALID, f"the key has {len(key)} bytes, the limit is {USER_ID_BYTES}")
    if b"\0" in key:
        raise Rejected(Reason.INVALID, "the key holds a NUL, which stores keep for themselves")
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise Rejected(Reason.UNDECODABLE, f"the key {_show(key)} is not UTF-8") from None


def _from_cloud_event(fields: dict[str, Any], attributes: dict[str, bytes]) -> dict[str, Any]:
    """The event inside a CloudEvents 1.0 record, whose `id` and `time` stand in for a missing event_id and timestamp.

    Structured mode carries the attributes beside `data`, binary mode in headers named `ce_…`.
    Source: CloudEvents 1.0, Kafka protocol binding.
    """
    if "specversion" in fields and isinstance(fields.get("data"), dict):
        defaults = {"event_id": fields.get("id"), "timestamp": fields.get("time")}
        fields = fields["data"]
    elif "ce_specversion" in attributes:
        defaults = {"event_id": _text(attributes.get("ce_id")), "timestamp": _text(attributes.get("ce_time"))}
    else:
        return fields
    stand_ins = {field: value for field, value in defaults.items() if value is not None and fields.get(field) is None}
    return {**fields, **stand_ins}


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _show(key: bytes) -> str:
    return repr(key.decode(errors="backslashreplace"))[:120]
