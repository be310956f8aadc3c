"""Topics on a real Apache Kafka, and what it keeps when it is killed."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError

from stream_app import topics
from stream_app.topics import TopicError, TopicPlan
from tests.kafka_server import KafkaServer, KafkaServerError, require_kafka

pytestmark = pytest.mark.kafka

PARTITIONS = 3
START = Path(__file__).resolve().parents[2] / "deploy" / "kafka" / "start.py"


def test_the_plan_is_created_with_its_counts_and_configuration(kafka: KafkaServer, topic_prefix: str) -> None:
    plans = _plans(topic_prefix)
    names = [plan.name for plan in plans]

    async def run() -> dict[str, dict[str, str]]:
        assert await topics.create(kafka.bootstrap, plans) == names
        assert await topics.describe(kafka.bootstrap, names) == dict.fromkeys(names, PARTITIONS)
        assert await topics.check(kafka.bootstrap, names) == PARTITIONS
        return {name: await _config(kafka.bootstrap, name) for name in names}

    config = asyncio.run(run())
    assert config[f"{topic_prefix}changelog"]["cleanup.policy"] == "compact"
    assert config[f"{topic_prefix}events"]["max.message.bytes"] == str(topics.MAX_EVENT_BYTES)
    assert config[f"{topic_prefix}events.dlq"]["max.message.bytes"] == str(topics.MAX_DEAD_LETTER_BYTES)


def test_creating_again_leaves_what_exists_and_adds_what_is_missing(kafka: KafkaServer, topic_prefix: str) -> None:
    old, new = TopicPlan(f"{topic_prefix}old", 2), TopicPlan(f"{topic_prefix}new", 3)

    async def run() -> dict[str, int | None]:
        assert await topics.create(kafka.bootstrap, [old]) == [old.name]
        assert await topics.create(kafka.bootstrap, [TopicPlan(old.name, 5), new]) == [new.name]
        assert await topics.create(kafka.bootstrap, [old, new]) == []
        return await topics.describe(kafka.bootstrap, [old.name, new.name])

    assert asyncio.run(run()) == {old.name: 2, new.name: 3}


def test_a_dry_run_tells_and_creates_nothing(kafka: KafkaServer, topic_prefix: str) -> None:
    names = [plan.name for plan in _plans(topic_prefix)]
    assert asyncio.run(topics.create(kafka.bootstrap, _plans(topic_prefix), dry_run=True)) == names
    assert asyncio.run(topics.describe(kafka.bootstrap, names)) == dict.fromkeys(names)


@pytest.mark.parametrize("dry_run", [False, True])
def test_a_refusal_names_the_topic_and_the_broker_s_reason(
    kafka: KafkaServer, topic_prefix: str, dry_run: bool
) -> None:
    plan = TopicPlan(f"{topic_prefix}t", 1)
    with pytest.raises(TopicError, match=rf"refused topic '{plan.name}': .*replication factor") as caught:
        asyncio.run(topics.create(kafka.bootstrap, [plan], replication_factor=3, dry_run=dry_run))
    assert "\n" not in str(caught.value)


def test_check_names_unequal_and_missing_topics(kafka: KafkaServer, topic_prefix: str) -> None:
    two, three, absent = (topic_prefix + name for name in ("two", "three", "absent"))
    asyncio.run(topics.create(kafka.bootstrap, [TopicPlan(two, 2), TopicPlan(three, 3)]))
    with pytest.raises(
        TopicError, match=f"^the partition counts differ: {two} has 2, {three} has 3: .*nextmove topics"
    ):
        asyncio.run(topics.check(kafka.bootstrap, [two, three]))
    with pytest.raises(TopicError, match=f"^{two} has 2, {absent} is missing: create .* `nextmove topics`$"):
        asyncio.run(topics.check(kafka.bootstrap, [two, absent]))


def test_describe_creates_nothing(kafka: KafkaServer, topic_prefix: str) -> None:
    async def run() -> list[str]:
        await topics.describe(kafka.bootstrap, [f"{topic_prefix}absent"])
        async with _admin(kafka.bootstrap) as admin:
            names: list[str] = await admin.list_topics()
            return names

    assert f"{topic_prefix}absent" not in asyncio.run(run())


def test_only_a_topic_made_for_them_takes_2_mib_records(kafka: KafkaServer, topic_prefix: str) -> None:
    value = os.urandom(2 * 2**20)

    async def run() -> bytes | None:
        await topics.create(kafka.bootstrap, _plans(topic_prefix))
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, max_request_size=4 * 2**20) as producer:
            with pytest.raises(MessageSizeTooLargeError):
                await producer.send_and_wait(f"{topic_prefix}predictions", value)
            await producer.send_and_wait(f"{topic_prefix}events", value, partition=0)
        return (await _values(kafka.bootstrap, f"{topic_prefix}events"))[0]

    assert asyncio.run(run()) == value


def test_records_commits_and_the_address_survive_a_kill(kafka: KafkaServer, topic_prefix: str) -> None:
    topic, group = f"{topic_prefix}t", f"{topic_prefix}g"
    partition, values = TopicPartition(topic, 0), [b"%d" % number for number in range(100)]

    async def before() -> None:
        await topics.create(kafka.bootstrap, [TopicPlan(topic, 1)])
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            await asyncio.gather(*[await producer.send(topic, value) for value in values])
        async with _consumer(kafka.bootstrap, group) as consumer:
            consumer.assign([partition])
            await consumer.commit({partition: 60})

    async def after() -> int:
        async with _consumer(kafka.bootstrap, group) as consumer, asyncio.timeout(30):
            committed = None
            while committed is None:  # aiokafka 0.14 takes "the coordinator still loads" for "nothing is committed"
                await asyncio.sleep(0.05)
                committed = await consumer.committed(partition)
            return int(committed)

    asyncio.run(before())
    address, pid = kafka.bootstrap, kafka.pid
    kafka.kill()
    try:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with pytest.raises(TopicError, match="^no Kafka broker answers at "):
            asyncio.run(topics.describe(address, [topic]))
    finally:
        kafka.restart()
    assert kafka.bootstrap == address
    assert asyncio.run(_values(address, topic)) == values
    assert asyncio.run(after()) == 60


def test_the_start_script_stops_cleanly_by_signal(kafka: KafkaServer) -> None:  # `kafka`: there is Java and Maven
    with subprocess.Popen([sys.executable, START], stdout=subprocess.PIPE) as script:
        assert script.stdout is not None
        address = script.stdout.readline().decode().split()[-1]
        log = Path(script.stdout.readline().decode().removeprefix("log: ").strip())
        assert asyncio.run(topics.describe(address, ["t"])) == {"t": None}
        assert log.exists()
        script.send_signal(signal.SIGTERM)
        assert script.wait(60) == 0
    with pytest.raises(TopicError):
        asyncio.run(topics.describe(address, ["t"]))
    assert list(log.parent.iterdir()) == [log]  # of a directory that was not asked for, only the log is left
    shutil.rmtree(log.parent)


def test_the_broker_ends_with_the_tests(kafka: KafkaServer, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(START.parents[2])!r})
from tests.kafka_server import KafkaServer, KafkaServerError, require_kafka
print(KafkaServer(Path({str(tmp_path)!r})).start().bootstrap, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        address = owner.stdout.readline().decode().strip()
        assert asyncio.run(topics.describe(address, ["t"])) == {"t": None}
        owner.kill()
    limit = time.monotonic() + 60
    while _answers(address):  # nobody's child any more: it can only be polled
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_without_java_the_start_script_says_so_in_one_line(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, START], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Apache Kafka needs Java 17 or newer: no `java` was found\n"


def test_without_java_tests_are_skipped_but_not_in_ci(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.delenv("CI", raising=False)
    reason = require_kafka.__wrapped__()  # past its cache
    assert reason == "Apache Kafka needs Java 17 or newer: no `java` was found"
    monkeypatch.setenv("CI", "true")
    with pytest.raises(KafkaServerError, match="no `java` was found"):
        require_kafka.__wrapped__()


def _plans(prefix: str) -> list[TopicPlan]:
    events, predictions, dead_letters, changelog = (
        prefix + name for name in ("events", "predictions", "events.dlq", "changelog")
    )
    return topics.plan(events, predictions, dead_letters, changelog, PARTITIONS)


def _answers(address: str) -> bool:
    try:
        asyncio.run(topics.describe(address, []))
    except TopicError:
        return False
    return True


@contextlib.asynccontextmanager
async def _admin(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _config(bootstrap: str, topic: str) -> dict[str, str]:
    async with _admin(bootstrap) as admin:
        [response] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    [(_code, _message, _kind, _name, entries)] = response.resources
    return {name: value for name, value, *_ in entries}


def _consumer(bootstrap: str, group: str | None = None) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False, max_partition_fetch_bytes=4 * 2**20
    )


async def _values(bootstrap: str, topic: str) -> list[bytes | None]:
    """All values of the topic's partition 0."""
    partition = TopicPartition(topic, 0)
    async with _consumer(bootstrap) as consumer, asyncio.timeout(30):
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        end = (await consumer.end_offsets([partition]))[partition]
        return [(await consumer.getone()).value for _ in range(end)]
