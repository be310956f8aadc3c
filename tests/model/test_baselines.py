import numpy as np

from model.baselines import Markov, Popularity, Repeat, behavior_shares, behavior_transitions, rates_by_class


def test_popularity_ranks_by_count_then_name():
    assert Popularity(["b", "a", None, "c", "c"]).rank(["x"], 2) == ["c", "a"]


def test_repeat_is_the_window_backwards_without_doubles():
    assert Repeat().rank(["a", "b", None, "a", "c"], 2) == ["c", "a"]
    assert Repeat().rank([None], 5) == []


def test_markov_says_what_followed_then_repeats():
    markov = Markov(["a", "b", "a", "c", "a", "c", "a", "z"], np.array([1, 1, 1, 1, 1, 1, 1, 2]))
    assert markov.rank(["x", "y", "a"], 5) == ["c", "b", "a", "y", "x"]  # a → z crosses users
    assert markov.rank(["c", "unheard"], 5) == ["unheard", "c"]
    assert markov.rank([], 5) == []


def test_shares_add_one_to_each_count():
    assert behavior_shares(np.array([0, 0, 1]), 2).tolist() == [3 / 5, 2 / 5]
    assert behavior_transitions(np.array([0, 0]), np.array([1, 1]), 2).tolist() == [[1 / 4, 3 / 4], [1 / 2, 1 / 2]]
    rates = rates_by_class(np.array([0, 0, 1]), np.array([True, False, True]), 3)
    assert rates.tolist() == [(1 + 1) / (2 + 2), (1 + 1) / (1 + 2), 1 / 2]
