"""Day by day: trained on all days before, tested on the next one; anew each time, or going on from yesterday's model.

The ways to keep a model up to date are compared on the same days: `retrain` learns all anew, `fine-tune` goes on from
yesterday's model with the new day and some of the older events, `keep` leaves the first model as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl

from model.engine import Engine
from model.evaluation import Evaluation, EvaluationError, evaluate
from model.sequences import sequences, usable
from model.splits import Fold, daily
from model.training import TrainResult
from model.warm_start import WarmStart

UPDATES = ("retrain", "fine-tune", "keep")

Learn = Callable[..., TrainResult]  # (events, directory, **options of `model.order.Order`)


@dataclass(frozen=True, slots=True)
class DayResult:
    """One day under one way to be up to date."""

    update: str  # one of UPDATES
    day: str
    seconds: float  # of learning for this day
    evaluation: Evaluation


def backtest(
    frame: pl.DataFrame,
    learn: Learn,
    days: int,
    updates: Sequence[str] = ("retrain",),
    replay: float = 0.25,
    **options: Any,
) -> Iterator[DayResult]:
    """The last `days` days of a log, each under each of `updates`, in order; options as in `model.order.Order`.

    Raises TrainingError, FrameError, or EvaluationError where the log has too few days or a way is none.
    """
    unknown = [update for update in updates if update not in UPDATES]
    if unknown:
        raise EvaluationError(f"no update {unknown[0]!r}; there are {', '.join(UPDATES)}")
    frame = usable(frame).sort("timestamp", maintain_order=True)
    folds = list(daily(sequences(frame)))
    if len(folds) < days:
        raise EvaluationError(f"the log has {len(folds)} days with a day before them, not {days}")
    with TemporaryDirectory(prefix="nextmove-backtest-") as scratch:
        latest: dict[str, Path] = {}
        for number, fold in enumerate(folds[-days:]):
            seconds: dict[str, float] = {}
            for update in updates:
                place = Path(scratch) / (f"{update}-{number}" if number else "first")
                begun = time.monotonic()
                if number == 0 and latest:  # the first model is everybody's
                    seconds[update] = seconds[updates[0]]
                elif number == 0 or update != "keep":
                    warm = WarmStart(latest[update], replay) if number and update == "fine-tune" else None
                    learn(before(frame, fold), out=place, train_until=1.0, warm=warm, **options)
                    seconds[update] = time.monotonic() - begun
                latest[update] = place if place.exists() else latest[update]
                found = evaluate(Engine.load(latest[update]), frame, choose=fold.chosen)
                yield DayResult(update, fold.name, seconds.get(update, 0.0), found)


def before(frame: pl.DataFrame, fold: Fold) -> pl.DataFrame:
    """The events that a fold learns from; frame is sorted by time."""
    return frame.head(int(np.count_nonzero(fold.train)))
