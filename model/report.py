"""An evaluation as one page that needs nothing else, and the same as JSON beside it.

    FILE.html   tables, charts and model card; no script, no font, no picture from elsewhere
    FILE.json   every figure

Each is written beside its place and renamed into it. It knows nothing of how the figures came about.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from model import card
from model.artifact import Manifest
from model.contenders import BASELINES
from model.evaluation import Evaluation
from model.questions import higher_is_better

TEMPLATE = "report.html"
NAMES = {
    "item": "Next item",
    "category": "Next category",
    "behavior": "Next behaviour",
    "time": "Time to the next event",
    "purchase": "Goal within its horizon",
    "churn": "Churn within its horizon",
}
HEADLINES = (  # the first of each group that could be measured
    ("item NDCG@10", "item NDCG@20", "item HR@10"),
    ("category HR@1", "category NDCG@10"),
    ("behavior log-loss", "behavior accuracy"),
    ("time pinball (log s)",),
    ("purchase log-loss",),
    ("churn log-loss",),
)
HEADS = {
    "loss": "all, weighted", "item": "next item", "category": "next category", "behavior": "next behaviour",
    "with_item": "behaviour with the item", "time": "time to next", "goal": "goal", "churn": "churn",
}  # fmt: skip


Losses = dict[int, float]  # epoch → mean loss


class ReportError(Exception):
    """A report that cannot be written; the message is one line."""


def check_place(path: Path) -> None:
    """Raises ReportError where no report could be written."""
    if path.suffix != ".html":
        raise ReportError(f"a report is an .html file, with a .json beside it; got {path}")
    if not path.parent.is_dir():
        raise ReportError(f"cannot write {path}: there is no directory {path.parent}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ReportError(f"cannot write {path}")


def write(path: Path, evaluation: Evaluation, manifest: Manifest) -> tuple[Path, Path]:
    """The page and the JSON; returns both places. Raises ReportError."""
    check_place(path)
    beside = path.with_suffix(".json")
    _put(path, page(evaluation, manifest).encode())
    _put(beside, msgspec.json.format(msgspec.json.encode(document(evaluation, manifest))) + b"\n")
    return path, beside


def document(evaluation: Evaluation, manifest: Manifest) -> dict[str, Any]:
    """Everything that the page shows, as plain values; the golden answers and popular items of the model stay with it."""
    model = msgspec.to_builtins(manifest)
    return {
        **evaluation.to_dict(),
        "model": {name: model[name] for name in model if name not in ("golden", "popular_items")},
    }


def page(evaluation: Evaluation, manifest: Manifest) -> str:
    """The page as HTML."""
    from model import charts  # brings matplotlib along, which takes a second to load

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "interval": _interval, "signed": _signed, "moment": card.moment}
    return environment.get_template(TEMPLATE).render(
        evaluation=evaluation,
        groups=list(_groups(evaluation)),
        headlines=list(_headlines(evaluation)),
        beside=[charts.beside(_title(name), _rows(evaluation, name)) for name in _compared(evaluation)],
        diagrams=[charts.diagram(head, bins) for head, bins in evaluation.reliability.items()],
        curves=[charts.curve(*one) for one in _curves(manifest)],
        baselines=BASELINES,
        facts=list(card.facts(manifest)),
        fitted=manifest.calibration,
        use=card.USE,
        limits=card.LIMITS,
        licence=card.LICENCE,
    )


def _groups(evaluation: Evaluation) -> Iterator[tuple[str, list[str]]]:
    """(title, measures of the model), in the order in which they were measured."""
    for kind, title in NAMES.items():
        names = [name for name in evaluation.scores["model"] if name.split()[0] == kind]
        if names:
            yield title, names


def _headlines(evaluation: Evaluation) -> Iterator[str]:
    for names in HEADLINES:
        yield from [name for name in names if name in evaluation.scores["model"]][:1]


def _compared(evaluation: Evaluation) -> Iterator[str]:
    return (name for name in _headlines(evaluation) if name in evaluation.against_best)


def _rows(evaluation: Evaluation, name: str) -> list[tuple[str, float, tuple[float, float] | None]]:
    return [
        (who, own[name], evaluation.intervals.get(who, {}).get(name))
        for who, own in evaluation.scores.items()
        if name in own
    ]


def _title(name: str) -> str:
    return name if higher_is_better(name) else f"{name}, lower is better"


def _curves(manifest: Manifest) -> Iterator[tuple[str, Losses, Losses, int | None]]:
    """(head, training losses, validation losses, epoch that was kept) of the first pass."""
    epochs = [epoch for epoch in manifest.curve if epoch.phase == manifest.curve[0].phase]
    kept = manifest.training.epochs if any(epoch.validation for epoch in epochs) else None
    for head, title in HEADS.items():
        training = {epoch.epoch: epoch.training[head] for epoch in epochs if head in epoch.training}
        validation = {epoch.epoch: epoch.validation[head] for epoch in epochs if head in epoch.validation}
        if training or validation:
            yield title, training, validation, kept


def _put(path: Path, content: bytes) -> None:
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            Path(beside).chmod(0o644)
            Path(beside).replace(path)
        finally:
            Path(beside).unlink(missing_ok=True)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from error


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _interval(interval: tuple[float, float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:.4f} – {interval[1]:.4f}".replace("-", "−")
