"""The plain loop with answers as large as NextMove's, value and headers: what the bytes alone cost."""

from __future__ import annotations

import asyncio
from typing import Any

from aiokafka import ConsumerRecord

from benchmarks.stream.peers.deployment import Deployment
from benchmarks.stream.peers.full_prediction import full_message
from benchmarks.stream.peers.plain_loop import Answer, run

VALUE, HEADERS = full_message()


def full_answer(record: ConsumerRecord, *_: Any) -> Answer:
    """The same value for every event; the ids in the headers are the record's own."""
    name = b"%s-%d-%d" % (record.topic.encode(), record.partition, record.offset)
    return VALUE, [(key, name if key in ("prediction_id", "ce_id") else text) for key, text in HEADERS]


if __name__ == "__main__":
    asyncio.run(run(Deployment.from_environment(), full_answer))
