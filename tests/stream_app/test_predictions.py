"""The prediction contract: its JSON Schema, its headers as CloudEvents 1.0, and what an erased user leaves."""

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import jsonschema
import msgspec
import pytest
from cloudevents.v1.kafka import KafkaMessage, from_binary
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from model.forecast import Category, Forecast, Item
from stream_app import predictions
from stream_app.events import EARLIEST_MS, LATEST_MS, Event
from stream_app.predictions import Message, NextCategory, NextItem, Prediction, PredictionEncoder, TimeToNext
from stream_app.schemas import json_schema
from tests.stream_app.records import NOW_MS

SCHEMA = json_schema("prediction")
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
ENCODER = PredictionEncoder(("view", "purchase"), "abc", "nextmove/shop")
EVENT = Event("u", "view", NOW_MS, "i0", "c0", None)


def _item(item_id: str, probability: float, behavior: str | None) -> Item:
    return {"item_id": item_id, "probability": probability, "behavior": behavior}


def _category(category: str, probability: float) -> Category:
    return {"category": category, "probability": probability}


FORECAST = Forecast(
    next_behaviors=[0.75, 0.25],
    next_items=[_item("i1", 0.5, "view"), _item("i2", 0.125, None)],
    next_categories=[],
    purchase_probability=0.25,
    time_to_next_s=(1.0, 2.5, 3600.0),
    churn_probability=0.125,
    fallback=None,
)


class Case(NamedTuple):
    """All that an encoder is told."""

    behaviors: list[str]
    model_version: str
    id_: str
    event: Event
    history_length: int
    forecast: Forecast

    def encode(self) -> Message:
        encoder = PredictionEncoder(self.behaviors, self.model_version, "nextmove/shop")
        return encoder.encode(self.id_, self.event, self.history_length, self.forecast)


shares = st.floats(0, 1)
seconds = st.floats(0, 1e9)
events = st.builds(
    Event,
    user_id=st.text(min_size=1),
    behavior=st.text(min_size=1),
    time_ms=st.integers(EARLIEST_MS, LATEST_MS),
    item_id=st.none() | st.text(min_size=1),
    category=st.none() | st.text(min_size=1),
    event_id=st.none() | st.text(min_size=1),
)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any event and any finite forecast."""
    behaviors = draw(st.lists(st.text(), max_size=4, unique=True))
    forecast = Forecast(
        next_behaviors=draw(st.lists(shares, min_size=len(behaviors), max_size=len(behaviors))),
        next_items=draw(st.lists(st.builds(_item, st.text(), shares, st.none() | st.text()), max_size=4)),
        next_categories=draw(st.lists(st.builds(_category, st.text(), shares), max_size=3)),
        purchase_probability=draw(shares),
        time_to_next_s=draw(st.tuples(seconds, seconds, seconds)),
        churn_probability=draw(shares),
        fallback=draw(st.none() | st.text()),
    )
    place = (draw(st.text(min_size=1)), draw(st.integers(0, 99)), draw(st.integers(0, 2**63 - 1)))
    id_ = predictions.prediction_id(*place)
    return Case(behaviors, draw(st.text()), id_, draw(events), draw(st.integers(0, 50)), forecast)


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
    message = ENCODER.encode("user-events-3-41", EVENT, 7, FORECAST)
    assert message.key == b"u"
    assert json.loads(message.value or b"") == {
        "prediction_id": "user-events-3-41",
        "user_id": "u",
        "event_id": None,
        "as_of": NOW_MS,
        "next_behaviors": {"view": 0.75, "purchase": 0.25},
        "next_items": [
            {"item_id": "i1", "probability": 0.5, "behavior": "view"},
            {"item_id": "i2", "probability": 0.125, "behavior": None},
        ],
        "next_categories": [],
        "purchase_probability": 0.25,
        "time_to_next_s": {"q10": 1.0, "q50": 2.5, "q90": 3600.0},
        "churn_probability": 0.125,
        "model_version": "abc",
        "history_length": 7,
        "fallback": None,
    }
    assert sorted(message.headers) == sorted(
        [
            ("prediction_id", b"user-events-3-41"),
            ("ce_specversion", b"1.0"),
            ("ce_id", b"user-events-3-41"),
            ("ce_type", b"nextmove.prediction.v1"),
            ("ce_source", b"nextmove/shop"),
            ("ce_time", b"2025-06-15T15:06:40.000Z"),
            ("content-type", b"application/json"),
        ]
    )


@given(cases())
def test_whatever_is_encoded_reads_back_as_what_it_was(case: Case) -> None:
    message = case.encode()
    event, forecast = case.event, case.forecast
    assert message.value is not None
    assert msgspec.json.decode(message.value, type=Prediction) == Prediction(
        prediction_id=case.id_,
        user_id=event.user_id,
        event_id=event.event_id,
        as_of=event.time_ms,
        next_behaviors=dict(zip(case.behaviors, forecast.next_behaviors, strict=True)),
        next_items=[NextItem(**item) for item in forecast.next_items],
        next_categories=[NextCategory(**category) for category in forecast.next_categories],
        purchase_probability=forecast.purchase_probability,
        time_to_next_s=TimeToNext(*forecast.time_to_next_s),
        churn_probability=forecast.churn_probability,
        model_version=case.model_version,
        history_length=case.history_length,
        fallback=forecast.fallback,
    )
    assert message.key == event.user_id.encode()


@given(cases())
def test_whatever_is_encoded_has_the_fields_of_the_contract_in_order_and_no_other(case: Case) -> None:
    """It is written from plain dictionaries, which nothing but this holds to the class."""
    fields = json.loads(case.encode().value or b"")
    VALIDATOR.validate(fields)
    assert tuple(fields) == Prediction.__struct_fields__
    assert tuple(fields["time_to_next_s"]) == TimeToNext.__struct_fields__
    assert all(tuple(item) == NextItem.__struct_fields__ for item in fields["next_items"])
    assert all(tuple(category) == NextCategory.__struct_fields__ for category in fields["next_categories"])
    assert list(fields["next_behaviors"]) == case.behaviors


def test_what_the_model_lists_goes_out_as_it_is_and_has_the_fields_of_the_contract() -> None:
    for listed, contract in ((Item, NextItem), (Category, NextCategory)):
        assert tuple(listed.__annotations__) == contract.__struct_fields__
        assert listed.__required_keys__ == set(contract.__struct_fields__)


@given(st.lists(cases(), max_size=4), cases())
def test_what_is_encoded_depends_on_nothing_that_came_before(before: list[Case], case: Case) -> None:
    used = PredictionEncoder(case.behaviors, case.model_version, "nextmove/shop")
    for other in before:
        used.encode(other.id_, other.event, other.history_length, replace(case.forecast, fallback="other"))
        used.erasure(other.event.user_id, other.id_)
    assert used.encode(case.id_, case.event, case.history_length, case.forecast) == case.encode()


@pytest.mark.parametrize("probabilities", [[], [1.0], [0.5, 0.25, 0.25]])
def test_an_answer_about_other_behaviors_is_never_encoded(probabilities: list[float]) -> None:
    with pytest.raises(ValueError, match="probabilities of 2 behaviours"):
        ENCODER.encode("t-0-0", EVENT, 1, replace(FORECAST, next_behaviors=probabilities))


@pytest.mark.parametrize(
    "wrong",
    [
        {"purchase_probability": 1.5},
        {"churn_probability": math.nan},
        {"next_behaviors": [-0.1, 1.0]},
        {"next_items": [_item("i", 2.0, None)]},
        {"next_categories": [_category("c", math.inf)]},
        {"time_to_next_s": (-1.0, 0.0, 0.0)},
    ],
)
def test_the_schema_refuses_what_is_no_prediction(wrong: dict[str, Any]) -> None:
    good = json.loads(ENCODER.encode("t-0-0", EVENT, 1, FORECAST).value or b"")
    assert VALIDATOR.is_valid(good)
    assert not VALIDATOR.is_valid({**good, "history_length": -1})
    message = ENCODER.encode("t-0-0", EVENT, 1, replace(FORECAST, **wrong))
    assert not VALIDATOR.is_valid(json.loads(message.value or b""))


@given(cases())
def test_the_headers_are_a_cloud_event_in_binary_mode(case: Case) -> None:
    message = case.encode()
    cloud = cloud_event(message)
    assert cloud["specversion"] == "1.0"
    assert cloud["id"] == case.id_
    assert cloud["type"] == "nextmove.prediction.v1"
    assert cloud["source"] == "nextmove/shop"
    assert cloud["datacontenttype"] == "application/json"
    assert cloud["data"] == json.loads(message.value or b"")
    names = [name for name, _ in message.headers]
    assert len(names) == len(set(names))
    assert dict(message.headers)["prediction_id"] == case.id_.encode()


near_a_second = st.builds(
    lambda second, beside: second * 1000 + beside,
    st.integers(EARLIEST_MS // 1000 + 1, LATEST_MS // 1000 - 1),
    st.sampled_from([-999, -1, 0, 1, 9, 99, 999]),
)


@given(st.integers(EARLIEST_MS, LATEST_MS) | near_a_second)
@example(EARLIEST_MS)
@example(LATEST_MS)
@example(951_782_399_999)  # the last moment before 29 February 2000
def test_the_time_is_that_of_the_event_to_the_millisecond(time_ms: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)
    written = dict(ENCODER.encode("t-0-0", EVENT._replace(time_ms=time_ms), 1, FORECAST).headers)["ce_time"].decode()
    assert written == moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"
    assert datetime.fromisoformat(written) == moment


def test_an_erasure_is_a_tombstone_that_says_what_it_is() -> None:
    message = ENCODER.erasure("用户", "user-events-0-9")
    assert (message.key, message.value) == ("用户".encode(), None)
    assert sorted(message.headers) == sorted(
        [
            ("prediction_id", b"user-events-0-9"),
            ("ce_specversion", b"1.0"),
            ("ce_id", b"user-events-0-9"),
            ("ce_type", b"nextmove.erasure.v1"),
            ("ce_source", b"nextmove/shop"),
        ]
    )


def test_the_id_is_the_place_of_the_event() -> None:
    assert predictions.prediction_id("user-events", 3, 41) == "user-events-3-41"


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2**63 - 1)), unique=True, max_size=20))
def test_no_two_places_of_a_topic_share_an_id(places: list[tuple[int, int]]) -> None:
    assert len({predictions.prediction_id("t", *place) for place in places}) == len(places)
