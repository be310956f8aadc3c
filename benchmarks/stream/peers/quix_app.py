"""A Quix StreamingDataFrame: the user's last 50 events in its state, which has a changelog, and a small answer."""

from __future__ import annotations

from typing import Any

from quixstreams import Application, State

from benchmarks.stream.peers.deployment import HISTORY, Deployment


def answer(event: dict[str, Any], state: State) -> dict[str, Any]:
    """Keep the event, answer it."""
    entry = [event["behavior"], event.get("item_id"), event["timestamp"]]
    history = [*state.get("history", []), entry][-HISTORY:]
    state.set("history", history)
    return {"user_id": event["user_id"], "history_length": len(history), "last_item": entry[1]}


def main() -> None:
    """Answer events until the process is ended."""
    deployment = Deployment.from_environment()
    app = Application(
        broker_address=deployment.broker,
        consumer_group=deployment.group,
        auto_offset_reset="earliest",
        state_dir=deployment.state_dir,
        producer_extra_config={"linger.ms": 5},
        loglevel="WARNING",
    )
    events = app.topic(deployment.events, value_deserializer="json", key_deserializer="str")
    answers = app.topic(deployment.answers, value_serializer="json", key_serializer="str")
    app.dataframe(events).apply(answer, stateful=True).to_topic(answers)
    app.run()


if __name__ == "__main__":
    main()
