"""From an event on the input topic to its prediction on the output topic, at shares of the peak rate; Kafka only.

Both topics are stamped by the broker when it appends a record, so one clock says it all, to the millisecond. Topics are
read afterwards. Producer, broker and worker share the machine's cores: what the producer takes is missing elsewhere.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, Message, TopicPartition

from benchmarks.notes import note, rounded
from benchmarks.stream.brokers import Kafka
from benchmarks.stream.failures import Stalled, WrongCount
from benchmarks.stream.loads import skewed
from benchmarks.stream.paths import path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.programs import ROOT, Program
from benchmarks.stream.rounds import attempted
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.topics import QUIET, Offsets
from benchmarks.stream.trial import Stage, run, staged, wait_until_ready

WARM_UP_S = 6.0
SETTLE_LIMIT_S = 60.0
PERCENTILES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9, "max_ms": 100}


@dataclass(frozen=True)
class Latencies:
    """What one rate showed."""

    achieved_per_s: float
    ms: np.ndarray  # of each event after the warm-up
    worker_cpu_us: float  # per event
    broker_cpu_us: float


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per share of the peak."""
    assert plan.kafka is not None
    peak = peak_rate(plan, plan.kafka)
    rows = []
    for share in plan.sizes.latency_shares:
        latencies = _at(plan, plan.kafka, peak * share)
        row = {
            "share_of_peak": share,
            "peak_events_per_s": rounded(peak),
            "events_per_s": rounded(latencies.achieved_per_s),
            "events": len(latencies.ms),
            **{name: rounded(float(np.percentile(latencies.ms, rank))) for name, rank in PERCENTILES.items()},
            "cpu_us_per_event": rounded(latencies.worker_cpu_us),
            "broker_cpu_us_per_event": rounded(latencies.broker_cpu_us),
        }
        note(
            f"  {share:.0%} of peak: {row['events_per_s']:,.0f} events/s, p50 {row['p50_ms']} ms, p99 {row['p99_ms']} ms"
        )
        rows.append(row)
    return rows


def peak_rate(plan: Plan, kafka: Kafka) -> float:
    """Events per second of the worker when all events wait for it: a median of this very run."""
    path, load = path_named("nextmove_constant").with_window(plan.window), skewed(plan.sizes.events)
    trials = [
        attempted("peak", lambda: run(path, kafka, load, PARTITIONS)) for _ in range(min(plan.sizes.scale_runs, 3))
    ]
    return median(trial.figures.events_per_s for trial in trials if trial is not None)


def _at(plan: Plan, kafka: Kafka, rate: float) -> Latencies:
    path = path_named("nextmove_constant").with_window(plan.window)
    stamped = {"message.timestamp.type": "LogAppendTime"}
    with staged(path, kafka, PARTITIONS, topic_config=stamped) as stage, stage.start() as program:
        wait_until_ready([program])
        before = program.cpu_s(), stage.site.cpu_s()
        sent = _produce(stage, rate, WARM_UP_S + plan.sizes.latency_s)
        _wait_for(stage, program, sent)
        used = program.cpu_s() - before[0], stage.site.cpu_s() - before[1]
        program.stop()
        return _match(stage, sent, *(seconds / sent * 1e6 for seconds in used))


def _produce(stage: Stage, rate: float, seconds: float) -> int:
    """Run the producer to its end; the number of events that it sent."""
    arguments = [stage.site.bootstrap, stage.names.events, f"{rate:.1f}", f"{seconds:.1f}", "1"]
    command = [sys.executable, "-m", "benchmarks.stream.paced_producer", *arguments]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def _wait_for(stage: Stage, program: Program, events: int) -> None:
    deadline = time.monotonic() + SETTLE_LIMIT_S
    while stage.outputs.total() < events:
        program.check()
        if time.monotonic() > deadline:
            raise Stalled(f"{stage.outputs.total()} of {events} answers {SETTLE_LIMIT_S:.0f} s after the last event")
        time.sleep(0.1)


def _match(stage: Stage, events: int, worker_cpu_us: float, broker_cpu_us: float) -> Latencies:
    """Answers to events by the prediction's id, which is the place of its event."""
    came = {_place(message): message.timestamp()[1] for message in _read(stage, stage.names.events, events)}
    first_ms, last_ms = min(came.values()), max(came.values())
    answered = {_caused_by(message): message.timestamp()[1] for message in _read(stage, stage.names.answers, events)}
    if answered.keys() != came.keys():
        raise WrongCount(f"{len(came.keys() - answered.keys())} events have no answer")
    counted = {place: at_ms for place, at_ms in came.items() if at_ms >= first_ms + WARM_UP_S * 1000}
    ms = np.array([answered[place] - at_ms for place, at_ms in counted.items()], dtype=float)
    return Latencies(len(counted) / (last_ms / 1000 - first_ms / 1000 - WARM_UP_S), ms, worker_cpu_us, broker_cpu_us)


def _place(message: Message) -> str:
    return f"{message.topic()}-{message.partition()}-{message.offset()}"


def _caused_by(message: Message) -> str:
    headers = dict(cast(list[tuple[str, bytes]], message.headers()))
    return headers["prediction_id"].decode()


def _read(stage: Stage, topic: str, count: int) -> Iterator[Message]:
    """All records of a topic that holds so many."""
    held = Offsets(stage.site.bootstrap, [topic], stage.names.partitions).total()
    if held != count:
        raise WrongCount(f"{topic} holds {held} records, not {count}")
    consumer = Consumer({"bootstrap.servers": stage.site.bootstrap, "group.id": f"{topic}-reader", **QUIET})
    try:
        partitions = range(stage.names.partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in partitions])
        while count:
            for message in consumer.consume(10_000, timeout=1.0):
                if message.error() is None:
                    count -= 1
                    yield message
    finally:
        consumer.close()
