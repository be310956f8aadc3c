"""JSON Schemas of the contracts, made from the very classes that decode and encode."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from stream_app.events import EventMessage
from stream_app.predictions import Prediction

CLASSES = {"event": EventMessage, "prediction": Prediction}


def json_schema(what: Literal["event", "prediction"] | str) -> dict[str, Any]:
    """The schema (draft 2020-12) of an event as it may be sent, or of a prediction as it is written."""
    (schema,), components = msgspec.json.schema_components([CLASSES[what]], ref_template="#/$defs/{name}")
    for component in components.values():
        component.pop("additionalProperties", None)  # unknown fields are counted, never an error
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": components}
