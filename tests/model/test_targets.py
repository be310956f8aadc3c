import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from model.targets import Horizons, targets

HORIZONS = Horizons(goal_ms=10, churn_ms=20)


def test_labels_by_hand():
    users = np.array([1, 1, 1, 2])
    times = np.array([0, 5, 30, 7])
    goal = np.array([True, True, False, False])
    got = targets(users, times, goal, HORIZONS, observed_until=27)
    assert got.next.tolist() == [1, 2, -1, -1]
    assert got.gap_ms.tolist() == [5, 25, 0, 0]
    assert got.goal.tolist() == [True, False, False, False]  # an event's own goal does not count
    assert got.goal_known.tolist() == [True, True, False, True]  # 30 + 10 > 27
    assert got.churn.tolist() == [False, True, True, True]  # 25 > 20; nothing came
    assert got.churn_known.tolist() == [True, True, False, True]  # 7 + 20 ≤ 27


def test_another_users_goal_is_not_mine():
    got = targets(np.array([1, 2]), np.array([0, 1]), np.array([False, True]), HORIZONS, 100)
    assert got.goal.tolist() == [False, False]


events = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 60), st.booleans()), min_size=1, max_size=12)


@given(events, st.integers(0, 80))
def test_labels_equal_the_slow_definition(rows, observed_until):
    rows.sort(key=lambda row: row[:2])
    users, times, goal = (np.array(column) for column in zip(*rows, strict=True))
    got = targets(users, times, goal, HORIZONS, observed_until)
    for i, (user, time, _) in enumerate(rows):
        later = [row for row in rows[i + 1 :] if row[0] == user]
        assert got.goal[i] == any(is_goal and at - time <= 10 for _, at, is_goal in later)
        assert got.churn[i] == (not later or later[0][1] - time > 20)
        assert got.churn_known[i] == (time + 20 <= observed_until)
        assert (got.next[i] >= 0) == bool(later)
