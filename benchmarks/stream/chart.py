"""The chart of the comparison: a bar per path for rate and for CPU cost, with the spread of the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS, THEIRS = "#1f6f8b", "#b9c3cc"


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

    groups = list(dict.fromkeys((row["broker"], row["load"]) for row in rows))
    figure, axes = plt.subplots(len(groups), 2, figsize=(11, 0.5 + 2.6 * len(groups)), squeeze=False)
    for (broker, load), (rates, costs) in zip(groups, axes, strict=True):
        own = [row for row in rows if (row["broker"], row["load"]) == (broker, load)][::-1]
        bars(rates, own, "events_per_s", f"{broker}, {load}: events/s (more is better)")
        bars(costs, own, "cpu_us_per_event", f"{broker}, {load}: CPU µs/event (less is better)")
        costs.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return True


def bars(axes: Any, rows: Sequence[Mapping[str, Any]], name: str, title: str) -> None:
    """A bar per row, as long as its `name`, on a logarithmic axis; NextMove's in their own colour."""
    values = [row[name] for row in rows]
    spread = [[row[name] - row[f"{name}_min"] for row in rows], [row[f"{name}_max"] - row[name] for row in rows]]
    colors = [OURS if row["path"].startswith("nextmove") else THEIRS for row in rows]
    axes.barh([row["path"] for row in rows], values, xerr=spread, color=colors, ecolor="#555555", capsize=2)
    for position, value in enumerate(values):
        axes.text(value, position, f"  {value:,.0f}", va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.spines[["top", "right"]].set_visible(False)
