"""What is measured, how long and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.engine.paths import Entry
from benchmarks.engine.setting import Setting


@dataclass(frozen=True)
class Plan:
    """Of one run of the benchmark."""

    paths: Sequence[Entry]
    threads: Sequence[int] = (1, 2)
    setting: Setting = field(default_factory=Setting)
    runs: int = 5
    run_s: float = 1.0
    tune_s: float = 0.4  # for each value of each dial
    latency_events: int = 120  # of each run
    hits: Sequence[float] = (0.9, 0.99, 1.0)
    quick: bool = False

    def with_threads(self, threads: int) -> Setting:
        """The setting on so many cores."""
        return replace(self.setting, threads=threads)


QUICK = Setting(width=32, layers=1, window=16, stride=8, items=2_000, categories=20, users=50, poll=64)


def quick(paths: Sequence[Entry], threads: Sequence[int], device: str) -> Plan:
    """Toy sizes, two runs each: does it work at all?"""
    setting = replace(QUICK, device=device)
    return Plan(paths, threads, setting, runs=2, run_s=0.02, tune_s=0.01, latency_events=8, quick=True)
