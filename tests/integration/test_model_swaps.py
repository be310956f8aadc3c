"""Another model under a worker that is at work, on a real Kafka: nothing is lost, nothing is mixed, and nobody waits."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from aiokafka import AIOKafkaProducer

from model.window import WindowRule
from tests import checker
from tests.artefacts import BEHAVIORS, RULE, published, untrained
from tests.checker import Names, wait_for_answers
from tests.integration.conftest import deployed
from tests.kafka_server import KafkaServer
from tests.processes import WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

USERS = 50
TOGETHER = 10  # events, every 20 ms


class Stream:
    """Events that come all the time, numbered by their ids; as long as the block lasts."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._send()))
        self.sent = 0

    def go_on(self, events: int = 200) -> int:
        """Until so many more have come; how many there are now."""
        wanted = self.sent + events
        wait_for(lambda: self.sent >= wanted)
        return self.sent

    def end(self) -> None:
        """No more events; all are sent."""
        self._end.set()
        self._thread.join()

    async def _send(self) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap) as producer:
            for number in count():
                user = f"user-{number % USERS}"
                event: dict[str, Any] = {
                    "user_id": user,
                    "behavior": BEHAVIORS[number % 3],
                    "item_id": f"i{number % 90}",
                }
                event |= {"timestamp": int(time.time() * 1000), "event_id": str(number)}
                await producer.send(self._topic, json.dumps(event).encode(), key=user.encode())
                if number % TOGETHER == TOGETHER - 1:
                    await producer.flush()
                    self.sent = number + 1
                    if self._end.is_set():
                        return
                    await asyncio.sleep(0.02)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def wait_for(condition: Callable[[], bool], limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def shows(worker: WorkerProcess, *lines: str) -> bool:
    """Whether the page of metrics has all these lines."""
    return set(lines) <= set(worker.get("/metrics")[1].splitlines())


def at_work(version: str) -> str:
    return f'nextmove_model_info{{device="cpu",version="{version}"}} 1.0'


def swaps(result: str, times: int) -> str:
    return f'nextmove_model_swaps_total{{result="{result}"}} {times}.0'


def test_three_swaps_and_a_bad_model_under_load(kafka: KafkaServer, names: Names, tmp_path: Path) -> None:
    place, hold = tmp_path / "model", tmp_path / "hold"
    versions = [published(place, untrained(0))]
    settings = {**deployed(kafka, names, place), "model_check_s": "0.2", "device": "cpu"}
    program = ("tests.held_load_worker", str(hold))
    with (
        WorkerProcess(tmp_path / "worker.log", program, **settings) as worker,
        Stream(kafka.bootstrap, names.events) as stream,
    ):
        before = stream.go_on()
        hold.touch()
        versions.append(published(place, untrained(1, items=300, behaviors=BEHAVIORS[::-1])))
        wait_for(hold.with_suffix(".waiting").exists)
        while_loading = range(stream.sent, stream.go_on())
        wait_for_answers(kafka.bootstrap, names, at_least=while_loading.stop)
        assert shows(worker, at_work(versions[0]), swaps("swapped", 0))
        hold.unlink()
        wait_for(lambda: shows(worker, at_work(versions[1]), swaps("swapped", 1)))
        stream.go_on()

        bad = published(place, untrained(2, window=WindowRule(events=RULE.events + 1)))
        wait_for(lambda: shows(worker, at_work(versions[1]), swaps("refused", 1)))
        stream.go_on()

        versions.append(published(place, untrained(3, items=10, categories=0)))
        wait_for(lambda: shows(worker, at_work(versions[2]), swaps("swapped", 2)))
        stream.go_on()
        (place / "model.safetensors").write_bytes(b"half a file")  # of the model at work, which must not notice
        wait_for(lambda: shows(worker, at_work(versions[2])))
        stream.go_on()
        versions.append(published(place, untrained(4)))
        wait_for(lambda: shows(worker, at_work(versions[3]), swaps("swapped", 3), swaps("refused", 1)))
        after = stream.go_on(events=0)
        stream.go_on()
        stream.end()
        wait_for_answers(kafka.bootstrap, names, at_least=stream.sent)
        assert worker.stop() == 0

    found = asyncio.run(checker.read(kafka.bootstrap, names))
    assert checker.violations(found, RULE) == []
    assert (len(found.events), len(found.predictions), found.dead_letters) == (stream.sent, stream.sent, [])
    answers = [json.loads(record.value) for record in found.predictions]
    by = {int(answer["event_id"]): answer["model_version"] for answer in answers}
    assert set(by.values()) == set(versions)
    assert {by[number] for number in [*range(before), *while_loading]} == {versions[0]}, "intake never stopped"
    assert {by[number] for number in range(after + TOGETHER, stream.sent)} == {versions[3]}
    for partition in {record.partition for record in found.predictions}:
        own = [json.loads(record.value) for record in found.predictions if record.partition == partition]
        order = [versions.index(answer["model_version"]) for answer in own]
        assert order == sorted(order)
    log = worker.log()
    assert [line.split()[-1] for line in log.splitlines() if "has taken over from" in line] == versions[:3]
    (refusal,) = [line for line in log.splitlines() if "model refused" in line]
    assert f"{versions[1]} stays at work" in refusal
    assert f"model {bad} has another window rule" in refusal


def test_banned_items_are_never_listed_and_the_list_is_read_again(
    kafka: KafkaServer, names: Names, tmp_path: Path
) -> None:
    place, banned = tmp_path / "model", tmp_path / "banned"
    published(place, untrained(0))
    banned.write_text("i1\n")
    settings = {**deployed(kafka, names, place), "model_check_s": "0.2", "device": "cpu", "banned_items": str(banned)}
    with (
        WorkerProcess(tmp_path / "worker.log", **settings) as worker,
        Stream(kafka.bootstrap, names.events) as stream,
    ):
        before = stream.go_on()
        wait_for_answers(kafka.bootstrap, names, at_least=before)  # on a slow machine the list may be read first
        banned.write_text("i2\ni3\n")
        wait_for(lambda: "2 banned items, 0 of them unknown" in worker.log())
        changed = stream.go_on(events=0)
        stream.go_on()
        version = published(place, untrained(1))
        wait_for(lambda: shows(worker, at_work(version), swaps("swapped", 1)))
        stream.go_on()
        stream.end()
        wait_for_answers(kafka.bootstrap, names, at_least=stream.sent)
        assert worker.stop() == 0

    found = asyncio.run(checker.read(kafka.bootstrap, names))
    assert checker.violations(found, RULE) == []
    listed: dict[bool, set[str]] = {False: set(), True: set()}  # before and after the list was another
    for record in found.predictions:
        answer = json.loads(record.value)
        number = int(answer["event_id"])
        if number < before or number >= changed + TOGETHER:
            listed[number >= before] |= {item["item_id"] for item in answer["next_items"]}
    assert {"i2", "i3"} <= listed[False], "else it proves nothing"
    assert "i1" not in listed[False]
    assert "i1" in listed[True]
    assert not {"i2", "i3"} & listed[True]
