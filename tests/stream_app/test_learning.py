"""What is handed to the training, and how an evaluation is shown."""

import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from model import training
from model.backtest import DayResult
from model.callbacks import Progress
from model.evaluation import Evaluation
from model.exam import Protocol
from model.intervals import Difference
from stream_app import behaviors, learning

SHOP = behaviors.load()


@pytest.mark.parametrize(
    ("seen", "learned"),
    [
        (["purchase", "view", "view"], ["view", "purchase"]),
        (["view"], ["view", "purchase"]),  # the goal is always among them
    ],
)
def test_a_model_learns_the_behaviors_of_its_log_in_the_order_of_the_vocabulary(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], learned: list[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(training, "train", lambda *given, **options: asked.append((given, options)))
    frame = pl.DataFrame({"behavior": seen})
    learning.learn(frame, SHOP, Path("out"), seed=3)
    (((got, names, goal, out), options),) = asked
    assert got is frame
    assert (names, goal, out, options) == (learned, "purchase", Path("out"), {"seed": 3})
    assert names == [name for name in SHOP.names if name in names]


def test_an_evaluation_beside_its_baselines() -> None:
    scores = {"model": {"item HR@10": 0.5, "behavior accuracy": 0.75}, "repeat": {"item HR@10": 0.25}}
    intervals = {"model": {"item HR@10": (0.4, 0.6)}}
    best = {"item HR@10": Difference("repeat", 0.25, (0.1, 0.4), "ahead")}
    evaluation = Evaluation("abc", Protocol(), 1234, 5, 67, 0, 1, scores, intervals, best)
    console = Console(file=io.StringIO(), width=100)
    console.print(learning.evaluation_table(evaluation))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "model abc on 1,234 events of 67 users" in text
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    assert rows == [
        ["item HR@10", "0.5000", "0.4000 – 0.6000", "repeat 0.2500", "ahead"],
        ["behavior accuracy", "0.7500", "", "", ""],
    ]


def test_a_backtest_has_a_row_per_day_and_update_and_their_means() -> None:
    def tested(update: str, day: str, value: float) -> DayResult:
        scores = {"model": {"item NDCG@10": value}}
        return DayResult(update, day, 4.0, Evaluation("abc", Protocol(), 1234, 5, 67, 0, 1, scores))

    console = Console(file=io.StringIO(), width=200)
    found = [tested("retrain", "a", 0.25), tested("keep", "a", 0.1), tested("retrain", "b", 0.75)]
    console.print(learning.backtest_table(found))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if "│" in line]
    none = [""] * (len(learning.BACKTESTED) - 1)
    assert rows == [
        ["a", "retrain", "1,234", "0.2500", *none, "4"],
        ["a", "keep", "1,234", "0.1000", *none, "4"],
        ["b", "retrain", "1,234", "0.7500", *none, "4"],
        ["mean", "retrain", "", f"{(0.25 + 0.75) / 2:.4f}", *none, "4"],
        ["mean", "keep", "", "0.1000", *none, "4"],
    ]


def test_progress_is_shown_until_told_to_be_quiet() -> None:
    for quiet in (False, True):
        console = Console(file=io.StringIO(), force_terminal=True, width=100)
        with learning.training_bar(console, quiet=quiet) as bar:
            bar.on_step(Progress(phase="learn", step=1, total=2, loss=0.125))
            bar.on_step(Progress(phase="learn", step=2, total=2, loss=None))
        assert ("100 %" in console.file.getvalue()) is not quiet  # type: ignore[attr-defined]
