"""Training and evaluation as the command line and the demo show them: progress bars, tables and pages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from model import callbacks, report, splits, training
from model.artifact import read_manifest
from model.backtest import DayResult
from model.callbacks import Callback
from model.engine import Engine
from model.evaluation import Evaluation, EvaluationError, evaluate
from model.exam import Protocol
from model.sequences import sequences
from model.training import TrainResult
from stream_app.behaviors import Behaviors
from stream_app.event_logs import EventLog

BACKTESTED = ("item NDCG@10", "item HR@10", "category HR@1", "behavior log-loss", "time pinball (log s)")


class TrainingBar(Callback):
    """Draws how far a training has come."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("read", total=1, loss="")

    def on_step(self, progress: callbacks.Progress) -> None:
        """Moves the bar."""
        loss = "" if progress.loss is None else f"loss {progress.loss:.3f}"
        self._bar.update(
            self._task, description=progress.phase, completed=progress.step, total=progress.total, loss=loss
        )


@contextmanager
def training_bar(console: Console, *, quiet: bool = False) -> Iterator[TrainingBar]:
    """A progress bar for `train`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=quiet) as bar:
        yield TrainingBar(bar)


def learn(frame: pl.DataFrame, behaviors: Behaviors, out: Path, **options: Any) -> TrainResult:
    """Train on the behaviours that the log holds, in the order of the vocabulary, and on the goal. Raises TrainingError."""
    present = set(frame["behavior"].unique())
    names = [name for name in behaviors.names if name in present or name == behaviors.goal]
    return training.train(frame, names, behaviors.goal, out, **options)


def examine(directory: Path, log: EventLog, protocol: str, split: float) -> dict[str, Evaluation]:
    """The evaluations that a protocol of `model.splits` wants, by name; raises ArtifactError, EvaluationError, FrameError.

    "daily" gives one for each day that begins after the model's training: how it ages.
    """
    engine = Engine.load(directory)
    trained = engine.manifest.training
    wanted = "leave-one-out" if protocol == "leave-one-out" else "time"
    if trained.protocol != wanted:
        raise EvaluationError(
            f"the model learned from events that {protocol} would test; train with --protocol {wanted}"
        )
    told = Protocol().of_log(log.report.paths, log.report.dropped)
    if protocol == "time":
        return {protocol: evaluate(engine, log.frame, split=split, protocol=told)}
    if protocol == "leave-one-out":
        return {protocol: evaluate(engine, log.frame, choose=splits.leave_one_out, protocol=told)}
    found = {}
    for fold in splits.daily(sequences(log.frame), trained.until_ms):
        with suppress(EvaluationError):  # a day of newcomers only
            found[fold.name] = evaluate(engine, log.frame, choose=fold.chosen, protocol=told)
    if not found:
        raise EvaluationError("the log has no day after the model's training; train with a smaller --split")
    return found


def write_report(path: Path, directory: Path, evaluation: Evaluation) -> tuple[Path, Path]:
    """The page and the JSON about a model directory. Raises ArtifactError or ReportError."""
    return report.write(path, evaluation, read_manifest(directory))


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


def backtest_table(found: Sequence[DayResult]) -> Table:
    """A row per day and way to be up to date, and one with the means over the days of each."""
    table = Table(title="tested day by day", title_justify="left")
    for number, name in enumerate(("day", "update", "events", *BACKTESTED, "seconds")):
        table.add_column(name, justify="right" if number > 1 else "left")
    for one in found:
        scores = one.evaluation.scores["model"]
        cells = (f"{scores[name]:.4f}" if name in scores else "" for name in BACKTESTED)
        table.add_row(one.day, one.update, f"{one.evaluation.test_events:,}", *cells, f"{one.seconds:.0f}")
    table.add_section()
    for update in dict.fromkeys(one.update for one in found):
        own = [one for one in found if one.update == update]
        values = [[one.evaluation.scores["model"].get(name) for one in own] for name in BACKTESTED]
        means = ("" if None in some else f"{fmean(map(float, some)):.4f}" for some in values)  # type: ignore[arg-type]
        table.add_row("mean", update, "", *means, f"{fmean(one.seconds for one in own):.0f}")
    return table
