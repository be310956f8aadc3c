"""The two brokers: the embedded one, started anew for each run, and a real Apache Kafka for all runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from benchmarks.stream.programs import cpu_s
from benchmarks.stream.topics import TopicSpec, create, delete_containing
from stream_app.broker import EmbeddedBroker

START = Path(__file__).parents[2] / "deploy" / "kafka" / "start.py"
STOP_LIMIT_S = 60.0


class BrokerError(Exception):
    """The broker did not start; one line."""


@dataclass(frozen=True)
class Site:
    """A running broker: its address, and the process to take the CPU time of."""

    bootstrap: str
    pid: int

    def cpu_s(self) -> float:
        """The CPU time that it has used."""
        return cpu_s(self.pid)


class Broker(Protocol):
    """Where a run takes place."""

    @property
    def kind(self) -> str:
        """The name in results."""

    @property
    def most_partition_bytes(self) -> int | None:
        """More than this in a partition is lost; None if nothing is."""

    def site(self, topics: Sequence[TopicSpec], run: str) -> AbstractContextManager[Site]:
        """The broker with `topics`, fresh and empty; afterwards nothing named after `run` is left."""


class Embedded:
    """librdkafka's mock cluster; a process for each run, so that each begins with nothing in memory."""

    kind = "embedded"
    most_partition_bytes = int(4.5 * 2**20)  # it drops the oldest beyond 5 MiB

    @contextmanager
    def site(self, topics: Sequence[TopicSpec], run: str) -> Iterator[Site]:
        """A broker of its own for this run."""
        with EmbeddedBroker({topic.name: topic.partitions for topic in topics}) as broker:
            yield Site(broker.bootstrap, broker.pid)


class Kafka:
    """One Apache Kafka node on this machine, with its data in a temporary directory."""

    kind = "kafka"
    most_partition_bytes = None

    def __init__(self, bootstrap: str, pid: int) -> None:
        self._site = Site(bootstrap, pid)

    @contextmanager
    def site(self, topics: Sequence[TopicSpec], run: str) -> Iterator[Site]:
        """Topics of their own for this run."""
        create(self._site.bootstrap, topics)
        try:
            yield self._site
        finally:
            delete_containing(self._site.bootstrap, run)


@contextmanager
def kafka(heap: str = "1g") -> Iterator[Kafka]:
    """A running Apache Kafka. Raises BrokerError."""
    with TemporaryDirectory(prefix="nextmove-benchmark-") as data:
        command = [sys.executable, str(START), "--json", "--until-stdin-closes", f"--data={data}", f"--heap={heap}"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise BrokerError(f"Kafka did not start: {START.name} says why")
            told = json.loads(line)
            yield Kafka(told["bootstrap"], told["pid"])
        finally:
            process.stdin.close()  # what start.py waits for
            process.stdout.close()
            process.wait(STOP_LIMIT_S)


def kafka_version() -> str | None:
    """The version that would be started; None where it cannot."""
    done = subprocess.run([sys.executable, str(START), "--jars-only"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return None
    pom = (START.parent / "pom.xml").read_text()
    return pom.split("<kafka.version>")[1].split("<")[0]
