"""What integration tests share: one real Kafka for all tests of a process, and topic names of one's own."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checker import Names
from tests.kafka_server import KafkaServer, require_kafka
from tests.processes import nextmove

PARTITIONS = 4


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


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated log, as JSON lines."""
    path = tmp_path_factory.mktemp("shop") / "shop.jsonl"
    done = nextmove("simulate", "--out", str(path), "--users", "120", "--items", "500", "--days", "5")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def shop_model(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the small shop; good enough to answer."""
    path = tmp_path_factory.mktemp("model") / "model"
    done = nextmove("train", str(shop), "--out", str(path), "--split", "0.5", "--time-budget", "10", "-q")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def names(topic_prefix: str) -> Names:
    """Topics and group of one test."""
    app = f"{topic_prefix}nextmove"
    return Names(
        f"{topic_prefix}events", f"{topic_prefix}predictions", f"{topic_prefix}dlq", f"{app}-histories-changelog", app
    )


def deployment(bootstrap: str, names: Names, model: Path) -> dict[str, str]:
    """The settings of a worker on these topics, for `tests.processes`."""
    return {
        "broker": bootstrap,
        "app_id": names.group,
        "input_topic": names.events,
        "output_topic": names.predictions,
        "dead_letter_topic": names.dead_letters,
        "partitions": str(PARTITIONS),
        "model": str(model),
    }


@pytest.fixture
def on_kafka(kafka: KafkaServer, names: Names, shop_model: Path) -> dict[str, str]:
    """A deployment on the real Kafka, its topics created."""
    return deployed(kafka, names, shop_model)


def deployed(kafka: KafkaServer, names: Names, model: Path) -> dict[str, str]:
    """The settings of a worker whose topics are there."""
    settings = deployment(kafka.bootstrap, names, model)
    done = nextmove("topics", **settings)
    assert done.returncode == 0, done.stderr
    return settings
