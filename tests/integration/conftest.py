"""What integration tests share: one real Kafka for the whole run, and topic names of one's own."""

import uuid
from collections.abc import Iterator

import pytest

from tests.kafka_server import KafkaServer, require_kafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A running Apache Kafka. A test that kills it starts it again, whatever happens."""
    reason = require_kafka()
    if reason is not None:
        pytest.skip(reason)
    with KafkaServer(tmp_path_factory.mktemp("kafka")) as server:
        yield server


@pytest.fixture
def topic_prefix() -> str:
    """Starts the names of a test's topics and groups: the broker is shared, and remembers."""
    return f"{uuid.uuid4().hex[:8]}-"
