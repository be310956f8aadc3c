"""The prediction contract: what a reader of the output topic gets, and how it is encoded.

Knows nothing of Kafka's client and nothing of how a forecast is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, NamedTuple, Protocol

import msgspec
from msgspec import Meta

EVENT_TYPE = b"nextmove.prediction.v1"
ERASURE_TYPE = b"nextmove.erasure.v1"

Probability = Annotated[float, Meta(ge=0, le=1)]
Header = tuple[str, bytes]


class NextItem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An item that may come next, and what the user will most likely do with it."""

    item_id: str
    probability: Probability
    behavior: str | None = None


class NextCategory(msgspec.Struct, frozen=True):
    """A category that may come next."""

    category: str
    probability: Probability


class TimeToNext(msgspec.Struct, frozen=True):
    """Quantiles of the time until the user's next event, in seconds."""

    q10: Annotated[float, Meta(ge=0)]
    q50: Annotated[float, Meta(ge=0)]
    q90: Annotated[float, Meta(ge=0)]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """What a user does next, as of one event."""

    prediction_id: Annotated[
        str, Meta(description="topic-partition-offset of the event that caused it; the same on every replay")
    ]
    user_id: str
    event_id: str | None
    as_of: Annotated[int, Meta(description="the event's own time, ms since 1970 UTC")]
    next_behaviors: Annotated[dict[str, Probability], Meta(description="for each behaviour; sums to 1")]
    next_items: Annotated[list[NextItem], Meta(description="most probable first")]
    next_categories: Annotated[list[NextCategory], Meta(description="most probable first; empty if the log has none")]
    purchase_probability: Annotated[Probability, Meta(description="of the goal behaviour within its horizon")]
    time_to_next_s: TimeToNext
    churn_probability: Annotated[Probability, Meta(description="of no event at all within its horizon")]
    model_version: str
    history_length: Annotated[int, Meta(ge=0, description="events that the prediction looked at")]
    fallback: Annotated[str | None, Meta(description="null, or why a baseline answered")]


class Message(NamedTuple):
    """A record to be produced: `value` None is a tombstone."""

    key: bytes | None
    value: bytes | None
    headers: list[Header]


class Forecast(Protocol):
    """What the core needs of a model's answer for one window; the model package has it."""

    @property
    def next_behaviors(self) -> Sequence[float]:
        """Probabilities in the order of the engine's behaviours."""

    @property
    def next_items(self) -> Sequence[tuple[str, float, str | None]]:
        """(item, probability, behaviour with it), most probable first."""

    @property
    def next_categories(self) -> Sequence[tuple[str, float]]:
        """(category, probability), most probable first."""

    @property
    def purchase_probability(self) -> float:
        """Of the goal behaviour within its horizon."""

    @property
    def time_to_next_s(self) -> tuple[float, float, float]:
        """Quantiles 0.1, 0.5, 0.9 in seconds."""

    @property
    def churn_probability(self) -> float:
        """Of no event within its horizon."""

    @property
    def fallback(self) -> str | None:
        """None, or why a baseline answered."""


_encode = msgspec.json.Encoder().encode


def prediction_id(topic: str, partition: int, offset: int) -> str:
    """The id of the prediction that the record at this place causes."""
    return f"{topic}-{partition}-{offset}"


def encode(prediction: Prediction, source: bytes) -> Message:
    """`prediction` as a record keyed by user, with CloudEvents 1.0 attributes (binary mode) as headers.

    `source` is the CloudEvents source: the application that predicted.
    """
    headers = [
        *_attributes(prediction.prediction_id, EVENT_TYPE, source),
        ("ce_time", _rfc3339(prediction.as_of)),
        ("content-type", b"application/json"),
    ]
    return Message(prediction.user_id.encode(), _encode(prediction), headers)


def erasure(user_id: str, id_: str, source: bytes) -> Message:
    """The null-valued record that tells readers to forget a user."""
    return Message(user_id.encode(), None, _attributes(id_, ERASURE_TYPE, source))


def _attributes(id_: str, type_: bytes, source: bytes) -> list[Header]:
    name = id_.encode()
    return [
        ("prediction_id", name),
        ("ce_specversion", b"1.0"),
        ("ce_id", name),
        ("ce_type", type_),
        ("ce_source", source),
    ]


def _rfc3339(time_ms: int) -> bytes:
    time = datetime.fromtimestamp(time_ms / 1000, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
