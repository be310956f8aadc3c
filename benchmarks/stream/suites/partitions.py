"""Does the number of partitions matter? The same events on a few of them and on many."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.stream.loads import skewed
from benchmarks.stream.paths import path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.trial import run


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per number of partitions."""
    assert plan.kafka is not None
    path, load = path_named("nextmove_constant").with_window(plan.window), skewed(plan.sizes.scale_events)
    contestants = {count: partial(run, path, plan.kafka, load, count) for count in plan.sizes.partitions}
    trials = interleave(contestants, plan.sizes.scale_runs, "partitions: ")
    return [{"partitions": count, **summary(own)} for count, own in trials.items() if own]
