"""Users who stay away, on a real Kafka: forgotten for good, through a kill -9, and answered on coming back as if nobody ever were."""

import asyncio
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from aiokafka import AIOKafkaProducer

from model.engine import Engine
from stream_app import behaviors, history_codec, replay
from stream_app.serving import new_pipeline
from stream_app.settings import Settings
from tests import checker
from tests.checker import Names, wait_for_answers
from tests.integration.conftest import PARTITIONS
from tests.kafka_server import KafkaServer
from tests.processes import WorkerProcess

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

START_MS = 1_700_000_000_000
DAY_MS = 24 * 3600 * 1000
CHUNK = 16  # records; small, so that there are many
GONE = [f"gone-{n}" for n in range(60)]
BACK = GONE[::6]
LIVE = [f"live-{n}" for n in range(40)]

Line = dict[str, object]


def visits(users: list[str], day: float, times: int) -> Iterator[Line]:
    """Each of the users views something so many times, a second between two events."""
    for n in range(times * len(users)):
        time_ms = START_MS + int(day * DAY_MS) + 1000 * n
        yield {"user_id": users[n % len(users)], "behavior": "view", "item_id": f"i{n * 7 % 90}", "timestamp": time_ms}


def send(kafka: KafkaServer, names: Names, lines: list[Line]) -> None:
    async def send_all() -> None:
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            sent = [
                await producer.send(names.events, json.dumps(line).encode(), key=str(line["user_id"]).encode())
                for line in lines
            ]
            await asyncio.gather(*sent)

    asyncio.run(send_all())


def expired(worker: WorkerProcess) -> float:
    _, page = worker.get("/metrics")
    found = [line for line in page.splitlines() if line.startswith("nextmove_histories_expired_total ")]
    return float(found[0].split()[1]) if found else 0.0


@pytest.mark.parametrize("store", ["memory://", "rocksdb://"])
def test_idle_users_are_forgotten_for_good(
    kafka: KafkaServer,
    names: Names,
    on_kafka: dict[str, str],
    shop_model: Path,
    tmp_path: Path,
    store: str,
) -> None:
    engine = Engine.load(shop_model)
    idle_ms = engine.window.age_ms + 3_600_000
    away = idle_ms / DAY_MS + 1  # days
    past = [*visits(GONE, 0, 6)]
    present = [*visits(LIVE, away, 25)]
    later = [*visits(LIVE, away + 0.1, 12), *visits(BACK, away + 0.2, 3), *visits(LIVE, away + 0.3, 3)]

    settings = {**on_kafka, "store": store, "data_dir": str(tmp_path / "data"), "chunk_records": str(CHUNK)}
    worker = WorkerProcess(tmp_path / "worker.log", **settings).start()
    try:
        send(kafka, names, past)
        wait_for_answers(kafka.bootstrap, names, at_least=len(past))
        send(kafka, names, present)
        deadline = time.monotonic() + 60
        while not expired(worker):
            assert time.monotonic() < deadline, "nobody was forgotten"
            time.sleep(0.01)
        worker.kill()
        now = asyncio.run(checker.read(kafka.bootstrap, names))
        assert checker.committed_too_early(now) == []
        forgotten = {record.key.decode() for record in now.changelog if record.value is None}
        assert forgotten
        assert forgotten <= set(GONE)
        worker.start()
        send(kafka, names, later)
        lines = [*past, *present, *later]
        wait_for_answers(kafka.bootstrap, names, at_least=len(lines))
    finally:
        assert worker.stop() == 0

    found = asyncio.run(checker.read(kafka.bootstrap, names))
    assert checker.violations(found, engine.window, idle_ms=idle_ms) == []
    stored = {record.key.decode(): record.value for record in found.changelog}
    left = {user: value for user, value in stored.items() if value is not None}
    assert set(left) == {*LIVE, *BACK}
    assert {history_codec.decode(left[user]).length for user in BACK} == {3}, "their old events are gone"
    if store == "rocksdb://":
        assert on_disk(tmp_path / "data") == {user.encode(): value for user, value in left.items()}
    assert erasures(found) == 0
    compare(found, inline(engine, names, lines))


def erasures(found: checker.Topics) -> int:
    return sum(record.value is None for record in found.predictions)


def on_disk(directory: Path) -> dict[bytes, bytes]:
    """What the RocksDB files of a worker that has ended hold."""
    from rocksdict import Options, Rdict

    users: dict[bytes, bytes] = {}
    for path in directory.rglob("*.db"):
        database = Rdict(str(path), options=Options(raw_mode=True))
        users |= {key: value for key, value in database.items() if not key.startswith(b"__faust")}
        database.close()
    return users


def inline(engine: Engine, names: Names, lines: list[Line]) -> dict[str, dict[str, object]]:
    """The predictions of a replay in which nobody is ever forgotten, by id."""
    frame = pl.DataFrame(lines).with_columns(pl.lit(None, pl.String).alias("category"))
    pipeline = new_pipeline(engine, Settings(app_id=names.group), behaviors.load())
    out = io.BytesIO()
    now_ms = int(time.time() * 1000)
    replay.inline(frame, pipeline, out, topic=names.events, partitions=PARTITIONS, now_ms=now_ms)
    predictions = [json.loads(line) for line in out.getvalue().splitlines()]
    return {prediction["prediction_id"]: prediction for prediction in predictions}


def compare(found: checker.Topics, expected: dict[str, dict[str, object]]) -> None:
    streamed = {checker.headers(record)["prediction_id"].decode(): record.value for record in found.predictions}
    assert streamed.keys() == expected.keys()
    different = [
        checker.difference(json.loads(value), expected[id_])
        for id_, value in streamed.items()
        if not checker.same(json.loads(value), expected[id_])
    ]
    assert different == []
