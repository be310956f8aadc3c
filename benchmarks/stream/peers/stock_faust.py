"""Stock Faust: an agent, a table of the user's last 50 events with its changelog, a small answer per event."""

from __future__ import annotations

from typing import Any

import faust

from benchmarks.stream.peers.deployment import HISTORY, Deployment

deployment = Deployment.from_environment()
app = faust.App(
    deployment.group,
    broker=f"kafka://{deployment.broker}",
    store="memory://",
    datadir=deployment.state_dir,
    topic_partitions=int(deployment.partitions),
    topic_allow_declare=False,  # the topics are there, and the embedded broker could create none
    topic_disable_leader=True,
    consumer_auto_offset_reset="earliest",
    # Without these nearly every record travels alone, at twice the CPU time
    producer_linger=0.02,  # s
    producer_max_batch_size=256 * 2**10,
    stream_buffer_maxsize=16_384,
)
events = app.topic(deployment.events, key_type=str, key_serializer="raw", value_serializer="json")
answers = app.topic(deployment.answers, key_serializer="raw", value_serializer="json")
histories = app.Table("histories", default=list)


@app.agent(events)
async def answer(stream: faust.StreamT[dict[str, Any]]) -> None:
    """Keep the event, answer it."""
    async for event in stream:
        user_id = event["user_id"]
        entry = [event["behavior"], event.get("item_id"), event["timestamp"]]
        history = [*histories[user_id], entry][-HISTORY:]
        histories[user_id] = history
        await answers.send(
            key=user_id, value={"user_id": user_id, "history_length": len(history), "last_item": entry[1]}
        )


if __name__ == "__main__":
    app.main()
