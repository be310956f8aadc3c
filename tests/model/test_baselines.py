import math

import numpy as np

from model.baselines import (
    DECAYS,
    Frequency,
    Markov,
    Popularity,
    Repeat,
    behavior_shares,
    behavior_transitions,
    best_decay,
    rates_by_class,
)


def times(window):
    return list(range(0, 1000 * len(window), 1000))


def ranked(baseline, window, k):
    return baseline.rank(window, times(window), k)


def test_popularity_ranks_by_count_then_name():
    assert ranked(Popularity(["b", "a", None, "c", "c"]), ["x"], 2) == ["c", "a"]


def test_repeat_is_the_window_backwards_without_doubles():
    assert ranked(Repeat(), ["a", "b", None, "a", "c"], 2) == ["c", "a"]
    assert ranked(Repeat(), [None], 5) == []


def test_frequency_weighs_recent_events_more():
    window = ["a", "a", None, "b", "c"]
    assert ranked(Frequency(), window, 5) == ["a", "c", "b"]  # 2, 1, 1: ties to the more recent
    assert ranked(Frequency(per_event=0.5), window, 5) == ["c", "b", "a"]  # 1, 1/2, 1/8 + 1/16
    steps = Frequency(time_constant_s=1 / math.log(2))  # halves every second
    assert ranked(steps, window, 2) == ranked(Frequency(per_event=0.5), window, 2)
    assert Frequency(time_constant_s=1.0).rank(["a", "a", "b"], [0, 0, 10**12], 2) == ["b", "a"]
    assert ranked(Frequency(), [], 5) == []


def test_the_decay_is_the_one_that_would_have_been_best():
    often = ["a", "a", "b"]
    assert best_decay([(often, times(often))], ["a"]) == Frequency()
    assert best_decay([(often, times(often))], ["b"]).rank(often, times(often), 1) == ["b"]
    assert best_decay([], []) == DECAYS[0]


def test_markov_says_what_followed_then_repeats():
    markov = Markov(["a", "b", "a", "c", "a", "c", "a", "z"], np.array([1, 1, 1, 1, 1, 1, 1, 2]))
    assert ranked(markov, ["x", "y", "a"], 5) == ["c", "b", "a", "y", "x"]  # a → z crosses users
    assert ranked(markov, ["c", "unheard"], 5) == ["unheard", "c"]
    assert ranked(markov, [], 5) == []


def test_shares_add_one_to_each_count():
    assert behavior_shares(np.array([0, 0, 1]), 2).tolist() == [3 / 5, 2 / 5]
    assert behavior_transitions(np.array([0, 0]), np.array([1, 1]), 2).tolist() == [[1 / 4, 3 / 4], [1 / 2, 1 / 2]]
    rates = rates_by_class(np.array([0, 0, 1]), np.array([True, False, True]), 3)
    assert rates.tolist() == [(1 + 1) / (2 + 2), (1 + 1) / (1 + 2), 1 / 2]
