"""Live quality against arithmetic by hand."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.events import Event
from stream_app.scoring import BehaviorScore, Expectation, LiveScores, Score


def event(item: str | None, user: str = "u", behavior: str = "view") -> Event:
    return Event(user, behavior, 0, item)


def expectation(items: Sequence[str] = (), behaviors: dict[str, float] | None = None) -> Expectation:
    return Expectation(tuple(items), (), behaviors or {"view": 1.0})


# One score


def test_hit_rate_and_reciprocal_rank() -> None:
    score = Score()
    ranking = [f"i{n}" for n in range(12)]
    for item in ("i0", "i2", "i9", "i10", "absent"):
        score.add(ranking, item)
    assert (score.events, score.hits) == (5, 3)
    assert score.hit_rate == pytest.approx(3 / 5)
    assert score.mrr == pytest.approx((1 / 1 + 1 / 3 + 1 / 10 + 0 + 0) / 5)


def test_before_the_first_event_there_is_no_figure() -> None:
    for figure in (Score().hit_rate, Score().mrr, BehaviorScore().calibration_error):
        assert math.isnan(figure)


@given(st.lists(st.tuples(st.permutations("abcdefghijkl"), st.sampled_from("abcdefghijklz")), min_size=1, max_size=20))
def test_scores_are_means_over_events(cases: list[tuple[list[str], str]]) -> None:
    score = Score()
    for ranking, item in cases:
        score.add(ranking, item)
    ranks = [ranking.index(item) + 1 if item in ranking else math.inf for ranking, item in cases]
    assert score.hit_rate == pytest.approx(sum(rank <= 10 for rank in ranks) / len(ranks))
    assert score.mrr == pytest.approx(sum(1 / rank for rank in ranks if rank <= 10) / len(ranks))


# Behaviours


def test_log_loss_and_accuracy_of_the_behavior() -> None:
    score = BehaviorScore()
    score.add({"view": 0.5, "buy": 0.25, "cart": 0.25}, "view")
    score.add({"view": 0.9, "buy": 0.1}, "buy")
    score.add({"view": 1.0}, "unheard of")
    assert score.log_loss == pytest.approx(-math.log(0.5) - math.log(0.1) - math.log(1e-6))
    assert (score.events, score.correct) == (3, 1)


def test_calibration_by_hand() -> None:
    score = BehaviorScore()
    for _ in range(3):  # the bin from 0.7 to 0.8: 3 events, confidence 0.75 each, 2 of them right
        score.add({"view": 0.75, "buy": 0.25}, "view" if score.events < 2 else "buy")
    score.add({"view": 0.45, "buy": 0.55}, "view")  # the bin from 0.5 to 0.6: wrong
    score.add({"view": 1.0, "buy": 0.0}, "view")  # the last bin: right
    in_first = abs(3 * 0.75 - 2)
    assert score.calibration_error == pytest.approx((in_first + abs(0.55 - 0) + abs(1.0 - 1)) / 5)


@given(st.lists(st.tuples(st.floats(0.5, 1), st.booleans()), min_size=1, max_size=30))
def test_calibration_is_a_weighted_mean_of_gaps(cases: list[tuple[float, bool]]) -> None:
    score = BehaviorScore()
    for confidence, right in cases:
        score.add({"view": confidence, "buy": 1 - confidence}, "view" if right else "buy")
    bins: dict[int, list[tuple[float, bool]]] = {}
    for case in cases:
        bins.setdefault(min(int(case[0] * 10), 9), []).append(case)
    gaps = []
    for members in bins.values():
        confidence = sum(confidence for confidence, _ in members) / len(members)
        # of two equal halves the first one is the favourite, as in the dictionary
        accuracy = sum(right for _, right in members) / len(members)
        gaps.append(len(members) * abs(confidence - accuracy))
    assert score.calibration_error == pytest.approx(sum(gaps) / len(cases))


# A stream of events


def test_a_prediction_is_scored_against_the_next_event_and_only_once() -> None:
    scores = LiveScores()
    scores.observe(event("a"), ())
    assert scores.model.events == 0
    scores.expect("u", expectation(["b", "a"]))
    scores.observe(event("a"), ("a",))
    assert (scores.model.events, scores.model.mrr) == (1, pytest.approx(1 / 2))
    scores.observe(event("a"), ("a", "a"))
    assert scores.model.events == scores.behavior.events == 1


def test_the_latest_expectation_counts() -> None:
    scores = LiveScores()
    scores.expect("u", expectation(["old"]))
    scores.expect("u", expectation(["new"]))
    scores.observe(event("new"), ())
    assert scores.model.hit_rate == 1.0


def test_users_are_kept_apart() -> None:
    scores = LiveScores()
    scores.expect("u", expectation(["a"]))
    scores.observe(event("a", user="v"), ())
    assert scores.model.events == 0
    scores.observe(event("a", user="u"), ())
    assert scores.model.hits == 1


def test_an_event_about_no_item_counts_for_the_behavior_only() -> None:
    scores = LiveScores()
    scores.expect("u", expectation(["a"], {"view": 0.25, "search": 0.75}))
    scores.observe(event(None, behavior="search"), ("a",))
    assert scores.behavior.correct == scores.behavior.events == 1
    assert (scores.model.events, scores.popularity.events, scores.repeat.events) == (0, 0, 0)


def test_all_three_predictors_are_scored_on_the_same_events() -> None:
    scores = LiveScores()
    for item in "aabac":
        scores.observe(event(item, user="others"), ())
    scores.expect("u", expectation(["x", "y", "b"]))
    scores.observe(event("b"), ["c", "b", None, "b", "a", "a"])
    assert scores.model.mrr == pytest.approx(1 / 3)
    assert scores.repeat.mrr == pytest.approx(1 / 2)  # a, then b, then c: distinct, newest first
    assert (scores.model.events, scores.popularity.events, scores.repeat.events) == (1, 1, 1)


def test_repeat_looks_at_ten_distinct_items() -> None:
    scores = LiveScores()
    past = [f"i{n}" for n in range(11)]
    for item, hits in (("i0", 0), ("i1", 1)):
        scores.expect("u", expectation())
        scores.observe(event(item), past)
        assert scores.repeat.hits == hits


def test_popularity_does_not_know_the_event_it_is_scored_on() -> None:
    scores = LiveScores()
    scores.expect("u", expectation())
    scores.observe(event("a"), ())
    assert (scores.popularity.events, scores.popularity.hits) == (1, 0)


def test_popularity_ranks_by_count_within_a_hundred_events() -> None:
    scores = LiveScores()
    for item in ["rare"] * 30 + ["often"] * 70 + ["first"]:
        scores.observe(event(item, user="others"), ())
    scores.expect("u", expectation())
    scores.observe(event("rare"), ())
    assert scores.popularity.mrr == pytest.approx(1 / 2)


def test_popularity_follows_the_day() -> None:
    """Counts are halved: 100 of yesterday's weigh (100 / 2 + 50 …) less than today's, which a plain count would not say."""
    scores = LiveScores(half_life=100)
    for item in ["yesterday"] * 400 + ["today"] * 200:
        scores.observe(event(item, user="others"), ())
    scores.expect("u", expectation())
    scores.observe(event("yesterday"), ())
    # yesterday: 100 → 50 → 75 → 87 → 93 → 46 → 23; today: 100 → 50, + 100 → 75
    assert scores.popularity.mrr == pytest.approx(1 / 2)


def test_popularity_forgets_what_is_rare() -> None:
    scores = LiveScores(half_life=1000)
    for n in range(5000):
        scores.observe(event(f"once-{n}"), ())
    assert len(scores._counts) < 1000


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_the_users_expected_last_are_remembered(capacity: int, users: list[str]) -> None:
    scores = LiveScores(capacity=capacity)
    for user in users:
        scores.expect(user, expectation(["i"]))
    recent = list(dict.fromkeys(reversed(users)))[:capacity]
    for user in sorted(set(users)):
        before = scores.model.events
        scores.observe(event("i", user=user), ())
        assert (scores.model.events - before) == (user in recent)


def test_a_forgotten_user_is_not_scored() -> None:
    scores = LiveScores()
    scores.expect("u", expectation(["a"]))
    scores.forget("u")
    scores.forget("nobody")
    scores.observe(event("a"), ())
    assert scores.model.events == 0
