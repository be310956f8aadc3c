"""An exam: which events are to be predicted from which windows, what may be learned from, and the truth.

A split says which events are training and which are test; everything else follows from it. It knows nothing of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from model.engine import Engine
from model.measures import Bools, Ints
from model.sequences import Sequences, window_list
from model.splits import Fold
from model.targets import Horizons, Targets, targets
from model.window import Window, WindowRule

TIES = (
    "by falling probability; then names of the window, the most recent first; then the order of the vocabulary, "
    "which is by falling count"
)


class EvaluationError(Exception):
    """There is nothing to evaluate on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a figure must say about itself; each a phrase for people."""

    files: str = "a table of events in memory"
    left_out: str = "nothing"  # rows of the files that are no events
    split: str = ""
    asked: str = "every event held out, from its user's window before it; items already seen are not filtered out"
    ties: str = TIES
    validation: str = "none"
    seed: str = ""

    def of_log(self, paths: Sequence[Path], dropped: Mapping[str, int]) -> Protocol:
        """The same, with where the events are from and which rows were left out, by reason."""
        left_out = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in dropped.items())
        return replace(self, files=", ".join(path.name for path in paths), left_out=left_out or "nothing")


@dataclass(frozen=True, slots=True)
class Exam:
    """The events of an evaluation, N of them in the log."""

    data: Sequences
    train: Bools  # [N]
    test: Bools  # [N]
    wanted: Ints  # events to be predicted that have a window before them
    cold: Ints  # events to be predicted that have none
    asked: Ints  # events after which something is asked
    rule: WindowRule
    behaviors: Ints  # [N] class, -1 for one that the model does not know
    classes: int
    labels: Targets
    training_labels: Targets
    split: str
    forward: bool  # nothing of train happened after any of test

    def windows(self, at: Ints) -> list[Window]:
        """The windows that end with these events."""
        return window_list(self.data, at.tolist(), self.rule)


def set_exam(engine: Engine, data: Sequences, fold: Fold) -> Exam:
    """Everything that follows from a split; raises EvaluationError where no event can be predicted from another."""
    test = np.flatnonzero(fold.test)
    is_cold = data.first[test] == test
    wanted = test[~is_cold]
    if len(wanted) == 0:
        raise EvaluationError("nothing to evaluate: no event to be tested has an earlier event of the same user")
    position = {name: number for number, name in enumerate(engine.behaviors)}
    horizons = Horizons(engine.manifest.goal_horizon_ms, engine.manifest.churn_horizon_ms)
    goal = np.fromiter((name == engine.goal for name in data.behaviors), np.bool_, len(data))

    def labels(observed_until: int) -> Targets:
        return targets(data.users, data.times_ms, goal, horizons, observed_until)

    return Exam(
        data=data,
        train=fold.train,
        test=fold.test,
        wanted=wanted,
        cold=test[is_cold],
        asked=np.union1d(wanted - 1, test),
        rule=engine.window,
        behaviors=np.fromiter((position.get(name, -1) for name in data.behaviors), np.int64, len(data)),
        classes=len(engine.behaviors),
        labels=labels(int(data.times_ms.max())),
        training_labels=labels(int(data.times_ms[fold.train].max(initial=int(data.times_ms.min())))),
        split=fold.name,
        forward=fold.forward,
    )
