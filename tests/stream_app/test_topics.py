"""Topics, as far as the embedded broker goes: creation is tested on Apache Kafka, in tests/integration."""

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from stream_app import topics
from stream_app.broker import EmbeddedBroker
from stream_app.topics import TopicError, TopicPlan


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    with EmbeddedBroker({"three": 3, "also-three": 3, "four": 4}) as broker:
        yield broker.bootstrap


def test_the_plan_has_one_partition_count_and_room_for_dead_letters() -> None:
    plans = topics.plan("events", "predictions", "events.dlq", "changelog", 6)
    assert [(plan.name, plan.partitions) for plan in plans] == [
        ("events", 6),
        ("predictions", 6),
        ("events.dlq", 6),
        ("changelog", 6),
    ]
    config = {plan.name: plan.config for plan in plans}
    assert config["changelog"] == {"cleanup.policy": "compact", "max.message.bytes": str(topics.MAX_EVENT_BYTES)}
    assert config["predictions"] == {}
    assert int(config["events"]["max.message.bytes"]) == 4 * 1024 * 1024
    assert int(config["events.dlq"]["max.message.bytes"]) > int(config["events"]["max.message.bytes"])


def test_describe_tells_counts_and_creates_nothing(bootstrap: str) -> None:
    for _ in range(2):  # the embedded broker creates a topic that is asked for by name
        found = asyncio.run(topics.describe(bootstrap, ["four", "absent"]))
        assert found == {"four": 4, "absent": None}


def test_the_first_address_that_answers_is_enough(bootstrap: str) -> None:
    assert asyncio.run(topics.describe(f"{_closed_address()}, {bootstrap}", ["four"])) == {"four": 4}


def test_check_returns_the_common_count(bootstrap: str) -> None:
    assert asyncio.run(topics.check(bootstrap, ["three", "also-three"])) == 3


def test_check_names_every_topic_where_counts_differ(bootstrap: str) -> None:
    with pytest.raises(TopicError) as caught:
        asyncio.run(topics.check(bootstrap, ["three", "four"]))
    assert str(caught.value) == (
        "the partition counts differ: three has 3, four has 4: "
        "delete the wrong ones and create them with `nextmove topics`"
    )


def test_check_names_what_is_missing(bootstrap: str) -> None:
    with pytest.raises(TopicError) as caught:
        asyncio.run(topics.check(bootstrap, ["three", "absent"]))
    assert str(caught.value) == "three has 3, absent is missing: create what is missing with `nextmove topics`"


def test_create_leaves_what_exists(bootstrap: str) -> None:
    assert asyncio.run(topics.create(bootstrap, [TopicPlan("three", 9)])) == []
    assert asyncio.run(topics.describe(bootstrap, ["three"])) == {"three": 3}


@pytest.mark.parametrize("dry_run", [False, True])
def test_create_says_that_the_embedded_broker_cannot(bootstrap: str, dry_run: bool) -> None:
    with pytest.raises(TopicError) as caught:
        asyncio.run(topics.create(bootstrap, [TopicPlan("three", 3), TopicPlan("new", 3)], dry_run=dry_run))
    assert str(caught.value) == (
        f"the broker at {bootstrap} cannot create topics: if it is `nextmove broker`, name them when it starts "
        "(missing: new)"
    )
    assert asyncio.run(topics.describe(bootstrap, ["new"])) == {"new": None}


def test_no_broker_is_one_clear_line_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    address = _closed_address()
    with caplog.at_level(logging.DEBUG), pytest.raises(TopicError) as caught:
        asyncio.run(topics.describe(address, ["t"]))
    assert str(caught.value) == f"no Kafka broker answers at {address} (connection refused)"
    assert [record for record in caplog.records if record.name.startswith("aiokafka")] == []


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silence", "http"])
def test_something_else_at_the_address_is_one_clear_line_in_time(
    answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with _listener(answer) as address, caplog.at_level(logging.DEBUG):
        # On a loaded machine the time is over before the connection is: it ends then, with a line that says so.
        reason = r"\((something accepts .*|no answer within 1 s)\)"
        with pytest.raises(TopicError, match=rf"^no Kafka broker answers at {address} {reason}$"):
            asyncio.run(topics.check(address, ["t"], timeout_s=1.0))
    assert [record for record in caplog.records if record.name.startswith("aiokafka")] == []


@pytest.mark.parametrize("address", ["host:port", ":9092", "host:0", "host:65536", ""])
def test_a_malformed_address_is_one_clear_line(address: str) -> None:
    with pytest.raises(TopicError, match=r"is no address of a Kafka broker: HOST:PORT$"):
        asyncio.run(topics.describe(address, ["t"]))


def test_addresses_are_read() -> None:
    assert topics._address("kafka-1") == ("kafka-1", 9092)
    assert topics._address(" kafka-1:19092 ") == ("kafka-1", 19092)
    assert topics._address("[::1]:19092") == ("::1", 19092)
    assert topics._address("[::1]") == ("::1", 9092)


def test_other_clients_keep_their_log(bootstrap: str, caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(topics.describe(bootstrap, ["three"]))
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("aiokafka").debug("from a worker's own client")
    assert "from a worker's own client" in caplog.text


def _closed_address() -> str:
    """An address that refuses connections: its port was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def _listener(answer: bytes | None) -> Iterator[str]:
    """Accepts connections; answers the first bytes with `answer` and closes, or never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as connections:

        def serve() -> None:
            with contextlib.suppress(OSError):  # raised by shutdown() below
                while True:
                    connection, _ = server.accept()
                    connections.enter_context(connection)
                    if answer is not None and connection.recv(1):
                        connection.sendall(answer)
                        connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
