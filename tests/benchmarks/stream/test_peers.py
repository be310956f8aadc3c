"""What peers send is what NextMove would."""

import orjson

from benchmarks.stream.peers.constant_predictor import ConstantPredictor, full_forecast
from benchmarks.stream.peers.deployment import Deployment
from benchmarks.stream.peers.full_prediction import full_message
from stream_app.events import Event
from stream_app.predictions import PredictionEncoder


def test_the_full_prediction_is_as_large_as_nextmoves() -> None:
    value, headers = full_message()
    told = orjson.loads(value)
    source = dict(headers)["ce_source"].decode()
    encoder = PredictionEncoder(ConstantPredictor.behaviors, ConstantPredictor.version, source)
    event = Event(told["user_id"], "view", told["as_of"], "i000001", "c0001", told["event_id"])
    ours = encoder.encode(told["prediction_id"], event, told["history_length"], full_forecast())
    assert orjson.loads(ours.value) == told
    assert sorted(ours.headers) == sorted(headers)


def test_a_deployment_survives_its_environment() -> None:
    deployment = Deployment("b:1", "g", "in", "out", "4", "/tmp")
    assert Deployment.from_environment(deployment.environment()) == deployment
