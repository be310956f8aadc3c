"""A benchmark's figures as JSON, and its report: README.md and a chart in one folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CHART = "chart.svg"

Draw = Callable[[Sequence[Mapping[str, Any]], Path], None]
Render = Callable[[Mapping[str, Any], str | None], str]


def write_report(result: Mapping[str, Any], folder: Path, draw: Draw, render: Render) -> None:
    """README.md, and the chart of the throughput where there is any, and matplotlib to draw it with."""
    folder.mkdir(parents=True, exist_ok=True)
    chart = None
    if result.get("throughput"):
        try:
            draw(result["throughput"], folder / CHART)
            chart = CHART
        except ImportError:
            pass
    (folder / "README.md").write_text(render(result, chart))


def add_places(parser: argparse.ArgumentParser) -> None:
    """The options that say where the figures go, and what is done with them."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="the figures (default: results.json of the report)")
    parser.add_argument("--merge", action="store_true", help="keep the figures of FILE that are not measured now")
    parser.add_argument("--report", type=Path, metavar="DIR", help="where README.md and the chart go; see below")
    parser.add_argument("--only-report", action="store_true", help="measure nothing, write the report from FILE")
