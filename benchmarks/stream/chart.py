"""The chart of the comparison: a bar per path for rate and for CPU cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.chart import bars, panels


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the chart of the throughput rows. Raises ImportError without matplotlib."""
    groups = list(dict.fromkeys((row["broker"], row["load"]) for row in rows))
    with panels(path, len(groups), 2, (11, 0.5 + 2.6 * len(groups))) as axes:
        for (broker, load), (rates, costs) in zip(groups, axes, strict=True):
            own = [row for row in rows if (row["broker"], row["load"]) == (broker, load)][::-1]
            bars(rates, own, "events_per_s", f"{broker}, {load}: events/s (more is better)")
            bars(costs, own, "cpu_us_per_event", f"{broker}, {load}: CPU µs/event (less is better)")
            costs.set_yticklabels([])
