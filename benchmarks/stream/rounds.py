"""Several runs of several contestants, interleaved, and what they come to: medians and the spread."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

from rich.console import Console

from benchmarks.stream.trial import Trial

Key = TypeVar("Key", bound=Hashable)
console = Console(stderr=True)

SPREAD = ("events_per_s", "cpu_us_per_event")  # also given as min and max
MEDIANS = (*SPREAD, "broker_cpu_us_per_event", "peak_rss_mb", "first_answer_s", "seconds")


def interleave(contestants: Mapping[Key, Callable[[], Trial]], runs: int) -> dict[Key, list[Trial]]:
    """Every contestant once, then every one again: what the machine does meanwhile hits all of them alike."""
    done: dict[Key, list[Trial]] = {name: [] for name in contestants}
    for number in range(1, runs + 1):
        for name, attempt in contestants.items():
            trial = attempt()
            done[name].append(trial)
            console.print(
                f"run {number}/{runs}  {name}: {trial.figures.events_per_s:,.0f} events/s, "
                f"{trial.figures.cpu_us_per_event:.1f} µs CPU/event, broker {trial.figures.broker_cpu_us_per_event:.1f}",
                highlight=False,
            )
    return done


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """Medians over the runs; min and max of what is compared."""
    rows = [trial.to_dict() for trial in trials]
    figures: dict[str, Any] = {"runs": len(rows), "events": rows[0]["events"]}
    for name in MEDIANS:
        values = [row[name] for row in rows]
        figures[name] = _rounded(median(values))
        if name in SPREAD:
            figures[f"{name}_min"], figures[f"{name}_max"] = _rounded(min(values)), _rounded(max(values))
    return figures


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
