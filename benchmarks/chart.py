"""Charts of a benchmark: bars of paths, NextMove's in their own colour, with the spread of the runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

OURS, THEIRS = "#1f6f8b", "#b9c3cc"


@contextmanager
def panels(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes [rows, columns] of a figure of `size` inches, written to `path` at the end. Raises ImportError without matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "nextmove"  # the same figures give the same file
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    yield axes
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


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
