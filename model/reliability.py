"""How far the model's probabilities can be believed on the events of an exam: bins, and what calibration changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from model import calibration, measures
from model.calibration import Calibration, Effect
from model.measures import Bools, Floats
from model.questions import Choice, Question, Ranking, YesNo


@dataclass(frozen=True, slots=True)
class Bin:
    """Events with about the same probability."""

    events: int
    said: float  # mean probability
    came: float  # share that was right


def reliability(questions: Sequence[Question]) -> dict[str, list[Bin]]:
    """The bins of each head that holds events: of a choice by the probability of its first place."""
    return {name: bins(said, right) for name, said, right in _told(questions)}


def bins(said: Floats, right: Bools) -> list[Bin]:
    """Equal bins of [0, 1] from low to high, empty ones left out; [E] each."""
    where = measures.bin_of(said)
    chosen = [where == number for number in np.unique(where)]
    return [Bin(int(one.sum()), float(said[one].mean()), float(right[one].mean())) for one in chosen]


def _told(questions: Sequence[Question]) -> Iterator[tuple[str, Floats, Bools]]:
    for question in questions:
        if isinstance(question, Ranking):
            yield f"next {question.name}", *question.first_place()
        elif isinstance(question, Choice):
            given = question.given["model"]
            yield "next behavior", given.max(1), given.argmax(1) == question.actual
        elif isinstance(question, YesNo):
            yield question.name, question.given["model"], question.happened


def effects(questions: Sequence[Question], applied: Calibration) -> dict[str, Effect]:
    """What calibration does to log-loss and ECE: answers as they would be without it, and as they are."""
    found = {}
    for question in questions:
        if isinstance(question, Choice):
            mixes = question.given["model"]
            before = calibration.heated(mixes, 1 / applied.behavior_temperature)
            found["behavior"] = calibration.effect_on_choice((before, mixes), question.actual)
        elif isinstance(question, YesNo):
            line = applied.purchase if question.name == "purchase" else applied.churn
            said = question.given["model"]
            found[question.name] = calibration.effect_on_question((line.undone(said), said), question.happened)
    return found
