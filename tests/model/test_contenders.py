import numpy as np
import pytest

from model import contenders
from model.baselines import Frequency
from model.exam import set_exam
from model.sequences import sequences
from model.splits import Fold, by_share, leave_one_out


@pytest.fixture(scope="module")
def exam(engine, log):
    return set_exam(engine, sequences(log), by_share(sequences(log), 0.8))


@pytest.fixture(scope="module")
def asked(engine, exam):
    forecasts = contenders.ask(engine, exam, 10)
    return {
        type(one).__name__ + getattr(one, "name", ""): one
        for one in contenders.questions(engine, exam, forecasts, (1, 10))
    }


def test_every_contender_answers_the_same_events(exam, asked):
    assert list(asked) == ["Rankingitem", "Rankingcategory", "Choice", "Waiting", "YesNopurchase", "YesNochurn"]
    for question in asked.values():
        answers = question.ranks if hasattr(question, "ranks") else question.given
        assert {len(one) for one in answers.values()} == {len(question.at)}
        assert exam.test[question.at].all()
        assert set(answers) - {"model"} <= set(contenders.BASELINES)


def test_nothing_with_a_horizon_is_asked_where_the_split_tells_the_answer(engine, exam):
    last = set_exam(engine, exam.data, leave_one_out(exam.data))
    asked = contenders.questions(engine, last, contenders.ask(engine, last, 10), (1, 10))
    assert [type(one).__name__ for one in asked] == ["Ranking", "Ranking", "Choice", "Waiting"]


def test_windows_end_right_before_what_is_wanted(exam):
    at = exam.wanted[[0, -1]]
    for (names, times), place in zip(contenders.windows_of(exam, exam.data.items, at), at.tolist(), strict=True):
        assert names[-1] == exam.data.items[place - 1]
        assert times[-1] == exam.data.times_ms[place - 1]
        assert len(names) <= exam.rule.events


def test_weekly_popularity_forgets_what_is_older(engine, log):
    moved = sequences(log.with_columns(timestamp=log["timestamp"] * 10))  # ten times slower: weeks
    exam = set_exam(engine, moved, by_share(moved, 0.8))
    names = [f"old-{day > 30}" for day in (moved.times_ms - moved.times_ms.min()) / 86_400_000]
    rankers = contenders.rankers(exam, names)
    until = moved.times_ms[exam.train].max()
    lately = {names[at] for at in np.flatnonzero(exam.train & (moved.times_ms > until - contenders.WEEK_MS))}
    assert set(rankers["weekly popularity"](names, list(range(len(names))), 10)) == lately
    assert set(rankers["popularity"](names, list(range(len(names))), 10)) == {
        names[at] for at in np.flatnonzero(exam.train)
    }


def test_the_decay_is_chosen_on_the_training_part_alone(exam):
    data = exam.data
    changed = [f"other-{at}" if exam.test[at] else name for at, name in enumerate(data.items)]
    ours, theirs = (contenders.rankers(exam, column)["frequency"].__self__ for column in (data.items, changed))
    assert isinstance(ours, Frequency)
    assert ours == theirs


def test_baselines_without_anything_to_learn_from(engine, exam):
    nothing = Fold("", np.zeros(len(exam.data), bool), np.zeros(len(exam.data), bool), exam.test, forward=True)
    bare = set_exam(engine, exam.data, nothing)
    assert contenders.rankers(bare, exam.data.items)["popularity"](["a"], [0], 5) == []
    forecasts = contenders.ask(engine, bare, 10)
    for question in contenders.questions(engine, bare, forecasts, (1, 10)):
        assert {who for who, _, _ in question.measured()} > {"model"}
