"""How good a model is on the last part of a log, beside baselines on the very same events.

The split is by global time unless another one of `model.splits` is chosen. Every tested event is predicted from its
user's window before it; nothing is filtered or cleaned, neither items already seen nor bots. A user's very first event
has no window: it counts as a miss for every contender in the ranked measures and is left out of the others. Ties in a
list: by falling probability, then the window's candidates from the most recent on, then the vocabulary's order. Questions
with a horizon are asked at every tested event whose horizon ends inside the log; not in leave-one-out, where the split
itself tells that nothing follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl

from model import baselines, measures
from model.config import QUANTILES
from model.engine import Engine
from model.forecast import Forecast
from model.measures import Bools, Floats, Ints
from model.sequences import Sequences, sequences, window_list
from model.splits import Fold, Split, by_share
from model.targets import Horizons, Targets, targets

BATCH = 4096  # windows between two reports
RANKED = ("popularity", "repeat", "markov")


class EvaluationError(Exception):
    """There is nothing to evaluate on; the message is one line."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measures per contender; NaN never occurs, a measure that cannot be computed is left out."""

    model_version: str
    split: float
    test_events: int
    cold_events: int  # without a window
    users: int
    from_ms: int
    until_ms: int
    scores: dict[str, dict[str, float]]  # contender → measure → value; "model" is the first

    def to_dict(self) -> dict[str, object]:
        """Ready for JSON."""
        return asdict(self)

    def rows(self) -> list[list[str]]:
        """A table: a heading, then one row per measure with a column per contender, "" where it does not apply."""
        contenders = list(self.scores)
        names = dict.fromkeys(name for scores in self.scores.values() for name in scores)
        body = [
            [name, *(f"{scores[name]:.4f}" if name in scores else "" for scores in self.scores.values())]
            for name in names
        ]
        return [["measure", *contenders], *body]


@dataclass(frozen=True, slots=True)
class Exam:
    """The events of an evaluation."""

    data: Sequences
    train: Bools  # [N]
    test: Bools  # [N]
    forward: bool  # all of test lies after all of train
    wanted: Ints  # events to be predicted that have a window before them
    cold: Ints  # events to be predicted that have none
    asked: Ints  # events after which something is asked
    windows: Sequence[int]  # first event of each asked window
    behaviors: Ints  # [N] class, -1 for one that the model does not know
    classes: int
    labels: Targets
    training_labels: Targets


def evaluate(
    engine_or_dir: Engine | str | Path,
    frame: pl.DataFrame,
    *,
    split: float = 0.8,
    choose: Split | None = None,
    k: Sequence[int] = (1, 5, 10, 20),
    device: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores the model and the baselines on the events after `split`, or on those that `choose` wants tested.

    Progress gets (windows done, windows in all).

    Raises ArtifactError, FrameError, or EvaluationError where no event follows the split.
    """
    engine = engine_or_dir if isinstance(engine_or_dir, Engine) else Engine.load(engine_or_dir, device=device)
    data = sequences(frame)
    exam = set_exam(engine, data, choose(data) if choose else by_share(data, split))
    forecasts = dict(zip(exam.asked.tolist(), _answers(engine, exam, max(k), progress), strict=True))
    scores: dict[str, dict[str, float]] = {"model": {}, **{name: {} for name in RANKED}, "majority": {}}
    items = {at: [item["item_id"] for item in forecast.next_items] for at, forecast in forecasts.items()}
    categories = {at: [one["category"] for one in forecast.next_categories] for at, forecast in forecasts.items()}
    _score_ranking(scores, exam, "item", exam.data.items, items, k)
    _score_ranking(scores, exam, "category", exam.data.categories, categories, k)
    _score_behavior(scores, exam, forecasts)
    _score_time(scores, exam, forecasts)
    if exam.forward:
        _score_question(scores, exam, forecasts, "purchase", exam.labels.goal, exam.labels.goal_known)
        _score_question(scores, exam, forecasts, "churn", exam.labels.churn, exam.labels.churn_known)
    test = exam.test
    return Evaluation(
        model_version=engine.version,
        split=split,
        test_events=int(test.sum()),
        cold_events=len(exam.cold),
        users=len(np.unique(exam.data.users[test])),
        from_ms=int(exam.data.times_ms[test].min()),
        until_ms=int(exam.data.times_ms[test].max()),
        scores={
            who: {name: value for name, value in own.items() if value == value} for who, own in scores.items() if own
        },
    )


def set_exam(engine: Engine, data: Sequences, fold: Fold) -> Exam:
    """Which events are predicted from which windows, and the truth; raises EvaluationError."""
    test, train = np.flatnonzero(fold.test), fold.train
    is_cold = data.first[test] == test
    wanted = test[~is_cold]
    if len(wanted) == 0:
        raise EvaluationError("nothing to evaluate: no event to be tested has an earlier event of the same user")
    asked = np.union1d(wanted - 1, test)
    position = {name: number for number, name in enumerate(engine.behaviors)}
    horizons = Horizons(engine.manifest.goal_horizon_ms, engine.manifest.churn_horizon_ms)
    goal = np.fromiter((name == engine.goal for name in data.behaviors), np.bool_, len(data))

    def labels(observed_until: int) -> Targets:
        return targets(data.users, data.times_ms, goal, horizons, observed_until)

    return Exam(
        data=data,
        train=train,
        test=fold.test,
        forward=fold.forward,
        wanted=wanted,
        cold=test[is_cold],
        asked=asked,
        windows=data.window_starts(asked, engine.window).tolist(),
        behaviors=np.fromiter((position.get(name, -1) for name in data.behaviors), np.int64, len(data)),
        classes=len(engine.behaviors),
        labels=labels(int(data.times_ms.max())),
        training_labels=labels(int(data.times_ms[train].max(initial=int(data.times_ms.min())))),
    )


def _answers(engine: Engine, exam: Exam, k: int, progress: Callable[[int, int], None] | None) -> list[Forecast]:
    answers: list[Forecast] = []
    for begin in range(0, len(exam.asked), BATCH):
        some = exam.asked[begin : begin + BATCH].tolist()
        answers.extend(engine.predict(window_list(exam.data, some, engine.window), top_k=k))
        if progress is not None:
            progress(len(answers), len(exam.asked))
    return answers


def _score_ranking(
    scores: dict[str, dict[str, float]],
    exam: Exam,
    name: str,
    column: list[str | None],
    listed: dict[int, list[str]],
    k: Sequence[int],
) -> None:
    """Ranked measures of one kind of name, for the model and the ranked baselines."""
    wanted = [at for at in exam.wanted.tolist() if column[at] is not None]
    missed = sum(column[at] is not None for at in exam.cold.tolist())
    if not wanted:
        return
    start = dict(zip(exam.asked.tolist(), exam.windows, strict=True))
    trained = [column[at] for at in np.flatnonzero(exam.train).tolist()]
    rankers = {
        "popularity": baselines.Popularity(trained).rank,
        "repeat": baselines.Repeat().rank,
        "markov": baselines.Markov(trained, exam.data.users[exam.train]).rank,
    }
    lists = {"model": [listed[at - 1] for at in wanted]}
    for who, rank in rankers.items():
        lists[who] = [rank(column[start[at - 1] : at], max(k)) for at in wanted]
    for who, answers in lists.items():
        ranks = measures.ranks_of(answers, [column[at] for at in wanted])
        ranks = np.append(ranks, np.zeros(missed, np.int64))
        for one in k:
            scores[who][f"{name} HR@{one}"] = measures.hit_rate(ranks, one)
            if one > 1:
                scores[who][f"{name} NDCG@{one}"] = measures.ndcg(ranks, one)
        scores[who][f"{name} MRR@{max(k)}"] = measures.reciprocal_rank(ranks)


def _score_behavior(scores: dict[str, dict[str, float]], exam: Exam, forecasts: dict[int, Forecast]) -> None:
    wanted = exam.wanted[exam.behaviors[exam.wanted] >= 0]
    if len(wanted) == 0:
        return
    actual, newest = exam.behaviors[wanted], exam.behaviors[wanted - 1]
    learned = np.flatnonzero(exam.train[1:] & exam.train[:-1] & (np.diff(exam.data.users) == 0)) + 1
    learned = learned[(exam.behaviors[learned] >= 0) & (exam.behaviors[learned - 1] >= 0)]
    after, before = exam.behaviors[learned], exam.behaviors[learned - 1]
    shares = baselines.behavior_shares(after, exam.classes)
    steps = baselines.behavior_transitions(before, after, exam.classes)
    answers: dict[str, Floats] = {
        "model": np.array([forecasts[at - 1].next_behaviors for at in wanted.tolist()]),
        "markov": np.where(newest[:, None] >= 0, steps[newest], shares),
        "majority": np.tile(shares, (len(wanted), 1)),
    }
    for who, given in answers.items():
        predicted = given.argmax(1)
        scores[who]["behavior accuracy"] = measures.accuracy(predicted, actual)
        scores[who]["behavior macro-F1"] = measures.macro_f1(predicted, actual)
        scores[who]["behavior log-loss"] = measures.log_loss(given, actual)
        scores[who]["behavior ECE"] = measures.calibration_error(given.max(1), predicted == actual)


def _score_time(scores: dict[str, dict[str, float]], exam: Exam, forecasts: dict[int, Forecast]) -> None:
    """Pinball in log seconds, median error in seconds and in log seconds, and what the outer quantiles hold."""
    actual = exam.labels.gap_ms[exam.wanted - 1] / 1000
    trained = exam.train & (exam.labels.next >= 0)
    trained &= exam.train[exam.labels.next]
    usual = np.quantile(exam.labels.gap_ms[trained] / 1000, QUANTILES) if trained.any() else np.zeros(3)
    answers: dict[str, Floats] = {
        "model": np.array([forecasts[at - 1].time_to_next_s for at in exam.wanted.tolist()]),
        "majority": np.tile(usual, (len(actual), 1)),
    }
    for who, seconds in answers.items():
        error = np.abs(np.log1p(seconds[:, 1]) - np.log1p(actual))
        inside = (actual >= seconds[:, 0]) & (actual <= seconds[:, 2])
        scores[who]["time pinball (log s)"] = measures.pinball(np.log1p(seconds), np.log1p(actual), QUANTILES)
        scores[who]["time MAE (log s)"] = float(error.mean())
        scores[who]["time MAE (s)"] = float(np.abs(seconds[:, 1] - actual).mean())
        scores[who]["time in 10–90 %"] = float(inside.mean())


def _score_question(
    scores: dict[str, dict[str, float]],
    exam: Exam,
    forecasts: dict[int, Forecast],
    name: str,
    truth: Bools,
    known: Bools,
) -> None:
    """A yes-or-no question with a horizon; "markov" is the rate after the newest behaviour, "majority" the rate."""
    asked = exam.asked[exam.test[exam.asked] & known[exam.asked]]
    if len(asked) == 0:
        return
    happened = truth[asked]
    own = exam.training_labels
    own_truth, own_known = (own.goal, own.goal_known) if name == "purchase" else (own.churn, own.churn_known)
    learned = np.flatnonzero(exam.train & own_known & (exam.behaviors >= 0))
    rate = (own_truth[learned].sum() + 1) / (len(learned) + 2)
    rates = baselines.rates_by_class(exam.behaviors[learned], own_truth[learned], exam.classes)
    newest = exam.behaviors[asked]
    answers: dict[str, Floats] = {
        "model": np.array(
            [
                forecasts[at].purchase_probability if name == "purchase" else forecasts[at].churn_probability
                for at in asked.tolist()
            ]
        ),
        "markov": np.where(newest >= 0, rates[newest], rate),
        "majority": np.full(len(asked), rate),
    }
    for who, probability in answers.items():
        scores[who][f"{name} AUC"] = measures.auc(probability, happened)
        scores[who][f"{name} log-loss"] = measures.binary_log_loss(probability, happened)
        scores[who][f"{name} ECE"] = measures.calibration_error(probability, happened)
