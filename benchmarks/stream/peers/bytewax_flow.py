"""A bytewax dataflow: Kafka in, a stateful map that keeps the user's last 50 events, Kafka out. Recovery is off."""

from __future__ import annotations

from typing import Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

from benchmarks.stream.peers.deployment import HISTORY, Deployment

History = list[tuple[str, str | None, int]]


def parse(message: KafkaSourceMessage) -> tuple[str, dict[str, Any]]:
    """User and event."""
    event = orjson.loads(message.value)
    return event["user_id"], event


def keep(history: History | None, event: dict[str, Any]) -> tuple[History, bytes]:
    """The history with the event in it, and the answer."""
    history = history or []
    history.append((event["behavior"], event.get("item_id"), event["timestamp"]))
    if len(history) > HISTORY:
        del history[0]
    answer = {"user_id": event["user_id"], "history_length": len(history), "last_item": history[-1][1]}
    return history, orjson.dumps(answer)


def message(answer: tuple[str, bytes]) -> KafkaSinkMessage:
    """The answer keyed by user."""
    user_id, value = answer
    return KafkaSinkMessage(user_id.encode(), value)


deployment = Deployment.from_environment()
flow = Dataflow("answers")
events = kop.input("events", flow, brokers=[deployment.broker], topics=[deployment.events], batch_size=1000)
answers = op.stateful_map("histories", op.map("parse", events.oks, parse), keep)
kop.output(
    "answers",
    op.map("message", answers, message),
    brokers=[deployment.broker],
    topic=deployment.answers,
    add_config={"linger.ms": "5", "partitioner": "murmur2_random"},
)
