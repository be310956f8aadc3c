"""Whatever codec a producer compresses with, and whichever the worker itself is set to."""

import asyncio
import json
from pathlib import Path

from aiokafka import AIOKafkaProducer

from stream_app.broker import EmbeddedBroker
from tests import checker
from tests.checker import Names
from tests.integration.conftest import PARTITIONS, deployment
from tests.processes import WorkerProcess

CODECS = ("gzip", "snappy", "lz4", "zstd")


def test_compressed_events_are_answered_with_compressed_predictions(
    names: Names, shop_model: Path, tmp_path: Path
) -> None:
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), PARTITIONS)
    with EmbeddedBroker(topics) as broker:
        settings = deployment(broker.bootstrap, names, shop_model)
        with WorkerProcess(tmp_path / "worker.log", **settings, compression="zstd") as worker:
            for number, codec in enumerate(CODECS, 1):
                asyncio.run(send(broker.bootstrap, names.events, codec))
                checker.wait_for_answers(broker.bootstrap, names, at_least=number * 20, limit_s=60)
            assert worker.running


async def send(bootstrap: str, topic: str, codec: str) -> None:
    """Twenty events in one batch, or few."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, compression_type=codec, linger_ms=200) as producer:
        for number in range(20):
            event = {"user_id": f"{codec}{number}", "behavior": "search", "timestamp": 1_750_000_000_000}
            await producer.send(topic, json.dumps(event).encode(), key=event["user_id"].encode())
        await producer.flush()
