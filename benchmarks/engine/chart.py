"""The chart of the comparison: a bar per path and number of cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import bars, panels


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the chart of the throughput rows. Raises ImportError without matplotlib."""
    groups = list(dict.fromkeys(row["threads"] for row in rows))
    with panels(path, 1, len(groups), (5.5 * len(groups), 3.6)) as axes:
        for threads, own in zip(groups, axes[0], strict=True):
            cores = "one core" if threads == 1 else f"{threads} cores"
            ranked = [row for row in rows if row["threads"] == threads][::-1]
            bars(own, ranked, "events_per_s", f"{cores}: events/s (more is better)")
