"""What the settings of the producers bring: each one changed alone, beside the defaults.

Forecasts differ from one another here, as a real model's do: the same one over and over would compress to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.stream.loads import skewed
from benchmarks.stream.paths import PeerPath, path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.trial import run

FORECASTS = 1000
CHANGES: tuple[Mapping[str, str], ...] = (
    {},
    {"idempotent": "false"},
    {"linger_ms": "5"},
    {"compression": "lz4"},
    {"compression": "snappy"},
    {"compression": "zstd"},
    {"batch_bytes": "100000"},
    {"batch_bytes": "400000"},
    {"producers": "1"},
    {"producers": "2"},
    {"producers": "8"},
)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per change."""
    assert plan.kafka is not None
    path, load = (
        _with_many_forecasts(path_named("nextmove_constant").with_window(plan.window)),
        skewed(plan.sizes.scale_events),
    )
    changes = {" ".join(f"{name}={value}" for name, value in change.items()): change for change in CHANGES}
    contestants = {
        name: partial(run, path, plan.kafka, load, PARTITIONS, settings=change) for name, change in changes.items()
    }
    trials = interleave(contestants, plan.sizes.scale_runs, "producing: ")
    return [{"change": name or "defaults", **summary(own)} for name, own in trials.items() if own]


def _with_many_forecasts(path: PeerPath) -> PeerPath:
    return replace(path, module=(*path.module, "--forecasts", str(FORECASTS)))
