"""The paths that are compared, and how each is started."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.stream.brokers import Site
from benchmarks.stream.peers.deployment import Deployment
from benchmarks.stream.programs import ROOT
from benchmarks.stream.topics import Names

PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"  # `make benchmark-setup` makes it
PEER = "benchmarks.stream.peers"
MODEL_EVENTS = 200_000  # what a real model answers in half a minute
STOCK_EVENTS = 110_000  # what stock Faust answers in half a minute; with shorter histories, and so in less time each


@dataclass(frozen=True)
class PeerPath:
    """One way to answer events."""

    name: str
    description: str
    module: tuple[str, ...]  # what `python -m` runs, with its arguments
    brokers: tuple[str, ...] = ("embedded", "kafka")
    most_events: int | None = None
    own_interpreter: bool = False
    is_nextmove: bool = False
    needs_model: bool = False
    has_window: bool = False

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if self.own_interpreter and not PEERS_PYTHON.exists():
            return "`make benchmark-setup` installs it"
        return None

    def with_window(self, events: int) -> PeerPath:
        """The same with another window, where there is one to choose."""
        return replace(self, module=(*self.module, "--window", str(events))) if self.has_window else self

    def command(self) -> list[str]:
        """The program and its arguments."""
        return [str(PEERS_PYTHON) if self.own_interpreter else sys.executable, "-m", *self.module]

    def environment(self, site: Site, names: Names, state_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
        """What tells the program where it works; `settings` are NextMove's, on top."""
        if self.is_nextmove:
            return nextmove_environment(site.bootstrap, names, state_dir, settings)
        deployment = Deployment(
            broker=site.bootstrap,
            group=names.group,
            events=names.events,
            answers=names.answers,
            partitions=str(names.partitions),
            state_dir=str(state_dir),
        )
        return deployment.environment()


def nextmove_environment(bootstrap: str, names: Names, state_dir: Path, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of a worker: the defaults, but for where it works."""
    given = {
        "broker": bootstrap,
        "broker_timeout_s": "30",
        "app_id": names.group,
        "input_topic": names.events,
        "output_topic": names.answers,
        "dead_letter_topic": names.dead_letters,
        "partitions": str(names.partitions),
        "data_dir": str(state_dir / "rocksdb"),
        "web_port": str(free_port()),
        **settings,
    }
    return {f"NEXTMOVE_{name.upper()}": value for name, value in given.items()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


PATHS: Sequence[PeerPath] = (
    PeerPath(
        "nextmove_constant",
        "NextMove's worker, all of it; the model is a constant",
        (f"{PEER}.constant_worker",),
        is_nextmove=True,
        has_window=True,
    ),
    PeerPath(
        "nextmove_model",
        "NextMove's worker with a small trained model",
        ("stream_app.cli", "worker"),
        most_events=MODEL_EVENTS,
        is_nextmove=True,
        needs_model=True,
    ),
    PeerPath(
        "stock_faust",
        "Faust as documented: agent, table with changelog, send",
        (f"{PEER}.stock_faust", "worker", "-l", "info", "--without-web"),
        most_events=STOCK_EVENTS,
    ),
    PeerPath("plain_loop", "an aiokafka loop, state in a dict, nothing durable", (f"{PEER}.plain_loop",)),
    PeerPath("plain_loop_full", "the same loop, sending answers as large as NextMove's", (f"{PEER}.plain_loop_full",)),
    PeerPath(
        "bytewax",
        "a bytewax dataflow, state in memory, recovery off",
        ("bytewax.run", f"{PEER}.bytewax_flow:flow"),
        own_interpreter=True,
    ),
    PeerPath(
        "quixstreams",
        "a Quix StreamingDataFrame, state in RocksDB with changelog",
        (f"{PEER}.quix_app",),
        brokers=("kafka",),
        own_interpreter=True,
    ),
)


def path_named(name: str) -> PeerPath:
    """The path of that name."""
    return next(path for path in PATHS if path.name == name)
