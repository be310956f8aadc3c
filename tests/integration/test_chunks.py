"""Chunks in trouble, on a real Kafka: nothing is lost, nothing acknowledged early, and no partition waits for another.

The device of these workers is held for as long as a test wants, so that what befalls them surely does so in mid-chunk.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from model.engine import Engine
from tests import checker
from tests.checker import Names
from tests.integration.conftest import PARTITIONS
from tests.integration.test_deliveries import configure
from tests.kafka_server import KafkaServer
from tests.processes import WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(600)]

START_MS = 1_750_000_000_000
Sent = tuple[bytes, bytes, int | None]  # key, value, partition; None: by key


def events(count: int, users: int, partition: int | None = None, **fields: object) -> list[Sent]:
    """Events of `users` in turn, a second apart; users of a given partition are named after it."""
    sent = []
    for number in range(count):
        user = f"user-{partition}-{number % users}"
        event = {"user_id": user, "behavior": "view", "item_id": "i0001", "timestamp": START_MS + 1000 * number}
        sent.append((user.encode(), json.dumps(event | fields).encode(), partition))
    return sent


class Held:
    """A deployment whose workers' devices can be held."""

    def __init__(self, kafka: KafkaServer, names: Names, settings: dict[str, str], model: Path, path: Path) -> None:
        self.kafka, self.names, self.settings = kafka, names, settings
        self._model, self._path = model, path
        self._hold = path / "hold"

    def hold(self) -> None:
        """From now on nothing comes back from any device."""
        self._hold.touch()

    def release(self) -> None:
        """Devices go on."""
        self._hold.unlink(missing_ok=True)

    def worker(self, name: str = "worker", **settings: str) -> WorkerProcess:
        program = ("tests.held_device_worker", str(self._hold))
        return WorkerProcess(self._path / f"{name}.log", program=program, **self.settings, **settings)

    def send(self, records: Sequence[Sent]) -> int:
        """Put records on the input topic; how many."""
        asyncio.run(send(self.kafka.bootstrap, self.names.events, records))
        return len(records)

    def wait_for_answers(self, at_least: int) -> None:
        checker.wait_for_answers(self.kafka.bootstrap, self.names, at_least, limit_s=120)

    def wait_until_at_work(self, worker: WorkerProcess) -> None:
        """Until a chunk is on the device."""
        wait_until(lambda: json.loads(worker.get("/healthz")[1])["chunk_in_work_s"] > 0)

    def lower(self, worker: WorkerProcess, topic: str, most_bytes: int) -> int:
        """Events reach the device, and then `topic` takes no larger batches any more; how many events."""
        self.hold()
        sent = self.send(events(40, users=8, timestamp=START_MS + 100_000))
        self.wait_until_at_work(worker)
        self.limit(topic, most_bytes)
        self.release()
        return sent

    def limit(self, topic: str, most_bytes: int = 1_048_588) -> None:
        """Set a topic's max.message.bytes; by default, as it was."""
        asyncio.run(configure(self.kafka.bootstrap, topic, max_message_bytes=most_bytes))

    def found(self) -> checker.Topics:
        """All that is on the topics, and every invariant holds."""
        found = asyncio.run(checker.read(self.kafka.bootstrap, self.names))
        assert checker.violations(found, Engine.load(self._model).window) == []
        return found


async def send(bootstrap: str, topic: str, records: Sequence[Sent]) -> None:
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, max_request_size=8_000_000, max_batch_size=500_000, linger_ms=20
    ) as producer:
        for key, value, partition in records:
            await producer.send(topic, value, key=key, partition=partition)
        await producer.flush()


def wait_until(holds: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def held(
    kafka: KafkaServer, names: Names, on_kafka: dict[str, str], shop_model: Path, tmp_path: Path
) -> Iterator[Held]:
    yield (deployment := Held(kafka, names, on_kafka, shop_model, tmp_path))
    deployment.release()


def test_ten_thousand_poison_records_among_good_ones(held: Held) -> None:
    poison: list[Sent] = [(b"user-None-%d" % (n % 50), b"\xff poison %d" % n, None) for n in range(10_000)]
    good = events(400, users=50)
    sent = held.send([*good[:200], *poison, *good[200:]])
    with held.worker() as worker:
        held.wait_for_answers(sent)
        assert worker.running
    found = held.found()
    assert len(found.predictions) == len(good)
    assert {checker.headers(letter)["dlq-reason"] for letter in found.dead_letters} == {b"undecodable"}
    assert sorted(letter.value for letter in found.dead_letters) == sorted(value for _, value, _ in poison)


def test_records_of_a_megabyte_among_small_ones(held: Held) -> None:
    """One that is just small enough is answered; one that is just too large is a dead letter."""
    small = events(300, users=30, partition=1)
    late = START_MS + 1000 * len(small)
    (fits,) = events(1, users=1, partition=1, timestamp=late, padding="")
    user, value, partition = fits
    fits = (user, value.replace(b'"padding": ""', b'"padding": "%s"' % (b"x" * (1_000_000 - len(value)))), partition)
    too_large = (user, fits[1].replace(b'"xx', b'"xxx'), partition)
    assert (len(fits[1]), len(too_large[1])) == (1_000_000, 1_000_001)
    held.limit(held.names.events, 2_000_000)
    sent = held.send([*small[:100], fits, *small[100:200], too_large, *small[200:]])
    with held.worker():
        held.wait_for_answers(sent)
    found = held.found()
    assert len(found.predictions) == len(small) + 1
    (letter,) = found.dead_letters
    assert (letter.value, checker.headers(letter)["dlq-reason"]) == (too_large[1], b"too_large")


def test_no_partition_waits_for_one_that_is_ten_times_hotter(held: Held) -> None:
    cold = [record for partition in range(1, PARTITIONS) for record in events(200, users=20, partition=partition)]
    hot = events(2000, users=400, partition=0)
    sent = held.send([*hot, *cold])
    with held.worker(chunk_records="50"):
        held.wait_for_answers(sent)
    found = held.found()
    last_cold_ms = max(record.timestamp for record in found.predictions if record.partition != 0)
    before = sum(record.timestamp < last_cold_ms for record in found.predictions if record.partition == 0)
    # in turn it has had about as many chunks as the others; two that are read ahead are allowed for
    assert before <= 200 + 2 * PARTITIONS * 50, "cold partitions waited"


def test_a_rebalance_waits_for_no_device_and_no_heartbeat_is_missed(held: Held) -> None:
    sent = held.send(events(600, users=60))
    held.hold()
    with held.worker("first", chunk_records="40") as first:
        held.wait_until_at_work(first)
        time.sleep(9)  # half as long again as its session lasts
        assert first.ready(), "still a member of its group"
        began = time.monotonic()
        with held.worker("second", chunk_records="40") as second:
            assert time.monotonic() - began < 60  # the device of the first one never came back
            wait_until(first.ready)
            held.release()
            held.wait_for_answers(sent)
            sent += held.send(events(100, users=60, timestamp=START_MS + 600_000))
            held.wait_for_answers(sent)
            assert (first.running, second.running) == (True, True)
    for log in (first.log(), second.log()):
        for sign in ("session expired", "generation id is not", "was not recognized", "Traceback"):
            assert sign not in log
    held.found()


def test_a_broker_that_dies_with_a_chunk_on_its_way(held: Held) -> None:
    sent = held.send(events(400, users=60))
    held.hold()
    with held.worker(chunk_records="40") as worker:
        held.wait_until_at_work(worker)
        held.kafka.kill()
        held.release()  # what comes from the device finds nobody to take it
        time.sleep(1)
        held.kafka.restart()
        deadline = time.monotonic() + 240
        while True:
            if not worker.running:  # gave up: whoever keeps it running starts it again
                worker.start()
            try:
                checker.wait_for_answers(held.kafka.bootstrap, held.names, sent, limit_s=5)
                break
            except AssertionError:
                assert time.monotonic() < deadline
    held.found()


def test_predictions_that_are_refused_from_one_chunk_to_the_next(held: Held) -> None:
    sent = held.send(events(40, users=8))
    with held.worker(chunk_records="4") as worker:
        held.wait_for_answers(sent)
        sent += held.lower(worker, held.names.predictions, 300)
        held.wait_for_answers(sent)
        held.limit(held.names.predictions)
        sent += held.send(events(40, users=8, timestamp=START_MS + 200_000))
        held.wait_for_answers(sent)
        assert worker.running
    found = held.found()
    assert (len(found.predictions), len(found.dead_letters)) == (40 + 40, 40)
    assert {checker.headers(letter)["dlq-reason"] for letter in found.dead_letters} == {b"emit"}


def test_histories_that_are_refused_end_the_worker_before_anything_is_committed(held: Held) -> None:
    """There is no way to do without; started again, with the limit as it was, it answers them as if for the first time."""
    sent = held.send(events(40, users=8))
    with held.worker(chunk_records="4") as worker:
        held.wait_for_answers(sent)
        sent += held.lower(worker, held.names.changelog, 100)
        assert worker.wait() == 1
        assert "refuses a history for its size" in worker.log()
        so_far = asyncio.run(checker.read(held.kafka.bootstrap, held.names))
        assert checker.committed_too_early(so_far) == []
        assert sum(so_far.committed.values()) == 40
        held.limit(held.names.changelog)
        worker.start()
        held.wait_for_answers(sent)
    held.found()


def test_a_burst_waits_on_the_broker_and_not_in_memory(held: Held) -> None:
    """Ten times what may be in the worker at once, twice: its memory follows from its settings, not from the burst."""
    with held.worker(chunk_records="64", fetch_bytes="65536") as worker:
        held.hold()
        held.send(events(2000, users=500))
        held.wait_until_at_work(worker)
        time.sleep(3)  # all that it reads ahead it has read
        before = worker.memory_bytes()
        held.send(events(25_000, users=500, padding="x" * 3500))
        time.sleep(6)
        # 25,000 records of 3.6 kB are 90 MB. Per partition one fetch of 64 KiB may wait, and one may be on its way.
        assert worker.memory_bytes() - before < 20_000_000
        assert worker.ready()
        held.release()
        held.send(events(10, users=5, timestamp=START_MS + 100_000_000))
        wait_until(lambda: lag(worker) == 0, limit_s=240)
    held.found()


def lag(worker: WorkerProcess) -> float:
    """Records that are not committed yet."""
    lines = worker.get("/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("nextmove_input_lag_records{"))
