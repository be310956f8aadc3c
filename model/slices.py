"""Where a ranking is good and where not: by the length of the history, and by what was new.

Every slice holds events of one question; figures and comparisons are made as for the whole (`model.intervals`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model import measures
from model.exam import Exam
from model.intervals import Difference, Resamples, difference
from model.measures import Bools, Ints
from model.questions import Ranking

LENGTHS = (1, 5, 10, 20, 50)  # a history's first length in each slice


@dataclass(frozen=True, slots=True)
class Slice:
    """Some of the events of a ranking, measured by NDCG@10, or at the longest k asked where that is less."""

    name: str
    events: int
    users: int
    model: float
    interval: tuple[float, float] | None
    best: float  # of the best baseline
    against_best: Difference


def slices(exam: Exam, question: Ranking, draws: Resamples, person: Ints) -> list[Slice]:
    """Every slice that has events; person [N] numbers the users of the draws."""
    at = question.at
    begins = exam.data.first[at].copy()  # of the window before each event, [E]
    late = begins < at
    begins[late] = exam.data.window_starts(at[late] - 1, exam.rule)
    found = (*_by_length(exam, at - begins), *_by_novelty(exam, question, begins))
    return [_measured(name, question, chosen, draws, person[at]) for name, chosen in found if chosen.any()]


def _by_length(exam: Exam, lengths: Ints) -> Iterator[tuple[str, Bools]]:
    """(name, events [E]) by how many events the window held."""
    yield "no history", lengths == 0
    starts = [length for length in LENGTHS if length <= exam.rule.events]
    for low, high in pairwise((*starts, exam.rule.events + 1)):
        span = f"{low} to {high - 1}" if high - low > 1 else f"{low}"
        yield f"history of {span}", (lengths >= low) & (lengths < high)


def _by_novelty(exam: Exam, question: Ranking, begins: Ints) -> Iterator[tuple[str, Bools]]:
    """Likewise, by whether what came and who did it had been seen before."""
    column = exam.data.items if question.name == "item" else exam.data.categories
    trained = {column[at] for at in np.flatnonzero(exam.train).tolist()}
    places = question.at.tolist()
    known = np.array([column[at] in trained for at in places])
    again = np.array([column[at] in column[begin:at] for begin, at in zip(begins.tolist(), places, strict=True)])
    old = np.isin(exam.data.users[question.at], exam.data.users[exam.train])
    yield f"{question.name} already in the window", again
    yield f"{question.name} not in the window, seen in training", ~again & known
    yield f"{question.name} not in the window, never seen in training", ~again & ~known
    history, cold = begins < question.at, ~again & ~known
    yield f"cold {question.name}, after some history", cold & history
    yield f"all but cold {question.name}, after some history", ~cold & history
    yield "user seen in training", old
    yield "user new", ~old


def _measured(name: str, question: Ranking, chosen: Bools, draws: Resamples, who: Ints) -> Slice:
    k = min(10, max(question.k))
    figures = {
        contender: draws.figures(measures.ndcg(ranks[chosen], k), who[chosen])
        for contender, ranks in question.ranks.items()
    }
    best = max((one for one in figures if one != "model"), key=lambda one: float(figures[one][0]))
    return Slice(
        name=name,
        events=int(chosen.sum()),
        users=len(np.unique(who[chosen])),
        model=float(figures["model"][0]),
        interval=draws.interval(figures["model"]),
        best=float(figures[best][0]),
        against_best=difference(draws, figures["model"], figures[best], best, higher_is_better=True),
    )
