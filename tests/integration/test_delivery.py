"""The delivery contract on a real Kafka and a real log: kills with -9, an independent checker, and the inline replay."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord

from model.engine import Engine
from tests import checker
from tests.checker import Names, wait_for_answers, wait_for_outputs
from tests.integration.conftest import deployed
from tests.kafka_server import KafkaServer
from tests.processes import Program, WorkerProcess, json_lines, nextmove

pytestmark = pytest.mark.kafka

LEARN = 0.8  # of the events by time; the rest is played
KILLS = 2
STRIDE = 25  # half a window
SPEED = 6000  # event time over wall time: the played part takes half a minute


@pytest.fixture(scope="module")
def model(taobao: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the first days of the log, as a user would; with a stride, so that workers keep states of users."""
    directory = tmp_path_factory.mktemp("model") / "model"
    options = ("--split", str(LEARN), "--stride", str(STRIDE), "--time-budget", "60", "-q")
    done = nextmove("train", str(taobao), "--out", str(directory), *options)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture
def settings(kafka: KafkaServer, names: Names, model: Path) -> dict[str, str]:
    """With small chunks: a worker that comes back after a kill finds thousands of events, and shall not answer them all at once."""
    return {**deployed(kafka, names, model), "chunk_records": "256"}


@pytest.fixture
def worker(settings: dict[str, str], tmp_path: Path) -> Iterator[WorkerProcess]:
    with WorkerProcess(tmp_path / "worker.log", **settings) as process:
        yield process


def test_the_model_is_worth_more_than_repeating(model: Path, taobao: Path) -> None:
    """On the events after those that it learned from, with nothing filtered."""
    done = nextmove("evaluate", str(model), str(taobao), "--split", str(LEARN), "--json")
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout)["scores"]
    assert scores["model"]["item NDCG@10"] > max(0.0834, scores["repeat"]["item NDCG@10"])
    assert scores["model"]["category HR@1"] > max(0.4235, scores["repeat"]["category HR@1"])


@pytest.mark.timeout(900)
def test_every_event_is_answered_once_though_the_worker_is_killed_twice(
    kafka: KafkaServer, names: Names, settings: dict[str, str], worker: WorkerProcess, taobao: Path, tmp_path: Path
) -> None:
    count, hits = 84_488 - int(84_488 * LEARN), 0
    replay = ("replay", str(taobao), "--to", "kafka", "--since", str(LEARN), "--speed", str(SPEED), "-q")
    with Program(*replay, **settings) as player:
        for kill in range(1, KILLS + 1):
            wait_for_outputs(
                kafka.bootstrap, names, at_least=count * kill // (2 * KILLS)
            )  # the last time half are to come
            hits += state_hits(worker)
            worker.kill()  # while events still come
            player.pause()
            now = asyncio.run(checker.read(kafka.bootstrap, names))
            assert checker.committed_too_early(now) == []
            assert checker.unequal(now) == []
            answered = {checker.cause(record) for record in now.predictions}
            assert len(answered) < count, "the kill came too late to test anything"
            worker.start()
            player.go_on()
        assert player.wait() == 0
    assert len(asyncio.run(checker.read_topic(kafka.bootstrap, names.events))) == count
    wait_for_answers(kafka.bootstrap, names, at_least=count)
    hits += state_hits(worker)
    assert hits > count / 10, "most windows were computed anew"
    assert worker.stop() == 0

    found = asyncio.run(checker.read(kafka.bootstrap, names))
    rule = Engine.load(settings["model"]).window
    assert checker.violations(found, rule) == []
    assert {p: o for p, o in found.committed.items() if o} == {
        p: 1 + max(r.offset for r in found.events if r.partition == p) for p in {r.partition for r in found.events}
    }
    compare_with_inline(found.predictions, settings, taobao, tmp_path)


def state_hits(worker: WorkerProcess) -> int:
    """Events that this life of the worker answered from states that it had kept."""
    found = re.search(r"^nextmove_state_hits_total (\S+)$", worker.get("/metrics")[1], re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def compare_with_inline(predictions: list[ConsumerRecord], settings: dict[str, str], log: Path, tmp_path: Path) -> None:
    """The inline replay of the same log gives the same predictions under the same ids."""
    out = tmp_path / "inline.jsonl"
    done = nextmove("replay", str(log), "--to", "inline", "--since", str(LEARN), "--out", str(out), "-q", **settings)
    assert done.returncode == 0, done.stderr
    inline = {prediction["prediction_id"]: prediction for prediction in json_lines(out)}
    streamed = {checker.headers(record)["prediction_id"].decode(): record.value for record in predictions}
    assert inline.keys() == streamed.keys()
    different = [
        checker.difference(json.loads(value), inline[id_])
        for id_, value in streamed.items()
        if not checker.same(json.loads(value), inline[id_])
    ]
    assert different == []
