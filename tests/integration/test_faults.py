"""Workers that come, go and die, on a real Kafka: partitions move, stores are recovered, brokers fail."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.engine import Engine
from tests import checker
from tests.checker import Names, wait_for_answers
from tests.kafka_server import KafkaServer
from tests.processes import WorkerProcess, nextmove

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]


def play(shop: Path, settings: dict[str, str], since: str = "0.5") -> None:
    done = nextmove("replay", str(shop), "--to", "kafka", "--since", since, "-q", **settings)
    assert done.returncode == 0, done.stderr


def check(kafka: KafkaServer, names: Names, model: Path) -> checker.Topics:
    """Every invariant holds, and every event is committed."""
    found = asyncio.run(checker.read(kafka.bootstrap, names))
    assert checker.violations(found, Engine.load(model).window) == []
    return found


def answered(kafka: KafkaServer, names: Names) -> int:
    """Events with a prediction or a dead letter: of those sent a second time some are too late."""
    outputs = [
        record
        for topic in (names.predictions, names.dead_letters)
        for record in asyncio.run(checker.read_topic(kafka.bootstrap, topic))
    ]
    return len({checker.cause(record) for record in outputs})


def events_of(kafka: KafkaServer, names: Names) -> int:
    return len(asyncio.run(checker.read_topic(kafka.bootstrap, names.events)))


def test_a_rocksdb_store_survives_a_kill(
    kafka: KafkaServer, names: Names, on_kafka: dict[str, str], shop: Path, shop_model: Path, tmp_path: Path
) -> None:
    settings = {**on_kafka, "store": "rocksdb://", "data_dir": str(tmp_path / "data")}
    play(shop, settings, since="0")
    events = events_of(kafka, names)
    worker = WorkerProcess(tmp_path / "worker.log", **settings).start()
    try:
        wait_for_answers(kafka.bootstrap, names, at_least=events // 4)
        worker.kill()
        assert list((tmp_path / "data").rglob("*.db")), "nothing was stored"
        worker.start()
        play(shop, settings, since="0.9")  # for users whose histories only the store can know
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names))
    finally:
        assert worker.stop() == 0
    check(kafka, names, shop_model)


def test_partitions_move_between_workers_and_back(
    kafka: KafkaServer, names: Names, on_kafka: dict[str, str], shop: Path, shop_model: Path, tmp_path: Path
) -> None:
    first = WorkerProcess(tmp_path / "first.log", **on_kafka).start()
    second = WorkerProcess(tmp_path / "second.log", **on_kafka)
    try:
        play(shop, on_kafka, since="0.7")
        second.start()  # half of the partitions move, in the middle of the work
        third_of_the_shop = events_of(kafka, names)
        play(shop, on_kafka, since="0.9")  # the same events again: their users are known by now
        first.kill()  # and all of them go to the second
        events = events_of(kafka, names)
        assert events > third_of_the_shop
        wait_for_answers(kafka.bootstrap, names, at_least=events)
        first.start()
        play(shop, on_kafka, since="0.95")
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names))
    finally:
        codes = [worker.stop() for worker in (first, second) if worker.running]
    assert codes == [0, 0]
    check(kafka, names, shop_model)


def test_what_a_worker_keeps_is_not_read_again_when_partitions_move(
    kafka: KafkaServer, names: Names, on_kafka: dict[str, str], shop: Path, shop_model: Path, tmp_path: Path
) -> None:
    """Faust's memory store does not know how far it follows the changelog: all that a worker wrote it would read again."""
    first = WorkerProcess(tmp_path / "first.log", **on_kafka).start()
    second = WorkerProcess(tmp_path / "second.log", **on_kafka)
    try:
        play(shop, on_kafka, since="0.7")
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names))
        second.start()
        wait_for(lambda: times_recovered(tmp_path / "second.log") == 1)
        play(shop, on_kafka, since="0.9")
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names))
        assert times_recovered(tmp_path / "first.log") == 0, "what it has kept it read again"
        assert second.stop() == 0
        wait_for(lambda: times_recovered(tmp_path / "first.log") == 1)  # what has come back
        play(shop, on_kafka, since="0.95")
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names))
    finally:
        codes = [worker.stop() for worker in (first, second) if worker.running]
    assert codes == [0]
    check(kafka, names, shop_model)


def times_recovered(log: Path) -> int:
    """How often a worker has read histories from the changelog."""
    return log.read_text().count("Restoring state from changelog topics")


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)


def test_the_broker_dies_and_comes_back(
    kafka: KafkaServer, names: Names, on_kafka: dict[str, str], shop: Path, shop_model: Path, tmp_path: Path
) -> None:
    play(shop, on_kafka, since="0")
    worker = WorkerProcess(tmp_path / "worker.log", **on_kafka).start()
    try:
        wait_for_answers(kafka.bootstrap, names, at_least=events_of(kafka, names) // 4)
        kafka.kill()
        time.sleep(2)  # the outage
        kafka.restart()
        play(shop, on_kafka, since="0.9")
        events = events_of(kafka, names)
        deadline = time.monotonic() + 240
        while True:  # a worker that gives up is started again, as whoever keeps it running would
            if not worker.running:
                worker.start()
            if answered(kafka, names) >= events:
                break
            assert time.monotonic() < deadline, f"{answered(kafka, names)} of {events} answered"
            time.sleep(0.5)
    finally:
        if not kafka.is_running:
            kafka.restart()
        worker.stop()
    check(kafka, names, shop_model)


@pytest.mark.parametrize("busy", [False, True])
def test_a_worker_ends_when_it_is_told_to_even_without_its_broker(
    on_kafka: dict[str, str], kafka: KafkaServer, names: Names, shop: Path, tmp_path: Path, busy: bool
) -> None:
    if busy:
        play(shop, on_kafka, since="0")
    with WorkerProcess(tmp_path / "worker.log", **on_kafka, shutdown_s="5") as worker:
        if busy:
            wait_for_answers(kafka.bootstrap, names, at_least=1)
        kafka.kill()
        try:
            worker.stop(timeout_s=45)  # of Faust's own accord it would wait for its last commit, and for ever
        finally:
            kafka.restart()
