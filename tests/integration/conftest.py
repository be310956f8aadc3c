"""What integration tests share: one real Kafka for the whole run, and topic names of one's own."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kafka_server import KafkaServer, require_kafka


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A running Apache Kafka. A test that kills it starts it again, whatever happens.

    The variable KAFKA_VERSION chooses another version than `deploy/kafka/pom.xml` names.
    """
    reason = require_kafka()
    if reason is not None:
        pytest.skip(reason)
    with KafkaServer(tmp_path_factory.mktemp("kafka"), os.environ.get("KAFKA_VERSION")) as server:
        yield server


@pytest.fixture
def topic_prefix() -> str:
    """Starts the names of a test's topics and groups: the broker is shared, and remembers."""
    return f"{uuid.uuid4().hex[:8]}-"


@pytest.fixture(scope="session")
def taobao() -> Path:
    """A real log: eight days of 815 users of a shop. Not part of the project; where CI is set it must be there."""
    path = Path(__file__).parents[3] / "shared" / "data" / "taobao" / "users_815.csv.gz"
    if not path.exists():
        assert not os.environ.get("CI"), f"{path} is missing"
        pytest.skip(f"no log at {path}")
    return path
