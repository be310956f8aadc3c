"""How good a model is on the events of an exam, beside baselines on the very same events.

The split is by global time unless another one of `model.splits` is chosen. Every tested event is predicted from its
user's window before it; nothing is filtered or cleaned, neither items already seen nor bots. A user's very first event
has no window: it counts as a miss for every contender in the ranked measures and is left out of the others. Ties in a
list: by falling probability, then the window's candidates from the most recent on, then the vocabulary's order. Questions
with a horizon are asked at every tested event whose horizon ends inside the log; not in leave-one-out, where the split
itself tells that nothing follows. Every figure has a 95 % interval from resampled users, and so has the model's distance
to the best baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from model.calibration import Effect
from model.contenders import Forecasts, ask, questions
from model.engine import Engine
from model.exam import EvaluationError, Exam, Protocol, set_exam
from model.intervals import Difference, Resamples, difference
from model.measures import Floats, Ints
from model.questions import Choice, Confusion, Question, Ranking, higher_is_better
from model.reliability import Bin, effects, reliability
from model.sequences import sequences
from model.slices import Slice, slices
from model.splits import Split, by_share
from model.threads import half_the_cores, threads

__all__ = ["Evaluation", "EvaluationError", "evaluate", "mark"]

Interval = tuple[float, float]
Figures = dict[str, dict[str, Floats]]  # contender → measure → the figure, then those of the draws [1 + R]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it would lie with other users."""

    value: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures per contender; NaN never occurs, a measure that cannot be computed is left out."""

    model_version: str
    protocol: Protocol
    test_events: int
    cold_events: int  # without a window
    users: int
    from_ms: int
    until_ms: int
    scores: dict[str, dict[str, float]]  # contender → measure → value; "model" is the first
    intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)  # likewise, where there are enough users
    against_best: dict[str, Difference] = field(default_factory=dict)  # measure → model minus the best baseline
    classes: dict[str, dict[str, Figure]] = field(default_factory=dict)  # behaviour → measure → of the model
    confusion: Confusion | None = None
    reliability: dict[str, list[Bin]] = field(default_factory=dict)  # head → bins that hold events
    calibration: dict[str, Effect] = field(default_factory=dict)  # head → what calibration does on these events
    slices: dict[str, list[Slice]] = field(default_factory=dict)  # "item" and "category" → slices

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found

    def rows(self) -> list[list[str]]:
        """A table: a heading, then one row per measure of the model beside the best baseline, "" where there is none."""
        body = []
        for name, value in self.scores["model"].items():
            best = self.against_best.get(name)
            baseline = f"{best.baseline} {self.scores[best.baseline][name]:.4f}" if best else ""
            interval = shown(self.intervals.get("model", {}).get(name))
            body.append([name, f"{value:.4f}", interval, baseline, best.verdict if best else ""])
        return [["measure", "model", "95 %", "best baseline", "model is"], *body]


def shown(interval: Interval | None) -> str:
    """An interval for a table."""
    return f"{interval[0]:.4f} – {interval[1]:.4f}" if interval else ""


def evaluate(
    engine_or_dir: Engine | str | Path,
    frame: pl.DataFrame,
    *,
    split: float = 0.8,
    choose: Split | None = None,
    k: Sequence[int] = (1, 5, 10, 20),
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
    protocol: Protocol | None = None,
) -> Evaluation:
    """Scores the model and the baselines on the events after `split`, or on those that `choose` wants tested.

    Progress gets (windows done, windows in all).

    Raises ArtifactError, FrameError, or EvaluationError where no event follows the split.
    """
    engine = engine_or_dir if isinstance(engine_or_dir, Engine) else Engine.load(engine_or_dir, device=device)
    data = sequences(frame)
    exam = set_exam(engine, data, choose(data) if choose else by_share(data, split))
    with threads(min(half_the_cores(), torch.get_num_threads())):
        forecasts = ask(engine, exam, max(k), progress)
    return mark(engine, exam, forecasts, k=k, protocol=protocol)


def mark(
    engine: Engine,
    exam: Exam,
    forecasts: Forecasts,
    *,
    k: Sequence[int] = (1, 5, 10, 20),
    protocol: Protocol | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measures answers to an exam; the seed is that of the draws of users."""
    users = np.unique(exam.data.users[exam.test])
    draws, person = Resamples(len(users), seed=seed), np.searchsorted(users, exam.data.users)
    asked = questions(engine, exam, forecasts, k)
    figures = _figures(asked, draws, person)
    times = exam.data.times_ms[exam.test]
    choices = [one for one in asked if isinstance(one, Choice)]
    return Evaluation(
        model_version=engine.version,
        protocol=told(engine, exam, protocol or Protocol(), seed),
        test_events=int(exam.test.sum()),
        cold_events=len(exam.cold),
        users=len(users),
        from_ms=int(times.min()),
        until_ms=int(times.max()),
        scores={who: {name: float(found[0]) for name, found in own.items()} for who, own in figures.items()},
        intervals=_intervals(draws, figures),
        against_best=_against_best(draws, figures),
        classes=_classes(choices, draws, person),
        confusion=choices[0].confusion() if choices else None,
        reliability=reliability(asked),
        calibration={} if engine.manifest.calibration is None else effects(asked, engine.calibration),
        slices={one.name: slices(exam, one, draws, person) for one in asked if isinstance(one, Ranking)},
    )


def told(engine: Engine, exam: Exam, protocol: Protocol, seed: int) -> Protocol:
    """The protocol of a report, completed by what the model and the exam know."""
    calibrated = "" if engine.manifest.calibration is None else ", which also calibrated the answers"
    return replace(
        protocol,
        split=exam.split,
        validation=f"the last part of the training range decided when to stop{calibrated}",
        seed=f"{engine.manifest.training.seed} of the training, {seed} of the draws of users",
    )


def _figures(asked: Sequence[Question], draws: Resamples, person: Ints) -> Figures:
    """Every measure that is defined; person [N] numbers the users of the draws."""
    figures: Figures = {"model": {}}
    for question in asked:
        for who, name, measure in question.measured():
            found = draws.figures(measure, person[question.at])
            if np.isfinite(found[0]):
                figures.setdefault(who, {})[name] = found
    return figures


def _classes(choices: Sequence[Choice], draws: Resamples, person: Ints) -> dict[str, dict[str, Figure]]:
    found: dict[str, dict[str, Figure]] = {}
    for choice in choices:
        for behavior, name, measure in choice.by_class():
            figures = draws.figures(measure, person[choice.at])
            if np.isfinite(figures[0]):
                found.setdefault(behavior, {})[name] = Figure(float(figures[0]), draws.interval(figures))
    return found


def _intervals(draws: Resamples, figures: Figures) -> dict[str, dict[str, Interval]]:
    found = {who: {name: draws.interval(one) for name, one in own.items()} for who, own in figures.items()}
    kept = {who: {name: one for name, one in own.items() if one is not None} for who, own in found.items()}
    return {who: own for who, own in kept.items() if own}


def _against_best(draws: Resamples, figures: Figures) -> dict[str, Difference]:
    """The model minus the best baseline, by measure."""
    found = {}
    for name, model in figures["model"].items():
        higher = higher_is_better(name)
        others = [who for who, own in figures.items() if who != "model" and name in own]
        if others and higher is not None:
            best = (max if higher else min)(others, key=lambda who: float(figures[who][name][0]))
            found[name] = difference(draws, model, figures[best][name], best, higher_is_better=higher)
    return found
