"""What does a second worker bring? One against two of the same group, on the same machine.

Events come when all workers have their partitions: those of a group that is still forming would be answered by one. What
sends them needs a core as well, so the measured time begins when all are there. All users are alike, so that partitions are, and no
worker ends before the other.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.stream.brokers import Kafka
from benchmarks.stream.loads import Load, uniform
from benchmarks.stream.meter import watch
from benchmarks.stream.paths import PeerPath, path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.topics import fill
from benchmarks.stream.trial import Stage, Trial, staged, wait_until_ready

COUNTS = (1, 2)
EVENTS = 4  # times those of the other suites: a part is answered while the topic is filled
USERS = 1_000_000


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per number of workers."""
    assert plan.kafka is not None
    path, load = (
        path_named("nextmove_constant").with_window(plan.window),
        uniform(EVENTS * plan.sizes.scale_events, users=USERS),
    )
    contestants = {count: partial(_attempt, path, plan.kafka, load, count) for count in COUNTS}
    trials = interleave(contestants, plan.sizes.scale_runs, "workers: ")
    rows: list[dict[str, Any]] = [{"workers": count, **summary(own)} for count, own in trials.items() if own]
    for row in rows:
        row["ratio_to_one_worker"] = round(row["events_per_s"] / rows[0]["events_per_s"], 3)
    return rows


def _attempt(path: PeerPath, kafka: Kafka, load: Load, workers: int) -> Trial:
    with staged(path, kafka, PARTITIONS) as stage, ExitStack() as stack:
        programs = []
        for number in range(
            workers
        ):  # one after the other: the second one's coming moves partitions, which must settle
            programs.append(stack.enter_context(stage.start(number)))
            wait_until_ready(programs)
        with ThreadPoolExecutor(1) as elsewhere:  # the first answers come at once
            filling = elsewhere.submit(_filled_s, stage, load)
            samples = watch(programs, stage.site.pid, stage.outputs.total, len(load.records))
            filled_s = filling.result() - max(program.started_s for program in programs)
        return stage.conclude(programs, [one for one in samples if one.at_s >= filled_s], len(load.records))


def _filled_s(stage: Stage, load: Load) -> float:
    """Fill the topic; the monotonic time when it is done."""
    fill(stage.site.bootstrap, stage.names, load.records)
    return time.monotonic()
