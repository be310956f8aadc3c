"""Live quality against arithmetic by hand."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_app.events import Event
from stream_app.scoring import BehaviorScore, K, LiveScores, PopularItems, Score

BEHAVIORS = ("view", "search", "purchase")


class Expected(NamedTuple):
    """What is expected of a user; a forecast has these two and more."""

    next_behaviors: Sequence[float]
    next_items: Sequence[Mapping[str, object]]


def event(item: str | None, user: str = "u", behavior: str = "view") -> Event:
    return Event(user, behavior, 0, item)


def expectation(items: Iterable[str] = (), behaviors: Sequence[float] = (1.0, 0.0, 0.0)) -> Expected:
    return Expected(behaviors, [{"item_id": item} for item in items])


def new_scores(**options: int) -> LiveScores:
    return LiveScores(BEHAVIORS, **options)


# One score


def test_hit_rate_and_reciprocal_rank() -> None:
    score = Score()
    for rank in (1, 3, 10, 11, None):
        score.add(rank)
    assert (score.events, score.hits) == (5, 3)
    assert score.hit_rate == pytest.approx(3 / 5)
    assert score.mrr == pytest.approx((1 / 1 + 1 / 3 + 1 / 10 + 0 + 0) / 5)


def test_before_the_first_event_there_is_no_figure() -> None:
    for figure in (Score().hit_rate, Score().mrr, BehaviorScore().calibration_error):
        assert math.isnan(figure)


@given(st.lists(st.none() | st.integers(1, 20), min_size=1, max_size=20))
def test_scores_are_means_over_events(ranks: list[int | None]) -> None:
    score = Score()
    for rank in ranks:
        score.add(rank)
    among_the_first = [rank for rank in ranks if rank is not None and rank <= 10]
    assert score.hit_rate == pytest.approx(len(among_the_first) / len(ranks))
    assert score.mrr == pytest.approx(sum(1 / rank for rank in among_the_first) / len(ranks))


# Behaviours


def test_log_loss_and_accuracy_of_the_behavior() -> None:
    score = BehaviorScore()
    score.add([0.5, 0.25, 0.25], 0)
    score.add([0.9, 0.1], 1)
    score.add([1.0], None)  # a behaviour that the model does not know
    score.add([1.0, 0.0], 1)
    assert score.log_loss == pytest.approx(-math.log(0.5) - math.log(0.1) - math.log(1e-6) - math.log(1e-6))
    assert (score.events, score.correct) == (4, 1)


def test_of_equal_probabilities_the_first_is_the_favourite() -> None:
    score = BehaviorScore()
    for actual in (0, 1, 2):
        score.add([0.25, 0.375, 0.375], actual)
    assert score.correct == 1


def test_calibration_by_hand() -> None:
    score = BehaviorScore()
    for actual in (0, 0, 1):  # the bin from 0.7 to 0.8: 3 events, confidence 0.75 each, 2 of them right
        score.add([0.75, 0.25], actual)
    score.add([0.45, 0.55], 0)  # the bin from 0.5 to 0.6: wrong
    score.add([1.0, 0.0], 0)  # the last bin: right
    in_first = abs(3 * 0.75 - 2)
    assert score.calibration_error == pytest.approx((in_first + abs(0.55 - 0) + abs(1.0 - 1)) / 5)


@given(st.lists(st.tuples(st.floats(0.5, 1), st.sampled_from([0, 1, None])), min_size=1, max_size=30))
def test_calibration_is_a_weighted_mean_of_gaps(cases: list[tuple[float, int | None]]) -> None:
    score = BehaviorScore()
    for confidence, actual in cases:
        score.add([confidence, 1 - confidence], actual)
    bins: dict[int, list[tuple[float, int | None]]] = {}
    for case in cases:
        bins.setdefault(min(int(case[0] * 10), 9), []).append(case)
    gaps = []
    for members in bins.values():
        confidence = sum(confidence for confidence, _ in members) / len(members)
        accuracy = sum(actual == 0 for _, actual in members) / len(members)
        gaps.append(len(members) * abs(confidence - accuracy))
    assert score.calibration_error == pytest.approx(sum(gaps) / len(cases))
    assert score.correct == sum(actual == 0 for _, actual in cases)
    assert score.log_loss >= 0


# Popular items


def popular_after(items: Iterable[str], half_life: int = 1000) -> PopularItems:
    popular = PopularItems(half_life)
    for item in items:
        popular.count(item)
    return popular


some_items = st.integers(0, 30).flatmap(lambda most: st.integers(0, most))


@given(st.integers(1, 60), st.lists(some_items, max_size=20) | st.lists(some_items, min_size=60, max_size=150))
def test_popular_items_are_the_first_of_a_plain_count(half_life: int, items: list[int]) -> None:
    """At every moment: nothing is approximate but which of equal ones stand at the K-th place."""
    popular, counts = PopularItems(half_life), Counter[int]()
    for number, item in enumerate(items, start=1):
        if number % half_life == 0:  # halved just before, and what falls below 1 forgotten
            counts = Counter({one: count // 2 for one, count in counts.items() if count // 2})
        popular.count(str(item))
        counts[item] += 1
        ranks = {one: 1 + sum(other > count for other in counts.values()) for one, count in counts.items()}
        shown = {one: rank for one in ranks if (rank := popular.rank(str(one))) is not None}
        assert shown == {one: ranks[one] for one in shown}
        assert len(shown) == min(K, len(counts))
        assert sorted(shown.values()) == sorted(ranks.values())[:K]
        assert popular.rank("never seen") is None


def test_popular_items_rank_by_count() -> None:
    popular = popular_after(["rare"] * 30 + ["often"] * 70 + ["first"] + ["also rare"] * 30)
    ranks = [popular.rank(item) for item in ("often", "rare", "also rare", "first", "none")]
    assert ranks == [1, 1 + 1, 1 + 1, 1 + 3, None]


def test_the_last_of_the_first_ten_gives_way_to_one_seen_more_often() -> None:
    items = [f"i{n}" for n in range(10)] * 2
    assert popular_after([*items, "new"]).rank("new") is None
    popular = popular_after([*items, "new", "new", "new"])
    assert popular.rank("new") == 1
    assert [popular.rank(f"i{n}") for n in range(10)].count(1 + 1) == 9


def test_after_a_halving_there_is_room_for_what_is_new() -> None:
    popular = popular_after([f"i{n}" for n in range(10)] + ["i0"], half_life=12)
    popular.count("new")  # counts are halved before it, and all but i0 forgotten
    assert [popular.rank(item) for item in ("i0", "i1", "new")] == [1, None, 1]


def test_popularity_follows_the_day() -> None:
    """Counts are halved: 400 of yesterday's weigh less than 200 of today's, which a plain count would not say."""
    popular = popular_after(["yesterday"] * 400 + ["today"] * 200, half_life=100)
    # yesterday: 99 → 49 + 100 → 74 + 100 → 87 + 100 → 93 + 1 → 47 → 23; today: 99 → 49 + 100 → 74 + 1
    assert (popular.rank("today"), popular.rank("yesterday")) == (1, 2)


def test_popularity_forgets_what_is_rare() -> None:
    assert len(popular_after((f"once-{n}" for n in range(5000)), half_life=1000)._counts) <= 1000


# A stream of events


def test_a_prediction_is_scored_against_the_next_event_and_only_once() -> None:
    scores = new_scores()
    scores.observe(event("a"), 0, None, lambda *_: None)
    assert scores.model.events == 0
    scores.expect("u", 0, expectation(["b", "a"]))
    scores.observe(event("a"), 0, None, lambda *_: 1)
    assert (scores.model.events, scores.model.mrr) == (1, pytest.approx(1 / 2))
    scores.observe(event("a"), 0, None, lambda *_: 1)
    assert scores.model.events == scores.behavior.events == scores.repeat.events == 1


def test_the_latest_expectation_counts() -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(["old"]))
    scores.expect("u", 0, expectation(["new"]))
    scores.observe(event("new"), 0, None, lambda *_: None)
    assert scores.model.hit_rate == 1.0


def test_what_was_expected_after_another_event_than_the_last_is_not_scored() -> None:
    scores = new_scores()
    scores.expect("u", 7, expectation(["a"]))
    scores.observe(event("a"), 8, None, lambda *_: None)  # the event at 8 was left out
    assert scores.model.events == 0
    scores.expect("u", 9, expectation(["a"]))
    scores.observe(event("a"), 9, None, lambda *_: None)
    assert scores.model.events == 1


def test_users_are_kept_apart() -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(["a"]))
    scores.observe(event("a", user="v"), 0, None, lambda *_: None)
    assert scores.model.events == 0
    scores.observe(event("a", user="u"), 0, None, lambda *_: None)
    assert scores.model.hits == 1


def test_an_event_about_no_item_counts_for_the_behavior_only() -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(["a"], [0.25, 0.75, 0.0]))
    scores.observe(event(None, behavior="search"), 0, None, lambda *_: None)
    assert scores.behavior.correct == scores.behavior.events == 1
    assert (scores.model.events, scores.popularity.events, scores.repeat.events) == (0, 0, 0)


@given(st.permutations([0.5, 0.3, 0.2]), st.sampled_from([*BEHAVIORS, "login"]))
def test_probabilities_stand_in_the_order_of_the_behaviors(probabilities: list[float], behavior: str) -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(behaviors=probabilities))
    scores.observe(event("a", behavior=behavior), 0, None, lambda *_: None)
    of_actual = dict(zip(BEHAVIORS, probabilities, strict=True)).get(behavior, 1e-6)
    assert scores.behavior.log_loss == pytest.approx(-math.log(of_actual))
    assert scores.behavior.correct == (of_actual == 0.5)


def test_all_three_predictors_are_scored_on_the_same_events() -> None:
    scores = new_scores()
    for item in "aabacc":
        scores.observe(event(item, user="others"), 0, None, lambda *_: None)
    scores.expect("u", 0, expectation(["x", "y", "b"]))
    scores.observe(event("b"), 0, None, lambda *_: 2)
    assert scores.model.mrr == pytest.approx(1 / 3)
    assert scores.popularity.mrr == pytest.approx(1 / 3)  # a 3, c 2, b 1
    assert scores.repeat.mrr == pytest.approx(1 / 2)
    assert (scores.model.events, scores.popularity.events, scores.repeat.events) == (1, 1, 1)


@given(st.lists(st.sampled_from("abcdefghijkl"), unique=True), st.sampled_from("abcdefghijklz"))
def test_the_rank_of_the_model_is_the_place_in_its_list(items: list[str], item: str) -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(items))
    scores.observe(event(item), 0, None, lambda *_: None)
    hit = item in items[:10]
    assert scores.model.hits == hit
    assert scores.model.reciprocal_rank == pytest.approx(1 / (items.index(item) + 1) if hit else 0)


def test_popularity_does_not_know_the_event_it_is_scored_on() -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation())
    scores.observe(event("a"), 0, None, lambda *_: None)
    assert (scores.popularity.events, scores.popularity.hits) == (1, 0)
    scores.expect("u", 0, expectation())
    scores.observe(event("a"), 0, None, lambda *_: None)
    assert (scores.popularity.events, scores.popularity.hits) == (2, 1)


def test_popularity_counts_events_that_nothing_was_expected_of() -> None:
    scores = new_scores(half_life=100)
    for item in ["yesterday"] * 400 + ["today"] * 200:
        scores.observe(event(item, user="others"), 0, None, lambda *_: None)
    scores.expect("u", 0, expectation())
    scores.observe(event("yesterday"), 0, None, lambda *_: None)
    assert scores.popularity.mrr == pytest.approx(1 / 2)


@given(st.integers(1, 5), st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_the_users_expected_last_are_remembered(capacity: int, users: list[str]) -> None:
    scores = new_scores(capacity=capacity)
    for user in users:
        scores.expect(user, 0, expectation(["i"]))
    recent = list(dict.fromkeys(reversed(users)))[:capacity]
    for user in sorted(set(users)):
        before = scores.model.events
        scores.observe(event("i", user=user), 0, None, lambda *_: None)
        assert (scores.model.events - before) == (user in recent)


def test_a_forgotten_user_is_not_scored() -> None:
    scores = new_scores()
    scores.expect("u", 0, expectation(["a"]))
    scores.forget("u")
    scores.forget("nobody")
    scores.observe(event("a"), 0, None, lambda *_: None)
    assert scores.model.events == 0


# Another order of the behaviours


def test_another_order_drops_what_is_expected_and_the_same_one_keeps_it() -> None:
    for order, scored in ((BEHAVIORS, 1), (("purchase", "view"), 0)):
        scores = new_scores()
        scores.expect("u", 0, expectation(["a"], [0.5, 0.25, 0.25]))
        scores.reorder(order)
        scores.observe(event("a"), 0, None, lambda *_: None)
        assert (scores.model.events, scores.behavior.events) == (scored, scored)
        scores.expect("u", 0, expectation(["a"], [0.5, 0.25, 0.25][: len(order)]))
        scores.observe(event("a", behavior=order[0]), 0, None, lambda *_: None)
        assert scores.behavior.log_loss == pytest.approx(-math.log(0.5) * (1 + scored))
