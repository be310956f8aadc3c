"""The chart of the comparison: a bar per path and number of cores, with the spread of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.stream.chart import bars


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Write the chart of the throughput rows; False where there is nothing to draw, or to draw with."""
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    if not rows:
        return False
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "nextmove"  # the same figures give the same file
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys(row["threads"] for row in rows))
    figure, axes = plt.subplots(1, len(groups), figsize=(5.5 * len(groups), 3.6), squeeze=False)
    for threads, own in zip(groups, axes[0], strict=True):
        cores = "one core" if threads == 1 else f"{threads} cores"
        bars(
            own,
            [row for row in rows if row["threads"] == threads][::-1],
            "events_per_s",
            f"{cores}: events/s (more is better)",
        )
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True
