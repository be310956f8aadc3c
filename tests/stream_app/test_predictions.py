"""The prediction contract: its JSON Schema, its headers as CloudEvents 1.0, and what an erased user leaves."""

import json
import math
from datetime import UTC, datetime, timedelta

import jsonschema
import msgspec
import pytest
from cloudevents.v1.kafka import KafkaMessage, from_binary
from hypothesis import given
from hypothesis import strategies as st

from stream_app import predictions
from stream_app.events import EARLIEST_MS, LATEST_MS
from stream_app.predictions import Message, NextCategory, NextItem, Prediction, TimeToNext
from tests.stream_app.records import NOW_MS

SCHEMA = msgspec.json.schema(Prediction)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SOURCE = b"nextmove/shop"

PLAIN = Prediction(
    prediction_id="user-events-3-41",
    user_id="u",
    event_id=None,
    as_of=NOW_MS,
    next_behaviors={"view": 0.75, "purchase": 0.25},
    next_items=[NextItem("i1", 0.5, "view"), NextItem("i2", 0.125)],
    next_categories=[],
    purchase_probability=0.25,
    time_to_next_s=TimeToNext(1.0, 2.5, 3600.0),
    churn_probability=0.125,
    model_version="abc",
    history_length=7,
    fallback=None,
)

shares = st.floats(0, 1)
seconds = st.floats(0, 1e9)
predicted = st.builds(
    Prediction,
    prediction_id=st.text(min_size=1),
    user_id=st.text(min_size=1),
    event_id=st.none() | st.text(),
    as_of=st.integers(EARLIEST_MS, LATEST_MS),
    next_behaviors=st.dictionaries(st.text(), shares, max_size=4),
    next_items=st.lists(st.builds(NextItem, st.text(), shares, st.none() | st.text()), max_size=4),
    next_categories=st.lists(st.builds(NextCategory, st.text(), shares), max_size=3),
    purchase_probability=shares,
    time_to_next_s=st.builds(TimeToNext, seconds, seconds, seconds),
    churn_probability=shares,
    model_version=st.text(),
    history_length=st.integers(0, 50),
    fallback=st.none() | st.text(),
)


def cloud_event(message: Message) -> dict[str, object]:
    """The message as the reference implementation of CloudEvents reads it."""
    assert message.key is not None
    assert message.value is not None
    cloud = from_binary(KafkaMessage(dict(message.headers), message.key, message.value))
    return {**cloud.get_attributes(), "data": cloud.get_data()}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    fields = set(SCHEMA["$defs"]["Prediction"]["properties"])
    assert fields == set(Prediction.__struct_fields__)
    assert set(SCHEMA["$defs"]["Prediction"]["required"]) == fields


def test_a_prediction_by_hand() -> None:
    message = predictions.encode(PLAIN, SOURCE)
    assert message.key == b"u"
    assert json.loads(message.value or b"") == {
        "prediction_id": "user-events-3-41",
        "user_id": "u",
        "event_id": None,
        "as_of": NOW_MS,
        "next_behaviors": {"view": 0.75, "purchase": 0.25},
        "next_items": [
            {"item_id": "i1", "probability": 0.5, "behavior": "view"},
            {"item_id": "i2", "probability": 0.125},
        ],
        "next_categories": [],
        "purchase_probability": 0.25,
        "time_to_next_s": {"q10": 1.0, "q50": 2.5, "q90": 3600.0},
        "churn_probability": 0.125,
        "model_version": "abc",
        "history_length": 7,
        "fallback": None,
    }
    assert dict(message.headers)["prediction_id"] == b"user-events-3-41"


@given(predicted)
def test_whatever_is_encoded_is_valid_and_reads_back(prediction: Prediction) -> None:
    message = predictions.encode(prediction, SOURCE)
    assert message.value is not None
    VALIDATOR.validate(json.loads(message.value))
    assert msgspec.json.decode(message.value, type=Prediction) == prediction
    assert message.key == prediction.user_id.encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("purchase_probability", 1.5),
        ("churn_probability", math.nan),
        ("next_behaviors", {"view": -0.1}),
        ("next_items", [NextItem("i", 2.0)]),
        ("next_categories", [NextCategory("c", math.inf)]),
        ("time_to_next_s", TimeToNext(-1.0, 0.0, 0.0)),
        ("history_length", -1),
    ],
)
def test_the_schema_refuses_what_is_no_prediction(field: str, value: object) -> None:
    message = predictions.encode(msgspec.structs.replace(PLAIN, **{field: value}), SOURCE)
    assert not VALIDATOR.is_valid(json.loads(message.value or b""))


@given(predicted)
def test_the_headers_are_a_cloud_event_in_binary_mode(prediction: Prediction) -> None:
    message = predictions.encode(prediction, SOURCE)
    cloud = cloud_event(message)
    assert cloud["specversion"] == "1.0"
    assert cloud["id"] == prediction.prediction_id
    assert cloud["type"] == "nextmove.prediction.v1"
    assert cloud["source"] == "nextmove/shop"
    assert cloud["datacontenttype"] == "application/json"
    assert cloud["data"] == json.loads(message.value or b"")
    names = [name for name, _ in message.headers]
    assert len(names) == len(set(names))


@given(st.integers(EARLIEST_MS, LATEST_MS))
def test_the_time_is_that_of_the_event_to_the_millisecond(time_ms: int) -> None:
    cloud = cloud_event(predictions.encode(msgspec.structs.replace(PLAIN, as_of=time_ms), SOURCE))
    time = datetime.fromisoformat(str(cloud["time"]))
    assert str(cloud["time"]).endswith("Z")
    assert time == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)


def test_an_erasure_is_a_tombstone_that_says_what_it_is() -> None:
    message = predictions.erasure("用户", "user-events-0-9", SOURCE)
    assert (message.key, message.value) == ("用户".encode(), None)
    assert dict(message.headers) == {
        "prediction_id": b"user-events-0-9",
        "ce_specversion": b"1.0",
        "ce_id": b"user-events-0-9",
        "ce_type": b"nextmove.erasure.v1",
        "ce_source": b"nextmove/shop",
    }


def test_the_id_is_the_place_of_the_event() -> None:
    assert predictions.prediction_id("user-events", 3, 41) == "user-events-3-41"


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**63 - 1)), unique=True, max_size=20))
def test_no_two_places_of_a_topic_share_an_id(places: list[tuple[int, int]]) -> None:
    assert len({predictions.prediction_id("t", *place) for place in places}) == len(places)
