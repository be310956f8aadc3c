"""What the model and the baselines answer to the questions of an exam: the same events, the same windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from model import baselines, measures
from model.baselines import Names
from model.config import QUANTILES
from model.engine import Engine
from model.exam import Exam
from model.forecast import Forecast
from model.measures import Bools, Floats, Ints
from model.questions import Choice, Question, Ranking, Waiting, YesNo
from model.targets import Targets
from model.window import DAY_MS

BATCH = 4096  # windows between two reports
WEEK_MS = 7 * DAY_MS
DECAY_EVENTS = 1000  # the newest of the training part, on which the decay of frequency is chosen
BASELINES = {
    "popularity": "the most frequent of the training part, for everyone",
    "weekly popularity": "the most frequent of the training part's last seven days",
    "repeat": "the window, most recent first",
    "frequency": "the window by decayed counts; the decay is chosen on the training part",
    "markov": "what most often followed the newest one, then repeat; behaviours and rates by the newest behaviour",
    "majority": "shares, rates and quantiles of the training part, for everyone",
}

Rank = Callable[[Names, Sequence[int], int], list[str]]
Forecasts = dict[int, Forecast]  # event → what the model says right after it


def ask(engine: Engine, exam: Exam, k: int, progress: Callable[[int, int], None] | None = None) -> Forecasts:
    """The model's answers after every asked event; progress gets (windows done, windows in all)."""
    answers: list[Forecast] = []
    for begin in range(0, len(exam.asked), BATCH):
        answers.extend(engine.predict(exam.windows(exam.asked[begin : begin + BATCH]), top_k=k))
        if progress is not None:
            progress(len(answers), len(exam.asked))
    return dict(zip(exam.asked.tolist(), answers, strict=True))


def questions(engine: Engine, exam: Exam, forecasts: Forecasts, k: Sequence[int]) -> list[Question]:
    """Everything that can be asked on this log, answered by all; empty questions are left out.

    Nothing with a horizon is asked where the split itself tells that nothing follows.
    """
    items = {at: [(one["item_id"], one["probability"]) for one in said.next_items] for at, said in forecasts.items()}
    categories = {
        at: [(one["category"], one["probability"]) for one in said.next_categories] for at, said in forecasts.items()
    }
    buying = {at: said.purchase_probability for at, said in forecasts.items()}
    leaving = {at: said.churn_probability for at, said in forecasts.items()}
    found = (
        rank(exam, "item", exam.data.items, items, k),
        rank(exam, "category", exam.data.categories, categories, k),
        choose_behavior(exam, forecasts, engine.behaviors),
        wait(exam, forecasts),
        yes_or_no(exam, "purchase", buying) if exam.forward else None,
        yes_or_no(exam, "churn", leaving) if exam.forward else None,
    )
    return [question for question in found if question is not None]


def rank(
    exam: Exam, name: str, column: list[str | None], listed: dict[int, list[tuple[str, float]]], k: Sequence[int]
) -> Ranking | None:
    """The ranks of what came in each contender's list; a first event of a user counts as a miss for all."""
    wanted = np.array([at for at in exam.wanted.tolist() if column[at] is not None], np.int64)
    missed = np.array([at for at in exam.cold.tolist() if column[at] is not None], np.int64)
    if len(wanted) == 0:
        return None
    came = [column[at] for at in wanted.tolist()]
    windows = list(windows_of(exam, column, wanted))
    lists = {"model": [[one for one, _ in listed[at - 1]] for at in wanted.tolist()]}
    for who, answer in rankers(exam, column).items():
        lists[who] = [answer(names, times, max(k)) for names, times in windows]
    nothing = np.zeros(len(missed), np.int64)
    first = [listed[at - 1][0][1] if listed[at - 1] else 0.0 for at in wanted.tolist()]
    return Ranking(
        name=name,
        at=np.concatenate((wanted, missed)),
        ranks={who: np.append(measures.ranks_of(answers, came), nothing) for who, answers in lists.items()},
        confidence=np.append(np.array(first), nothing * np.nan),
        k=tuple(k),
    )


def windows_of(exam: Exam, column: list[str | None], at: Ints) -> Iterator[tuple[Names, Sequence[int]]]:
    """What was there right before each event: names and times."""
    times = exam.data.times_ms.tolist()
    for begin, end in zip(exam.data.window_starts(at - 1, exam.rule).tolist(), at.tolist(), strict=True):
        yield column[begin:end], times[begin:end]


def rankers(exam: Exam, column: list[str | None]) -> dict[str, Rank]:
    """The ranked baselines, made from the training part."""
    data, places = exam.data, np.flatnonzero(exam.train)
    trained = [column[at] for at in places.tolist()]
    until = int(data.times_ms[places].max(initial=0))
    lately = [column[at] for at in places[data.times_ms[places] > until - WEEK_MS].tolist()]
    sample = places[(data.first[places] < places)]
    sample = sample[np.argsort(data.order[sample])][-DECAY_EVENTS:]
    sample = np.array([at for at in sample.tolist() if column[at] is not None], np.int64)
    decay = baselines.best_decay(list(windows_of(exam, column, sample)), [column[at] for at in sample.tolist()])
    return {
        "popularity": baselines.Popularity(trained).rank,
        "weekly popularity": baselines.Popularity(lately).rank,
        "repeat": baselines.Repeat().rank,
        "frequency": decay.rank,
        "markov": baselines.Markov(trained, data.users[places]).rank,
    }


def choose_behavior(exam: Exam, forecasts: Forecasts, classes: Sequence[str]) -> Choice | None:
    """Probabilities of the next behaviour: of the model, by the newest behaviour, and the shares."""
    wanted = exam.wanted[exam.behaviors[exam.wanted] >= 0]
    if len(wanted) == 0:
        return None
    newest = exam.behaviors[wanted - 1]
    learned = np.flatnonzero(exam.train[1:] & exam.train[:-1] & (np.diff(exam.data.users) == 0)) + 1
    learned = learned[(exam.behaviors[learned] >= 0) & (exam.behaviors[learned - 1] >= 0)]
    after, before = exam.behaviors[learned], exam.behaviors[learned - 1]
    shares = baselines.behavior_shares(after, exam.classes)
    steps = baselines.behavior_transitions(before, after, exam.classes)
    given: dict[str, Floats] = {
        "model": np.array([forecasts[at - 1].next_behaviors for at in wanted.tolist()]),
        "markov": np.where(newest[:, None] >= 0, steps[newest], shares),
        "majority": np.tile(shares, (len(wanted), 1)),
    }
    return Choice(wanted, exam.behaviors[wanted], given, tuple(classes))


def wait(exam: Exam, forecasts: Forecasts) -> Waiting:
    """Quantiles of the time to the next event: of the model, and those of the training part."""
    labels = exam.labels
    trained = exam.train & (labels.next >= 0)
    trained &= exam.train[labels.next]
    usual = np.quantile(labels.gap_ms[trained] / 1000, QUANTILES) if trained.any() else np.zeros(len(QUANTILES))
    given: dict[str, Floats] = {
        "model": np.array([forecasts[at - 1].time_to_next_s for at in exam.wanted.tolist()]),
        "majority": np.tile(usual, (len(exam.wanted), 1)),
    }
    return Waiting(exam.wanted, labels.gap_ms[exam.wanted - 1] / 1000, given)


def yes_or_no(exam: Exam, name: str, said: dict[int, float]) -> YesNo | None:
    """A question with a horizon, asked after every test event whose horizon ends inside the log."""
    truth, known = _labels(exam.labels, name)
    asked = exam.asked[exam.test[exam.asked] & known[exam.asked]]
    if len(asked) == 0:
        return None
    learned_truth, learned_known = _labels(exam.training_labels, name)
    learned = np.flatnonzero(exam.train & learned_known & (exam.behaviors >= 0))
    happened = learned_truth[learned]
    rate = (happened.sum() + 1) / (len(learned) + 2)
    rates = baselines.rates_by_class(exam.behaviors[learned], happened, exam.classes)
    newest = exam.behaviors[asked]
    given: dict[str, Floats] = {
        "model": np.array([said[at] for at in asked.tolist()]),
        "markov": np.where(newest >= 0, rates[newest], rate),
        "majority": np.full(len(asked), rate),
    }
    return YesNo(name, asked, truth[asked], given)


def _labels(labels: Targets, name: str) -> tuple[Bools, Bools]:
    return (labels.goal, labels.goal_known) if name == "purchase" else (labels.churn, labels.churn_known)
