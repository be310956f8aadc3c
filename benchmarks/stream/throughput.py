"""All paths on the same events: rate and CPU cost of each, beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.stream.brokers import Broker
from benchmarks.stream.loads import Load
from benchmarks.stream.paths import PeerPath
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.trial import Trial, run

PARTITIONS = 8
REFERENCES = {"ratio_to_stock_faust": "stock_faust", "ratio_to_plain_loop": "plain_loop"}


def measure(
    broker: Broker, loads: Sequence[Load], paths: Sequence[PeerPath], *, runs: int, model: Path | None
) -> list[dict[str, Any]]:
    """One row per load and path."""
    rows = []
    for load in loads:
        fitting = load.fitting(PARTITIONS, broker.most_partition_bytes) if broker.most_partition_bytes else load
        contestants = {
            path.name: partial(attempt, path, broker, fitting, model) for path in paths if broker.kind in path.brokers
        }
        trials = interleave(contestants, runs)
        rows += [
            {"broker": broker.kind, "load": load.name, "path": name, "partitions": PARTITIONS, **summary(own)}
            for name, own in trials.items()
        ]
    return with_ratios(rows)


def attempt(path: PeerPath, broker: Broker, load: Load, model: Path | None) -> Trial:
    """One run; a path with a real model gets fewer events."""
    settings = {"model": str(model)} if path.needs_model else {}
    return run(path, broker, load.head(path.most_events or len(load.records)), PARTITIONS, settings=settings)


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its rate over that of stock Faust and of the plain loop, on the same broker and load."""
    rates = {(row["broker"], row["load"], row["path"]): row["events_per_s"] for row in rows}
    for row in rows:
        for name, reference in REFERENCES.items():
            rate = rates.get((row["broker"], row["load"], reference))
            row[name] = None if rate is None else round(row["events_per_s"] / rate, 3)
    return list(rows)
