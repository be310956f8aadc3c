"""The topics of one run: their names, how they are filled, and how far they are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec  # type: ignore[attr-defined]  # it does not say __all__

from benchmarks.stream.failures import WrongCount
from stream_app.topics import plan

TIMEOUT_S = 30.0
FLUSH_LIMIT_S = 120.0
EARLIEST, LATEST = OffsetSpec.earliest(), OffsetSpec.latest()  # type: ignore[no-untyped-call]
QUIET = {"log_level": 0}  # brokers come and go between runs


@dataclass(frozen=True)
class Names:
    """The topics of one run of one peer; `group` is also its application id."""

    group: str
    partitions: int

    @property
    def events(self) -> str:
        """The input."""
        return f"{self.group}-events"

    @property
    def answers(self) -> str:
        """The output."""
        return f"{self.group}-answers"

    @property
    def dead_letters(self) -> str:
        """What could not be answered."""
        return f"{self.group}-dead-letters"

    @property
    def changelog(self) -> str:
        """Of a Faust table called histories."""
        return f"{self.group}-histories-changelog"

    @property
    def outputs(self) -> tuple[str, str]:
        """Where the answers are counted."""
        return self.answers, self.dead_letters


@dataclass(frozen=True)
class TopicSpec:
    """A topic to be created."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


def specs(names: Names, config: Mapping[str, str]) -> list[TopicSpec]:
    """The topics of a run, as `nextmove topics` would create them; `config` on top but for the changelog."""
    plans = plan(names.events, names.answers, names.dead_letters, names.changelog, names.partitions)
    return [
        TopicSpec(topic.name, topic.partitions, topic.config | ({} if topic.name == names.changelog else dict(config)))
        for topic in plans
    ]


def create(bootstrap: str, topics: Sequence[TopicSpec]) -> None:
    """Create topics on a real Kafka."""
    new = [NewTopic(topic.name, topic.partitions, 1, config=dict(topic.config)) for topic in topics]
    admin = _admin(bootstrap)
    for future in admin.create_topics(new, operation_timeout=TIMEOUT_S).values():
        future.result(TIMEOUT_S)


def delete_containing(bootstrap: str, text: str) -> None:
    """Delete every topic with `text` in its name: a run's own and those that its peer made."""
    admin = _admin(bootstrap)
    found = [name for name in admin.list_topics(timeout=TIMEOUT_S).topics if text in name]
    for future in admin.delete_topics(found, operation_timeout=TIMEOUT_S).values() if found else ():
        future.result(TIMEOUT_S)


def fill(bootstrap: str, names: Names, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Put all records on the input topic, keyed as Kafka's own clients do, in large batches. Raises WrongCount."""
    count = send(bootstrap, names.events, records)
    offsets = Offsets(bootstrap, [names.events], names.partitions)
    if offsets.total() != count:
        raise WrongCount(f"{names.events} holds {offsets.total()} of {count} events")
    if dropped := offsets.total(EARLIEST):
        raise WrongCount(f"{names.events}: the broker has dropped the first {dropped} events; play fewer")


def send(bootstrap: str, topic: str, records: Iterable[tuple[bytes, bytes]]) -> int:
    """Send records to `topic`, each to the partition of its key; their number, once all are delivered."""
    with delivering(bootstrap) as produce:
        return sum(produce(topic, value, key) for key, value in records)


@contextmanager
def delivering(bootstrap: str, linger_ms: int = 100) -> Iterator[Callable[..., int]]:
    """`Producer.produce` that waits where the queue is full and returns 1; at the end all is delivered, or WrongCount."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "partitioner": "murmur2_random",
            "linger.ms": linger_ms,
            "batch.size": 512 * 2**10,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 512 * 2**10,
            **QUIET,
        }
    )

    def produce(*arguments: Any) -> int:
        while True:
            try:
                producer.produce(*arguments)
            except BufferError:
                producer.poll(0.05)
            else:
                return 1

    yield produce
    if producer.flush(FLUSH_LIMIT_S) != 0:
        raise WrongCount("not all records were delivered")


class Offsets:
    """Reads the end offsets of whole topics with one request: a fraction of a millisecond."""

    def __init__(self, bootstrap: str, topics: Sequence[str], partitions: int) -> None:
        self._admin = _admin(bootstrap)
        self._places = [TopicPartition(topic, number) for topic in topics for number in range(partitions)]

    def connect(self) -> None:
        """A first look, which takes longer than the others; new topics have no leader for a moment."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self.total()
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
            else:
                return

    def total(self, which: OffsetSpec = LATEST) -> int:
        """The sum over all partitions; of the ends unless said otherwise."""
        wanted = dict.fromkeys(self._places, which)
        futures = self._admin.list_offsets(wanted, request_timeout=TIMEOUT_S)
        return sum(future.result(TIMEOUT_S).offset for future in futures.values())


def _admin(bootstrap: str) -> AdminClient:
    return AdminClient({"bootstrap.servers": bootstrap, **QUIET})
