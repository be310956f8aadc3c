"""What a run of the benchmark is to do: how much of everything, on which brokers, with which loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.stream.brokers import Broker, Embedded, Kafka
from benchmarks.stream.loads import Load, real, skewed
from benchmarks.stream.paths import PeerPath

WINDOW = 100  # events, as a real model's


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    warm_up_runs: int = 8  # of a broker, before anything counts
    runs: int = 5  # of each path, in the comparison
    scale_runs: int = 5  # of the other suites
    events: int = 400_000  # of a synthetic load
    real_events: int = 1_000_000  # of the real log at most
    days: int = (
        5  # on which the real log is played: what a worker has answered ahead when measuring begins must not count
    )
    scale_events: int = 200_000
    engine_events: int = 180_000  # as much as the embedded broker holds; up to 18,000 are answered at once
    users: tuple[int, ...] = (1_000, 10_000, 100_000, 1_000_000)
    partitions: tuple[int, ...] = (1, 4, 8, 32)
    latency_shares: tuple[float, ...] = (0.1, 0.5, 0.8)  # of the peak rate
    latency_s: float = 20.0  # after warming up
    profile_s: float = 8.0
    train_s: float = 60.0


QUICK = Sizes(
    warm_up_runs=2, runs=1, scale_runs=1, events=20_000, real_events=20_000, days=1, scale_events=20_000, engine_events=4_000, users=(1_000, 20_000), partitions=(1, 8),
    latency_shares=(0.1, 0.5), latency_s=5.0, profile_s=2.0, train_s=20.0,
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that a suite may need to know."""

    sizes: Sizes
    paths: Sequence[PeerPath]
    load_names: Sequence[str]
    log: Path | None
    model: Path | None
    window: int
    embedded: Embedded | None
    kafka: Kafka | None

    @property
    def brokers(self) -> list[Broker]:
        """Those that were asked for and run."""
        return [broker for broker in (self.embedded, self.kafka) if broker is not None]

    @cached_property
    def loads(self) -> list[Load]:
        """The real log, if there is one, and the synthetic one."""
        chosen = []
        if "real" in self.load_names and self.log is not None:
            chosen.append(real(self.log, self.sizes.days).head(self.sizes.real_events))
        if "skewed" in self.load_names:
            chosen.append(skewed(self.sizes.events))
        return chosen
