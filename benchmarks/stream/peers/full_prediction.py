"""One prediction of full size, as NextMove sends it; `nextmove schema prediction` names the fields."""

from __future__ import annotations

import orjson

from benchmarks.stream.peers.constant_predictor import BEHAVIORS, ConstantPredictor, full_forecast

PREDICTION_ID = "nextmove-constant-00000000-events-0-12345"


def full_message() -> tuple[bytes, list[tuple[str, bytes]]]:
    """Value and headers."""
    forecast = full_forecast()
    value = {
        "prediction_id": PREDICTION_ID,
        "user_id": "u0012345",
        "event_id": 32 * "0",
        "as_of": 1_704_067_200_000,
        "next_behaviors": dict(zip(BEHAVIORS, forecast.next_behaviors, strict=True)),
        "next_items": forecast.next_items,
        "next_categories": forecast.next_categories,
        "purchase_probability": forecast.purchase_probability,
        "time_to_next_s": dict(zip(("q10", "q50", "q90"), forecast.time_to_next_s, strict=True)),
        "churn_probability": forecast.churn_probability,
        "model_version": ConstantPredictor.version,
        "history_length": 10,
        "fallback": None,
    }
    headers = [
        ("prediction_id", PREDICTION_ID.encode()),
        ("ce_specversion", b"1.0"),
        ("ce_id", PREDICTION_ID.encode()),
        ("ce_type", b"nextmove.prediction.v1"),
        ("ce_source", b"nextmove/nextmove-constant-00000000"),
        ("ce_time", b"2024-01-01T00:00:00.000Z"),
        ("content-type", b"application/json"),
    ]
    return orjson.dumps(value), headers
