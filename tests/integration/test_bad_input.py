"""Whatever arrives on the topic: a dead letter with its reason, never a stopped stream, never a lost record."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Message, Producer
from prometheus_client.parser import text_string_to_metric_families

from model.engine import Engine
from stream_app.broker import EmbeddedBroker
from tests import checker
from tests.checker import Names
from tests.integration.conftest import PARTITIONS, deployment
from tests.kafka_server import KafkaServer
from tests.processes import WorkerProcess

NOW_MS = 1_750_000_000_000


def event(user: str = "u", **fields: object) -> bytes:
    return json.dumps({"user_id": user, "behavior": "view", "item_id": "i0001", "timestamp": NOW_MS, **fields}).encode()


# what is sent (key, value) → the reason of its dead letter, or None for a prediction
SENT: list[tuple[bytes | None, bytes | None, str | None]] = [
    (b"u", event(), None),
    (b"u", b"\xff\xfe not json", "undecodable"),
    (b"u", b"", "undecodable"),
    (b"u", b'{"user_id": "u", "timestamp": NaN}', "undecodable"),
    (b"u", event()[:-5], "undecodable"),
    (b"u", b"[1, 2]", "invalid"),
    (b"u", b"null", "invalid"),
    (b"u", event(user_id=7), "invalid"),
    (b"u", event(item_id=["a"]), "invalid"),
    (b"u", event(timestamp="yesterday"), "invalid"),
    (b"u", event(timestamp=NOW_MS / 1000), "invalid"),
    (b"u", event(timestamp=NOW_MS // 1000), "invalid"),
    (b"u", event(timestamp=-1), "invalid"),
    (b"u", event(timestamp=10**30), "invalid"),
    (b"u", event(timestamp=4_000_000_000_000), "from_the_future"),
    (b"u", event(behavior="teleport"), "invalid"),
    (b"u", b'{"user_id": "u", "behavior": "view", "timestamp": 1750000000000}', "invalid"),
    (b"other", event(), "invalid"),
    (None, None, "invalid"),
    (b"\xff", None, "undecodable"),
    (b"u", event(text="x" * 2_000_000), "too_large"),
    (b"u", event(item_id="never seen in training", category="nor this", timestamp=NOW_MS + 1), None),
    (b"u", event(behavior="share", timestamp=NOW_MS + 2), None),
    (b"u", event(surprise={"unknown": "field"}, timestamp=NOW_MS + 3), None),
    (b"u", event(timestamp=NOW_MS - 2 * 3_600_000), "too_late"),
    (b"erased", event("erased"), None),
    (b"erased", None, None),
    ("ü" .encode() * 128, event("ü" * 128), None),
    (b"u", event(timestamp="2025-06-15T15:06:41Z"), None),
]  # fmt: skip


FAUST = (
    "faust",
    "--app",
    "stream_app.app",
    "worker",
    "--loglevel",
    "info",
)  # Faust's own command, really as a user starts it


@pytest.fixture(params=["embedded", pytest.param("apache", marks=pytest.mark.kafka)])
def worker(
    request: pytest.FixtureRequest, names: Names, shop_model: Path, tmp_path: Path
) -> Iterator[tuple[WorkerProcess, str]]:
    if request.param == "apache":
        settings = request.getfixturevalue("on_kafka")
        with WorkerProcess(tmp_path / "worker.log", **settings) as process:
            yield process, settings["broker"]
        return
    topics = dict.fromkeys((names.events, names.predictions, names.dead_letters, names.changelog), PARTITIONS)
    with EmbeddedBroker(topics) as broker:
        settings = deployment(broker.bootstrap, names, shop_model)
        with WorkerProcess(tmp_path / "worker.log", program=FAUST, really=True, **settings) as process:
            yield process, broker.bootstrap


def test_every_record_is_answered_or_rejected_with_its_reason(
    worker: tuple[WorkerProcess, str], names: Names, shop_model: Path
) -> None:
    process, bootstrap = worker
    wanted = asyncio.run(send(bootstrap, names.events))
    checker.wait_for_answers(bootstrap, names, at_least=len(SENT), limit_s=60)
    found = asyncio.run(read(bootstrap, names))

    reasons: dict[tuple[int, int], str | None] = {checker.cause(record): None for record in found.predictions}
    for letter in found.dead_letters:
        reasons[checker.cause(letter)] = checker.headers(letter)["dlq-reason"].decode()
    assert reasons == wanted
    originals = {(record.partition, record.offset): record for record in found.events}
    for letter in found.dead_letters:
        original = originals[checker.cause(letter)]
        neither = original.key is None and original.value is None  # cannot be sent as it was
        assert (letter.key, letter.value) == (original.key, b"" if neither else original.value)
        assert checker.headers(letter)["kafka_dlt-exception-message"]

    assert checker.violations(found, Engine.load(shop_model).window) == []
    erased = [record for record in found.predictions if record.key == b"erased"]
    assert [record.value is None for record in erased] == [False, True]
    assert [record.value for record in found.changelog if record.key == b"erased"][-1] is None
    assert_metrics(process, wanted)
    assert process.running
    assert "Traceback" not in process.log()


def assert_metrics(process: WorkerProcess, wanted: dict[tuple[int, int], str | None]) -> None:
    status, text = process.get("/metrics")
    assert status == 200
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["nextmove_records_total",] == len(SENT)
    for reason in ("undecodable", "invalid", "too_large", "too_late", "from_the_future", "inference", "emit"):
        assert values["nextmove_dead_letters_total", reason] == list(wanted.values()).count(reason)
    assert values["nextmove_erasures_total",] == 1
    assert values["nextmove_records_with_unknown_fields",] == 1
    assert sum(values["nextmove_input_lag_records", str(partition)] for partition in range(PARTITIONS)) == 0
    assert process.get("/healthz")[0] == 200
    for page in ("/table", "/table/histories", "/stats", "/router", "/graph"):  # Faust's pages show table data
        assert process.get(page)[0] == 404, page


async def send(bootstrap: str, topic: str) -> dict[tuple[int, int], str | None]:
    """Where each record went → the reason that it must get, None for a prediction."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "message.max.bytes": 8_000_000, "partitioner": "murmur2_random"}
    )  # not aiokafka's, which refuses to send a record with neither key nor value
    wanted: dict[tuple[int, int], str | None] = {}
    for key, value, reason in SENT:

        def sent(error: object, message: Message, reason: str | None = reason) -> None:
            assert error is None
            wanted[message.partition(), message.offset()] = reason

        producer.produce(topic, value, key, on_delivery=sent)
        assert await asyncio.to_thread(producer.flush, 30) == 0
    return wanted


async def read(bootstrap: str, names: Names) -> checker.Topics:
    """The topics; the embedded broker cannot list a group's offsets."""
    found = checker.Topics()
    for kind in ("events", "predictions", "dead_letters", "changelog"):
        setattr(found, kind, await checker.read_topic(bootstrap, getattr(names, kind)))
    return found


@pytest.mark.kafka
def test_a_dead_letter_too_large_for_its_topic_goes_without_its_value(
    kafka: KafkaServer, on_kafka: dict[str, str], names: Names, tmp_path: Path
) -> None:
    asyncio.run(shrink(kafka.bootstrap, names.dead_letters, 100_000))
    with WorkerProcess(tmp_path / "worker.log", **on_kafka):
        asyncio.run(send_one(kafka.bootstrap, names.events, b"u", event(text="x" * 1_500_000)))
        checker.wait_for_answers(kafka.bootstrap, names, at_least=1, limit_s=60)
    (letter,) = asyncio.run(checker.read_topic(kafka.bootstrap, names.dead_letters))
    assert letter.value is None
    assert int(checker.headers(letter)["dlq-value-omitted"]) == len(event(text="x" * 1_500_000))


async def shrink(bootstrap: str, topic: str, limit: int) -> None:
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": str(limit)})
        await admin.alter_configs([resource])
    finally:
        await admin.close()


async def send_one(bootstrap: str, topic: str, key: bytes, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=8_000_000)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, key=key)
    finally:
        await producer.stop()
