"""Rate and cost of a run, from samples of how much was answered and how much CPU time was spent by then.

The first tenth of the answers is left out: starting, joining the group and warming up are not what is compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.stream.failures import Stalled, TooShort
from benchmarks.stream.programs import Program, cpu_s

POLL_S = 0.02
WARM_UP = 0.1  # share of the answers
STALL_LIMIT_S = 90.0


@dataclass(frozen=True)
class Sample:
    """What had happened by a moment."""

    at_s: float  # since the start of the last program
    answered: int
    cpu_s: float  # of all programs measured
    broker_cpu_s: float


@dataclass(frozen=True)
class Figures:
    """One run between a tenth of the answers and the last."""

    events_per_s: float
    cpu_us_per_event: float
    broker_cpu_us_per_event: float
    seconds: float
    first_answer_s: float  # from the start of the (last) program to its first answer


def watch(
    programs: Sequence[Program], broker_pid: int, answered: Callable[[], int], events: int, poll_s: float = POLL_S
) -> list[Sample]:
    """Sample until all is answered. Raises Stalled or ProgramEnded."""
    samples: list[Sample] = []
    started_s = max(program.started_s for program in programs)
    moved_s = time.monotonic() - started_s
    while True:
        now_s = time.monotonic() - started_s
        sample = Sample(now_s, answered(), sum(cpu_s(program.pid) for program in programs), cpu_s(broker_pid))
        if samples and sample.answered > samples[-1].answered:
            moved_s = sample.at_s
        samples.append(sample)
        if sample.answered >= events:
            return samples
        for program in programs:
            program.check()
        if sample.at_s - moved_s > STALL_LIMIT_S:
            raise Stalled(f"{sample.answered} of {events} answers, then none\n{programs[0].log_end()}")
        time.sleep(poll_s)


def figures(samples: Sequence[Sample], events: int) -> Figures:
    """Rate and cost between the first sample with a tenth of the answers and the first with all."""
    if len(samples) < 2:
        raise TooShort(f"{events} events are too few to measure")
    first = _first(samples, 1)
    warm, done = _first(samples, WARM_UP * events), _first(samples, events)
    if done is warm:  # all came between two looks
        warm = samples[samples.index(done) - 1]
    answered, seconds = done.answered - warm.answered, done.at_s - warm.at_s
    return Figures(
        events_per_s=answered / seconds,
        cpu_us_per_event=(done.cpu_s - warm.cpu_s) / answered * 1e6,
        broker_cpu_us_per_event=(done.broker_cpu_s - warm.broker_cpu_s) / answered * 1e6,
        seconds=seconds,
        first_answer_s=first.at_s,
    )


def _first(samples: Iterable[Sample], answered: float) -> Sample:
    return next(sample for sample in samples if sample.answered >= answered)
