"""All paths on the same events: rate and CPU cost of each, beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.notes import note
from benchmarks.stream.brokers import Broker, Kafka
from benchmarks.stream.loads import Load, skewed
from benchmarks.stream.paths import PeerPath, path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.trial import Trial, run

PARTITIONS = 8
REFERENCES = {"ratio_to_stock_faust": "stock_faust", "ratio_to_plain_loop": "plain_loop"}


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per broker, load and path."""
    rows = []
    for broker in plan.brokers:
        for load in plan.loads:
            rows += _rows(plan, broker, load)
    return with_ratios(rows)


def warm_up(kafka: Kafka, events: int, runs: int) -> None:
    """Runs that do not count: in its first minutes a broker needs several times as long, until Java has compiled it."""
    for _ in range(runs):
        run(path_named("plain_loop_full"), kafka, skewed(events), PARTITIONS)


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its rate over that of stock Faust and of the plain loop, on the same broker and load."""
    rates = {(row["broker"], row["load"], row["path"]): row["events_per_s"] for row in rows}
    for row in rows:
        for name, reference in REFERENCES.items():
            rate = rates.get((row["broker"], row["load"], reference))
            row[name] = None if rate is None else round(row["events_per_s"] / rate, 3)
    return list(rows)


def _rows(plan: Plan, broker: Broker, load: Load) -> list[dict[str, Any]]:
    fitting = load.fitting(PARTITIONS, broker.most_partition_bytes) if broker.most_partition_bytes else load
    note(f"{broker.kind}, {load.name}: {len(fitting.records):,} events")
    contestants = {
        path.name: partial(_attempt, plan, path, broker, fitting) for path in plan.paths if broker.kind in path.brokers
    }
    trials = interleave(contestants, plan.sizes.runs, f"{broker.kind} {load.name} ")
    where = {"broker": broker.kind, "load": load.name, "partitions": PARTITIONS}
    return [{**where, "path": name, **summary(own)} for name, own in trials.items() if own]


def _attempt(plan: Plan, path: PeerPath, broker: Broker, load: Load) -> Trial:
    """One run; a path with a real model gets fewer events."""
    events = min(path.most_events or len(load.records), len(load.records))
    settings = {"model": str(plan.model)} if path.needs_model else {}
    return run(path.with_window(plan.window), broker, load.head(events), PARTITIONS, settings=settings)
