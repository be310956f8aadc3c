"""Small charts as inline SVG. Colours are those of the page around them (CSS variables), text stays text."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.reliability import Bin

INK, SOFT, GRID, MODEL, OTHER = (f"#00000{number}" for number in range(1, 6))  # stand-ins for:
VARIABLES = {INK: "--ink", SOFT: "--soft", GRID: "--line", MODEL: "--model", OTHER: "--other"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9.0, "axes.titlesize": 10.0, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GRID, "axes.labelcolor": SOFT,
    "axes.titlecolor": INK, "text.color": INK, "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
}  # fmt: skip
WIDTH_IN = 3.6
Interval = tuple[float, float]


def beside(title: str, rows: Sequence[tuple[str, float, Interval | None]]) -> str:
    """One measure of every contender, the model first, each with its interval."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure, axes = _new(0.75 + 0.27 * len(rows))
        axes.grid(visible=False, axis="y")
        for place, (who, value, interval) in enumerate(rows):
            colour = MODEL if who == "model" else OTHER
            if interval:
                axes.plot(interval, (place, place), color=colour, linewidth=2, solid_capstyle="round", alpha=0.5)
            axes.plot([value], [place], "o", color=colour, markersize=6)
        axes.set_yticks(range(len(rows)), [who for who, *_ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(title)
        values = ", ".join(f"{who} {value:.4f}" for who, value, _ in rows)
        return _svg(figure, f"{title}: {values}")


def curve(head: str, training: Mapping[int, float], validation: Mapping[int, float], best: int | None) -> str:
    """Losses by epoch; `best` is the epoch that was kept."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": head}):
        figure, axes = _new(2.2)
        for name, losses, colour in (("training", training, OTHER), ("validation", validation, MODEL)):
            if losses:
                axes.plot(
                    list(losses), list(losses.values()), "o-", color=colour, markersize=4, linewidth=1.8, label=name
                )
        if best is not None:
            axes.axvline(best, color=SOFT, linewidth=1, linestyle=":")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.locator_params(axis="y", nbins=5)
        axes.set_xlabel("epoch")
        axes.legend(frameon=False, fontsize=8, labelcolor=SOFT, loc="best")
        axes.set_title(head)
        told = "; ".join(
            f"{name} {', '.join(f'{loss:.3f}' for loss in losses.values())}"
            for name, losses in (("training", training), ("validation", validation))
            if losses
        )
        return _svg(figure, f"Loss of {head} by epoch: {told}")


def diagram(head: str, bins: Sequence[Bin]) -> str:
    """A reliability diagram: what was said against what came; the larger a point, the more events."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": head}):
        figure, axes = _new(2.9)
        top = max(each.events for each in bins)
        axes.plot((0, 1), (0, 1), color=SOFT, linewidth=1, linestyle=":")
        said, came = [each.said for each in bins], [each.came for each in bins]
        axes.plot(said, came, color=MODEL, linewidth=1, alpha=0.5)
        axes.scatter(said, came, s=[12 + 90 * each.events / top for each in bins], color=MODEL, linewidth=0, alpha=0.85)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="probability said", ylabel="share that came")
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_title(head)
        told = "; ".join(f"said {one.said:.2f}, came {one.came:.2f} of {one.events:,}" for one in bins)
        return _svg(figure, f"Reliability of {head}: {told}")


def _new(height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.patch.set_visible(False)
    axes: Axes = figure.subplots()
    axes.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, description: str) -> str:
    """The picture alone: no prolog, no name that two pictures of a page could share, and a description for readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r"#([\w-]+)", text))
    text = re.sub(r' id="([\w.-]+)"', lambda found: found[0] if found[1] in used else "", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r"font: ([\w ]*?)([\d.]+)px [^;\"]*", r"font: \1\2px system-ui, sans-serif", text)
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{label}">', text, count=1)
