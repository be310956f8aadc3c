"""The schemas agree with the classes: what is written fits, and what does not fit is refused by both."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from stream_app import behaviors
from stream_app.events import EventDecoder, Rejected
from stream_app.schemas import json_schema
from tests.stream_app.records import NOW_MS, event_record, json_record
from tests.stream_app.test_pipeline import pipeline, run

DECODER = EventDecoder(behaviors.load())
EVENT = {"user_id": "u", "behavior": "view", "item_id": "i", "timestamp": NOW_MS}


def fits(what: str, value: Any) -> bool:
    return bool(Draft202012Validator(json_schema(what)).is_valid(value))


def test_a_prediction_as_it_is_written_fits() -> None:
    _, outputs = run(pipeline(), [event_record("u", 0), event_record("u", 1, item_id="unknown")])
    for _, message in outputs.predictions:
        assert fits("prediction", json.loads(message.value or b""))
    assert not fits("prediction", {})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"timestamp": "2025-06-15T15:06:40Z"},
        {"event_id": "e", "session_id": "s", "category": "c", "price": 1.5, "currency": "EUR", "quantity": 2},
        {"text": "red shoes", "context": {"page": 3}},
        {"something": "else"},
    ],
)
def test_an_event_that_is_taken_fits(fields: dict[str, Any]) -> None:
    event = {**EVENT, **fields}
    DECODER.decode(json_record(event))
    assert fits("event", event)


@pytest.mark.parametrize(
    "fields",
    [{"user_id": 7}, {"user_id": ""}, {"behavior": None}, {"timestamp": True}, {"price": "1.5"}, {"item_id": ["a"]}],
)
def test_an_event_that_does_not_fit_is_refused(fields: dict[str, Any]) -> None:
    event = {**EVENT, **fields}
    assert not fits("event", event)
    with pytest.raises(Rejected):
        DECODER.decode(json_record(event))
