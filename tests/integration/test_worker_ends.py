"""A worker that cannot go on ends with an exit code that says so, and what it had in work comes again."""

import asyncio
from pathlib import Path

from aiokafka import AIOKafkaProducer

from stream_app.broker import EmbeddedBroker
from tests import checker
from tests.checker import Names
from tests.integration.conftest import deployment
from tests.processes import WorkerProcess
from tests.stream_app.records import event_record


def test_a_history_that_cannot_be_read_ends_the_worker_and_loses_nothing(
    names: Names, shop_model: Path, tmp_path: Path
) -> None:
    topics = (names.events, names.predictions, names.dead_letters, names.changelog)
    with EmbeddedBroker(dict.fromkeys(topics, 1)) as broker:
        asyncio.run(send(broker.bootstrap, names.changelog, b"written by somebody else"))
        settings = {**deployment(broker.bootstrap, names, shop_model), "partitions": "1"}
        with WorkerProcess(tmp_path / "worker.log", **settings) as worker:
            asyncio.run(send(broker.bootstrap, names.events, event_record("u", 0).value))
            assert worker.wait() == 1
            assert "stored history" in worker.log()
        assert asyncio.run(checker.read_topic(broker.bootstrap, names.predictions)) == []
        asyncio.run(send(broker.bootstrap, names.changelog, None))
        with WorkerProcess(tmp_path / "again.log", **settings):
            checker.wait_for_answers(broker.bootstrap, names, at_least=1, limit_s=60)


async def send(bootstrap: str, topic: str, value: bytes | None) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        await producer.send_and_wait(topic, value, key=b"u")
