"""What is fixed for all paths: sizes of network and catalogue, the window rule, the users, the seed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from model.window import WindowRule


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the benchmark, and the machine's part that a path may use."""

    width: int = 128
    layers: int = 2
    heads: int = 2
    window: int = 100
    stride: int = 50
    items: int = 50_000
    categories: int = 500
    users: int = 4_000
    poll: int = 1_024  # events that a path is given at once
    top_k: int = 10
    seed: int = 0
    threads: int = 1
    device: str = "cpu"

    @property
    def rule(self) -> WindowRule:
        """The window rule; nothing is ever too old, so that all windows are as full as the stride leaves them."""
        return WindowRule(events=self.window, stride=self.stride, age_ms=10 * 365 * 24 * 3_600_000)

    @property
    def network(self) -> str:
        """A short name of what the weights depend on."""
        parts = (self.width, self.layers, self.heads, self.window, self.items, self.top_k, self.seed)
        return sha256(repr(parts).encode()).hexdigest()[:12]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON of a run."""
        return asdict(self)


LARGE = Setting(width=256, layers=4, heads=4, window=200, stride=100, items=1_000_000, categories=5_000)


def pin(threads: int) -> None:
    """Let this process run on so many cores, and the libraries that it imports later start no more threads than that."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[-threads:])  # the first core has the system's work
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
