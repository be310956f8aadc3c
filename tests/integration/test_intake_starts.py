"""What lies on the topic when a worker starts is read from the first record on, however slowly the start goes.

Faust makes the input partitions readable, seeks to the committed offsets, and only then clears its queues: records that
came in between were lost, silently.
"""

import asyncio
import json
from pathlib import Path

from aiokafka import AIOKafkaProducer

from model.window import WindowRule
from stream_app.broker import EmbeddedBroker
from stream_app.events import Event
from stream_app.history import HistoryRule, fold
from stream_app.history_layout import History
from tests import checker
from tests.checker import Names
from tests.integration.conftest import PARTITIONS, deployment
from tests.processes import WorkerProcess, nextmove


def test_nothing_is_lost_between_seek_and_start(names: Names, shop: Path, shop_model: Path, tmp_path: Path) -> None:
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), PARTITIONS)
    with EmbeddedBroker(topics) as broker:
        settings = deployment(broker.bootstrap, names, shop_model)
        with WorkerProcess(tmp_path / "first.log", **settings):
            events = play(broker.bootstrap, names, shop, settings)
            checker.wait_for_answers(broker.bootstrap, names, at_least=events, limit_s=60)
        events = play(broker.bootstrap, names, shop, settings)
        with WorkerProcess(
            tmp_path / "second.log", program=("tests.slow_seek_worker", "worker"), **settings
        ):  # has to recover
            checker.wait_for_answers(broker.bootstrap, names, at_least=events, limit_s=60)


def test_nothing_is_lost_where_a_fetch_outlives_the_recovery(
    names: Names, shop: Path, shop_model: Path, tmp_path: Path
) -> None:
    """A changelog to recover from, and a group that has committed nothing: what Faust throws away nobody seeks again."""
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), PARTITIONS)
    with EmbeddedBroker(topics) as broker:
        settings = deployment(broker.bootstrap, names, shop_model)
        asyncio.run(keep_histories(broker.bootstrap, names.changelog, 500))
        events = play(broker.bootstrap, names, shop, settings)
        with WorkerProcess(tmp_path / "worker.log", program=("tests.late_fetch_worker", "worker"), **settings):
            checker.wait_for_answers(broker.bootstrap, names, at_least=events, limit_s=60)


async def keep_histories(bootstrap: str, changelog: str, users: int) -> None:
    """On each partition, histories of `users` who are not heard of again."""
    event = Event("stranger", "view", 1_750_000_000_000, "item-1", None, None)
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        for partition in range(PARTITIONS):
            history, _ = fold(History.empty(partition), event, 0, HistoryRule(WindowRule(events=16)), 0)
            for number in range(users):
                user = f"stranger-{partition}-{number}".encode()
                await producer.send(changelog, history.stored, key=user, partition=partition)
        await producer.flush()


def play(bootstrap: str, names: Names, shop: Path, settings: dict[str, str]) -> int:
    """Send the last part of the log; the events on the topic then."""
    done = nextmove("replay", str(shop), "--to", "kafka", "--since", "0.4", "-q", **settings)
    assert done.returncode == 0, done.stderr
    return len(asyncio.run(checker.read_topic(bootstrap, names.events)))


def test_a_topic_whose_first_record_comes_alone(names: Names, shop_model: Path, tmp_path: Path) -> None:
    """Faust takes the offset 0 for "nothing read yet", and could commit nothing behind it."""
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), 1)
    with EmbeddedBroker(topics) as broker:
        settings = {**deployment(broker.bootstrap, names, shop_model), "partitions": "1"}
        with WorkerProcess(tmp_path / "worker.log", **settings) as worker:
            asyncio.run(send(broker.bootstrap, names.events, 1))
            checker.wait_for_answers(broker.bootstrap, names, at_least=1, limit_s=60)
            for answered in (21, 41):  # twice: a worker that cannot commit the first twenty ends meanwhile
                asyncio.run(send(broker.bootstrap, names.events, 20))
                checker.wait_for_answers(broker.bootstrap, names, at_least=answered, limit_s=60)
            assert worker.running


async def send(bootstrap: str, topic: str, count: int) -> None:
    """Events of as many users, together."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=500) as producer:
        for number in range(count):
            event = {"user_id": f"u{number}", "behavior": "search", "timestamp": 1_750_000_000_000}
            await producer.send(topic, json.dumps(event).encode(), key=event["user_id"].encode())
        await producer.flush()
