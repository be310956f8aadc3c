"""Training and evaluation as the command line and the demo show them: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model import splits, training
from model.engine import Engine
from model.evaluation import Evaluation, EvaluationError, evaluate
from model.sequences import sequences
from model.training import TrainResult
from stream_app.behaviors import Behaviors

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


def examine(engine: Engine, frame: pl.DataFrame, protocol: str, split: float) -> dict[str, Evaluation]:
    """The evaluations that a protocol of `model.splits` wants, by name; raises EvaluationError and FrameError.

    "daily" gives one for each day that begins after the model's training: how it ages.
    """
    trained = engine.manifest.training
    wanted = "leave-one-out" if protocol == "leave-one-out" else "time"
    if trained.protocol != wanted:
        raise EvaluationError(
            f"the model learned from events that {protocol} would test; train with --protocol {wanted}"
        )
    if protocol == "time":
        return {protocol: evaluate(engine, frame, split=split)}
    if protocol == "leave-one-out":
        return {protocol: evaluate(engine, frame, choose=splits.leave_one_out)}
    found = {}
    for fold in splits.daily(sequences(frame), trained.until_ms):
        with suppress(EvaluationError):  # a day of newcomers only
            found[fold.name] = evaluate(engine, frame, choose=fold.chosen)
    if not found:
        raise EvaluationError("the log has no day after the model's training; train with a smaller --split")
    return found


def evaluation_table(evaluation: Evaluation, name: str = "time") -> Table:
    """An evaluation beside its baselines; `name` is that of the split."""
    header, *rows = evaluation.rows()
    title = f"model {evaluation.model_version} on {evaluation.test_events:,} events of {evaluation.users:,} users"
    title += "" if name == "time" else f", {name}"
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
