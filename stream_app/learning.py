"""Training and evaluation as the command line and the demo show them: progress bars, tables and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model import report, training
from model.artifact import read_manifest
from model.evaluation import Evaluation, evaluate
from model.exam import Protocol
from model.training import TrainResult
from stream_app.behaviors import Behaviors
from stream_app.event_logs import EventLog

Report = Callable[[training.Progress], None]


@contextmanager
def training_bar(console: Console, *, quiet: bool = False) -> Iterator[Report]:
    """A progress bar for `train`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=quiet) as bar:
        task = bar.add_task("read", total=1, loss="")

        def report(step: training.Progress) -> None:
            loss = "" if step.loss is None else f"loss {step.loss:.3f}"
            bar.update(task, description=step.phase, completed=step.step, total=step.total, loss=loss)

        yield report


def learn(frame: pl.DataFrame, behaviors: Behaviors, out: Path, **options: Any) -> TrainResult:
    """Train on the behaviours that the log holds, in the order of the vocabulary, and on the goal. Raises TrainingError."""
    present = set(frame["behavior"].unique())
    names = [name for name in behaviors.names if name in present or name == behaviors.goal]
    return training.train(frame, names, behaviors.goal, out, **options)


def examine(directory: Path, log: EventLog, split: float) -> Evaluation:
    """A model on the part of a log after the split. Raises ArtifactError, FrameError, or EvaluationError where there is none."""
    protocol = Protocol().of_log(log.report.paths, log.report.dropped)
    return evaluate(directory, log.frame, split=split, protocol=protocol)


def write_report(path: Path, directory: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """The page and the JSON about a model directory. Raises ArtifactError or ReportError."""
    return report.write(path, evaluation, read_manifest(directory))


def evaluation_table(evaluation: Evaluation) -> Table:
    """An evaluation beside its baselines."""
    header, *rows = evaluation.rows()
    title = f"model {evaluation.model_version} on {evaluation.test_events:,} events of {evaluation.users:,} users"
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
