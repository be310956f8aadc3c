import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.sequences import sequences
from model.splits import by_share, by_time, daily, leave_one_out
from model.window import DAY_MS

lives = st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 60)), min_size=1, max_size=50)


def data_of(rows):
    """Lives of (user, time in tenths of a day)."""
    frame = pl.DataFrame(
        {
            "user_id": [user for user, _ in rows],
            "timestamp": [time * DAY_MS // 10 for _, time in rows],
            "behavior": ["view"] * len(rows),
            "item_id": ["x"] * len(rows),
            "category": ["c"] * len(rows),
        }
    )
    return sequences(frame)


def check(fold, data):
    """What holds for each split: parts that do not overlap, and no future in the training of a split by time."""
    assert (fold.train.astype(int) + fold.validation + fold.test).max() <= 1
    assert len(fold.train) == len(fold.test) == len(fold.validation) == len(data)
    learned = fold.train | fold.validation
    if fold.forward and learned.any() and fold.test.any():
        assert data.times_ms[learned].max() <= data.times_ms[fold.test].min()
        assert data.order[learned].max() < data.order[fold.test].min()


@given(lives, st.floats(0, 1))
def test_a_split_by_share_is_one_cut_through_the_log(rows, share):
    data = data_of(rows)
    fold = by_share(data, share)
    check(fold, data)
    assert fold.train.sum() == int(len(rows) * share)
    assert (fold.train | fold.test).all()


@given(lives, st.integers(-10, 70))
def test_a_split_at_a_time_keeps_equal_times_together(rows, time):
    data = data_of(rows)
    fold = by_time(data, time * DAY_MS // 10)
    check(fold, data)
    assert (fold.train | fold.test).all()
    assert not set(data.times_ms[fold.train]) & set(data.times_ms[fold.test])


@given(lives)
def test_day_by_day_each_later_event_is_tested_once(rows):
    data = data_of(rows)
    tested = np.zeros(len(data), int)
    names = []
    for fold in daily(data):
        check(fold, data)
        assert fold.train.any()
        assert fold.train.sum() == (data.times_ms < data.times_ms[fold.test].min()).sum()
        assert len(set(data.times_ms[fold.test] // DAY_MS)) == 1
        tested += fold.test
        names.append(fold.name)
    days = data.times_ms // DAY_MS
    assert tested.tolist() == (days > days.min()).astype(int).tolist()
    assert names == sorted(set(names))


def test_only_days_that_begin_after_a_time():
    data = data_of([("a", time) for time in range(0, 50, 5)])
    assert [fold.name for fold in daily(data)] == ["1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"]
    assert [fold.name for fold in daily(data, after_ms=2 * DAY_MS)] == ["1970-01-04", "1970-01-05"]
    assert next(fold.name for fold in daily(data, after_ms=2 * DAY_MS - 1)) == "1970-01-03"


@given(lives)
def test_leave_one_out_takes_the_last_two_of_each_user(rows):
    data = data_of(rows)
    fold = leave_one_out(data)
    check(fold, data)
    assert (fold.train | fold.validation | fold.test).all()
    for user in np.unique(data.users):
        own = np.flatnonzero(data.users == user)
        held = [own[-1]] if len(own) >= 3 else []
        assert np.flatnonzero(fold.test & (data.users == user)).tolist() == held
        assert np.flatnonzero(fold.validation & (data.users == user)).tolist() == [at - 1 for at in held]
        assert fold.train[own[0]]


@pytest.mark.parametrize("time", [5, 10**18])
def test_every_time_has_a_name(time):
    assert by_time(data_of([("a", 1)]), time).name.startswith("from ")
