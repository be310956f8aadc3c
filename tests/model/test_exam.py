from pathlib import Path

import numpy as np
import pytest

from model.exam import EvaluationError, Protocol, set_exam
from model.sequences import sequences
from model.splits import Fold, by_share, leave_one_out


@pytest.fixture(scope="module")
def data(log):
    return sequences(log)


def test_a_split_by_time_asks_what_comes_later(data):
    split = by_share(data, 0.8)
    assert data.times_ms[split.train].max() <= data.times_ms[split.test].min()
    assert (split.train.sum(), split.test.sum()) == (1600, 400)
    assert not (split.train & split.test).any()
    assert "80 %" in split.name


def test_any_split_can_be_asked(engine, data):
    """Leave-one-out: each user's last event is asked, all but the last two are for training."""
    exam = set_exam(engine, data, leave_one_out(data))
    assert not exam.forward
    assert len(exam.wanted) == 40
    assert len(exam.cold) == 0
    windows = exam.windows(exam.wanted - 1)
    assert all(len(window.items) == min(49, engine.window.events) for window in windows)
    assert exam.training_labels.goal_known[exam.asked].sum() <= len(exam.asked)


def test_nothing_to_ask_is_one_line(engine, data):
    nothing = np.zeros(len(data), bool)
    with pytest.raises(EvaluationError, match="nothing to evaluate"):
        set_exam(engine, data, Fold("", ~nothing, nothing, nothing, forward=True))


def test_a_protocol_says_where_events_are_from_and_what_was_left_out():
    told = Protocol().of_log([Path("a/b.csv"), Path("c.csv")], {"bad_timestamp": 1234})
    assert (told.files, told.left_out) == ("b.csv, c.csv", "1,234 bad timestamp")
    assert Protocol().of_log([Path("x")], {}).left_out == "nothing"
