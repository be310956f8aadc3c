"""Several runs of several contestants, interleaved, and what they come to: medians and the spread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from confluent_kafka import KafkaException

from benchmarks.notes import failed, note, rounded
from benchmarks.stream.failures import RunFailed
from benchmarks.stream.trial import Trial

Name = TypeVar("Name", bound=object)
FAILURES = (RunFailed, KafkaException)
SPREAD = ("events_per_s", "cpu_us_per_event")  # also given as min and max
MEDIANS = (*SPREAD, "broker_cpu_us_per_event", "peak_rss_mb", "first_answer_s", "seconds")


def interleave(contestants: Mapping[Name, Callable[[], Trial]], runs: int, what: str = "") -> dict[Name, list[Trial]]:
    """Every contestant once, then every one again: what the machine does meanwhile hits all of them alike.

    A run that fails is told and left out.
    """
    done: dict[Name, list[Trial]] = {name: [] for name in contestants}
    for number in range(1, runs + 1):
        for name, attempt in contestants.items():
            trial = attempted(f"{what}{name}", attempt)
            if trial is not None:
                done[name].append(trial)
                note(f"  {number}/{runs}  {what}{name}: {_told(trial)}")
    return done


def attempted(name: str, attempt: Callable[[], Trial]) -> Trial | None:
    """What the run showed; None, and a failure noted, if it went wrong."""
    try:
        return attempt()
    except FAILURES as failure:
        failed(name, failure)
        return None


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Medians over the runs; min and max of what is compared."""
    rows = [trial.to_dict() for trial in trials]
    figures: dict[str, Any] = {"runs": len(rows), "events": rows[0]["events"]}
    for name in MEDIANS:
        values = [row[name] for row in rows]
        figures[name] = rounded(median(values))
        if name in SPREAD:
            figures[f"{name}_min"], figures[f"{name}_max"] = rounded(min(values)), rounded(max(values))
    return figures


def _told(trial: Trial) -> str:
    figures = trial.figures
    return (
        f"{figures.events_per_s:,.0f} events/s, {figures.cpu_us_per_event:.1f} µs CPU/event, "
        f"broker {figures.broker_cpu_us_per_event:.1f} µs, {trial.peak_rss_mb:,.0f} MB"
    )
