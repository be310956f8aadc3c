"""A plain aiokafka loop: parse, the user's last 50 events in a dict, a small answer. The state is lost when it ends.

An answer goes to the partition of its event, which spares the producer a hash in Python. Everything is delivered before
the offsets are committed, so that no event is lost; its state would be.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord

from benchmarks.stream.peers.deployment import HISTORY, Deployment

BATCH = 4000  # events; fewer cost a flush and a commit more often
Answer = tuple[bytes, Sequence[tuple[str, bytes]]]  # value and headers


def small_answer(record: ConsumerRecord, user_id: str, history: deque[tuple[str, str | None, int]]) -> Answer:
    """User, length of the history and its last item."""
    return orjson.dumps({"user_id": user_id, "history_length": len(history), "last_item": history[-1][1]}), ()


async def run(deployment: Deployment, answer: Callable[..., Answer] = small_answer) -> None:
    """Answer events until the process is ended."""
    histories: defaultdict[str, deque[tuple[str, str | None, int]]] = defaultdict(lambda: deque(maxlen=HISTORY))
    consumer = AIOKafkaConsumer(
        deployment.events,
        bootstrap_servers=deployment.broker,
        group_id=deployment.group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 * 2**20,
        fetch_max_wait_ms=50,  # a fetch of drained partitions keeps the others waiting for so long
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=deployment.broker, acks="all", linger_ms=5, max_batch_size=256 * 2**10
    )
    async with consumer, producer:
        while True:
            for partition, records in (await consumer.getmany(timeout_ms=200, max_records=BATCH)).items():
                for record in records:
                    event = orjson.loads(record.value)
                    user_id = event["user_id"]
                    history = histories[user_id]
                    history.append((event["behavior"], event.get("item_id"), event["timestamp"]))
                    value, headers = answer(record, user_id, history)
                    await producer.send(
                        deployment.answers, value, record.key, partition.partition, headers=headers or None
                    )
            await producer.flush()
            await consumer.commit()


if __name__ == "__main__":
    asyncio.run(run(Deployment.from_environment()))
