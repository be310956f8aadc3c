"""The embedded broker: what aiokafka can do with it, and that its process never outlives its owner."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from stream_app.broker import BrokerError, EmbeddedBroker, main, parse_topics, serve

ROOT = Path(__file__).resolve().parents[2]
GONE_WITHIN_S = 10.0


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"one": 1, "five": 5, "groups": 2, "big": 1}) as running:
        yield running


def test_topics_have_the_partitions_asked_for(broker: EmbeddedBroker) -> None:
    async def partitions() -> dict[str, int]:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            return {topic: len(await producer.partitions_for(topic)) for topic in ("one", "five")}

    assert asyncio.run(partitions()) == {"one": 1, "five": 5}


def test_keys_headers_and_tombstones_come_back(broker: EmbeddedBroker) -> None:
    async def round_trip() -> list[ConsumerRecord[bytes, bytes]]:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            headers = [("repeated", b"1"), ("repeated", b"2"), ("empty", b"")]
            await producer.send_and_wait("one", b"value", key=b"key", headers=headers, timestamp_ms=1_234)
            await producer.send_and_wait("one", None, key=b"key")
        return await _read(broker.bootstrap, "one", 2)

    record, tombstone = asyncio.run(round_trip())
    assert (record.offset, record.key, record.value, record.timestamp) == (0, b"key", b"value", 1_234)
    assert record.headers == (("repeated", b"1"), ("repeated", b"2"), ("empty", b""))
    assert (tombstone.offset, tombstone.key, tombstone.value) == (1, b"key", None)


def test_a_record_of_2_mib_passes(broker: EmbeddedBroker) -> None:
    value = os.urandom(2 * 2**20)

    async def round_trip() -> list[ConsumerRecord[bytes, bytes]]:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=4 * 2**20) as producer:
            await producer.send_and_wait("big", value)
        return await _read(broker.bootstrap, "big", 1)

    assert asyncio.run(round_trip())[0].value == value


def test_a_partition_silently_keeps_its_newest_5_mib(broker: EmbeddedBroker) -> None:
    async def kept() -> tuple[int, int]:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=2 * 2**20) as producer:
            for _ in range(8):
                await producer.send_and_wait("five", bytes(2**20), partition=4)
        async with AIOKafkaConsumer(bootstrap_servers=broker.bootstrap) as consumer:
            partition = TopicPartition("five", 4)
            first = await consumer.beginning_offsets([partition])
            end = await consumer.end_offsets([partition])
            return first[partition], end[partition]

    # Documented in stream_app/broker.py; each record is 1 MiB and a few bytes of framing, so 4 of them fit into 5 MiB.
    assert asyncio.run(kept()) == (8 - 4, 8)


def test_a_group_resumes_where_it_committed(broker: EmbeddedBroker) -> None:
    async def values(count: int) -> list[bytes | None]:
        consumer = _consumer(broker.bootstrap, "groups", group_id="resuming", session_timeout_ms=1_500)
        async with consumer:
            records = [await consumer.getone() for _ in range(count)]
            await consumer.commit()
            return [record.value for record in records]

    async def run() -> tuple[list[bytes | None], list[bytes | None]]:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
            for number in range(5):
                await producer.send_and_wait("groups", b"%d" % number, partition=0)
        async with asyncio.timeout(20):
            return await values(3), await values(2)

    assert asyncio.run(run()) == ([b"0", b"1", b"2"], [b"3", b"4"])


def test_the_port_can_be_chosen() -> None:
    port = _free_port()

    async def first_value() -> bytes | None:
        async with AIOKafkaProducer(bootstrap_servers=f"127.0.0.1:{port}") as producer:
            await producer.send_and_wait("t", b"here")
        [record] = await _read(f"127.0.0.1:{port}", "t", 1)
        value: bytes | None = record.value
        return value

    with EmbeddedBroker({"t": 1}, port=port) as broker:
        assert broker.bootstrap == f"127.0.0.1:{port}"
        assert asyncio.run(first_value()) == b"here"


def test_stop_ends_the_process_and_frees_the_port() -> None:
    broker = EmbeddedBroker()
    broker.start()
    pid, address = broker.pid, broker.bootstrap
    assert _is_running(pid)
    broker.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)  # a zombie would still take the signal
    assert not _accepts(address)
    broker.stop()  # once more does nothing


def test_it_can_start_again_with_nothing_kept() -> None:
    broker = EmbeddedBroker({"t": 1})
    for _ in range(2):
        with broker:
            assert _accepts(broker.bootstrap)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_with_its_parent(how: signal.Signals) -> None:
    program = """
        import time
        from stream_app.broker import EmbeddedBroker

        broker = EmbeddedBroker({"t": 1}).start()
        print(broker.pid, flush=True)
        time.sleep(600)
    """
    parent = _python("-c", textwrap.dedent(program), stderr=subprocess.DEVNULL)
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert _is_running(pid)
        parent.send_signal(how)
        parent.wait()
    _wait_until_gone(pid)


def test_the_process_ends_although_a_fork_of_the_parent_holds_its_pipe() -> None:
    program = """
        import os, time
        from stream_app.broker import EmbeddedBroker

        broker = EmbeddedBroker().start()
        fork = os.fork()
        if fork:
            print(broker.pid, fork, flush=True)
        time.sleep(600)
    """
    parent = _python("-W", "ignore", "-c", textwrap.dedent(program))
    with parent:
        assert parent.stdout is not None
        pid, fork = map(int, parent.stdout.readline().split())
        parent.kill()
        parent.wait()
        try:
            _wait_until_gone(pid)
        finally:
            os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_the_program_prints_its_address_and_ends_cleanly_by_signal(how: signal.Signals) -> None:
    with _python("-m", "stream_app.broker", "--topic=t=3") as program:
        assert program.stdout is not None
        address = program.stdout.readline().decode().strip()
        assert _accepts(address)
        program.send_signal(how)
        assert program.wait(GONE_WITHIN_S) == 0
        assert program.stdout.read() == b""


def test_serve_runs_until_the_event_is_set() -> None:
    stop = threading.Event()
    addresses: list[str] = []
    ready = threading.Event()

    def on_ready(address: str) -> None:
        addresses.append(address)
        ready.set()

    thread = threading.Thread(target=serve, args=({"t": 1},), kwargs={"on_ready": on_ready, "stop_event": stop})
    thread.start()
    assert ready.wait(GONE_WITHIN_S)
    assert _accepts(addresses[0])
    stop.set()
    thread.join(GONE_WITHIN_S)
    assert not thread.is_alive()
    assert not _accepts(addresses[0])


def test_a_port_in_use_is_one_clear_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BrokerError, match=rf"^the embedded broker cannot listen on 127.0.0.1:{port}: .*in use$"):
            EmbeddedBroker(port=port).start()


@pytest.mark.parametrize(
    ("topics", "message"),
    [
        ({"no spaces": 1}, "'no spaces' is no topic name: 1 to 249 letters, digits, '.', '_' and '-'"),
        ({"": 1}, "'' is no topic name: 1 to 249 letters, digits, '.', '_' and '-'"),
        ({"t": 0}, "topic 't' needs at least 1 partition, not 0"),
    ],
)
def test_an_impossible_topic_is_one_clear_line(topics: dict[str, int], message: str) -> None:
    with pytest.raises(BrokerError) as caught:
        EmbeddedBroker(topics).start()
    assert str(caught.value) == message


def test_use_before_start_is_refused() -> None:
    broker = EmbeddedBroker()
    for read in (lambda: broker.bootstrap, lambda: broker.pid):
        with pytest.raises(BrokerError, match="does not run"):
            read()


def test_starting_twice_is_refused() -> None:
    with EmbeddedBroker() as broker, pytest.raises(BrokerError, match=r"already runs at 127\.0\.0\.1:"):
        broker.start()


def test_topic_arguments_are_read() -> None:
    assert parse_topics(["a=3", "b"]) == {"a": 3, "b": 1}
    with pytest.raises(BrokerError, match="NAME=PARTITIONS"):
        parse_topics(["a=many"])


def test_the_program_refuses_a_bad_topic_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--topic", "t=0"]) == 2
    assert capsys.readouterr().err == "topic 't' needs at least 1 partition, not 0\n"


def _consumer(
    bootstrap: str, topic: str, *, group_id: str | None = None, session_timeout_ms: int = 10_000
) -> "AIOKafkaConsumer[bytes, bytes]":
    return AIOKafkaConsumer(
        topic,
        bootstrap_servers=bootstrap,
        group_id=group_id,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 * 2**20,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=session_timeout_ms // 3,
    )


async def _read(bootstrap: str, topic: str, count: int) -> "list[ConsumerRecord[bytes, bytes]]":
    async with _consumer(bootstrap, topic) as consumer, asyncio.timeout(20):
        return [await consumer.getone() for _ in range(count)]


def _python(*arguments: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=stderr, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def _is_running(pid: int) -> bool:
    """A zombie has ended: an orphan stays one until the machine's first process collects it, which may be never."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()  # without /proc, taking the signal must do


def _wait_until_gone(pid: int) -> None:
    """An orphan can only be watched by polling: it is not our child."""
    limit = time.monotonic() + GONE_WITHIN_S
    while _is_running(pid):
        assert time.monotonic() < limit, f"process {pid} still runs"
        time.sleep(0.02)
