import numpy as np
import polars as pl
import pytest
import torch

from model.material import default_horizons, log_lift, make_labels, prepare, without_itself
from model.sequences import sequences
from model.targets import Horizons
from model.window import DAY_MS, WindowRule
from tests.model.conftest import BEHAVIORS, HOUR_MS, make_log

RULE = WindowRule()
HORIZONS = Horizons(DAY_MS // 4, DAY_MS // 4)


@pytest.fixture(scope="module")
def material():
    data = sequences(make_log(users=10, events=20))
    return prepare(data, 150, BEHAVIORS, "purchase", RULE, HORIZONS)


def test_the_vocabulary_knows_only_the_learning_part(material):
    data = material.data
    early = {item for item, place in zip(data.items, data.order, strict=True) if place < 150}
    assert set(material.vocabulary.items.names) == early
    assert early < set(data.items)


def test_what_is_known_only_by_this_event_is_unknown_as_a_target():
    rows = np.array([5, 5, 6, 2, 6])
    inside = np.array([True, True, True, True, False])
    got = without_itself(rows, 5, [2, 1], inside, least=1)
    assert got.tolist() == [5, 5, 2, 2, 6]  # row 6 occurs once: unknown at that event, known to a later one


def test_learning_and_checking_do_not_overlap(material):
    learning, checking = np.flatnonzero(material.learning()), material.checking()
    assert not set(learning.tolist()) & set(checking.tolist())
    following = material.learned.next[learning]
    assert (material.data.order[following] < 150).all()
    times = material.data.times_ms
    end = times[material.data.order < 150].max()
    known = material.learned.churn_known
    assert known.any()
    assert (times[known] + HORIZONS.churn_ms <= end).all()


def test_labels_are_the_next_events(material):
    at = int(np.flatnonzero(material.learning())[3])
    index = np.array([[at]])
    labels = make_labels(material, index, index >= 0, material.learning(), material.learned)
    assert labels.item_ids.item() == material.columns.item_ids[at + 1]
    assert labels.behavior_rows.item() == material.columns.behavior_rows[at + 1]
    gap = material.data.times_ms[at + 1] - material.data.times_ms[at]
    assert labels.log_seconds.item() == pytest.approx(np.log1p(gap / 1000))
    silent = make_labels(material, index, index < 0, material.learning(), material.learned)
    assert silent.item_ids.item() == silent.log_seconds.item() == silent.goal.item() == silent.churn.item() == -1


@pytest.mark.parametrize(
    ("items", "categories", "expected"),
    [
        (["a", "b", "c", "a"], [None] * 4, False),  # the second a is another user's
        (["a", "b", "a", "c"], [None] * 4, True),
        ([None] * 4, [None] * 4, False),
        (["a", "b", "c", "d"], ["x", "y", "x", None], True),
    ],
)
def test_whether_users_repeat_anything(items, categories, expected):
    frame = pl.DataFrame(
        {
            "user_id": ["u", "u", "u", "v"],
            "timestamp": [0, 1, 2, 3],
            "behavior": ["view"] * 4,
            "item_id": pl.Series(items, dtype=pl.String),
            "category": pl.Series(categories, dtype=pl.String),
        }
    )
    assert prepare(sequences(frame), 4, ("view",), "view", RULE, HORIZONS).repeats() == expected


def test_what_follows_a_behaviour_is_of_what_is_learned_from(material):
    data, first = material.data, material.vocabulary.behaviors.first
    rows, classes = material.behavior_steps()
    steps = [
        (data.behaviors[at], data.behaviors[at + 1])
        for at in range(len(data) - 1)
        if data.users[at] == data.users[at + 1] and data.order[at + 1] < 150
    ]
    names = material.vocabulary.behaviors.names
    assert [(names[row - first], names[after]) for row, after in zip(rows, classes, strict=True)] == steps


def test_how_much_likelier_classes_are_after_rows():
    shares = torch.tensor([0.5, 0.3, 0.2])
    rows, classes = np.array([4, 4, 4, 3, 4]), np.array([0, 0, 2, -1, -1])
    found = log_lift(rows, classes, shares.log(), 6)
    after_4 = [(2 + 10 * 0.5) / 13 / 0.5, (0 + 10 * 0.3) / 13 / 0.3, (1 + 10 * 0.2) / 13 / 0.2]
    assert found[4].exp().tolist() == pytest.approx(after_4, rel=1e-6)
    assert torch.allclose(found[[0, 1, 2, 3, 5]], torch.zeros(5, 3), atol=1e-7)


@pytest.mark.parametrize(("items", "expected"), [(3, True), (200, False)])
def test_whether_names_are_seen_often_enough_to_be_learned(items, expected):
    data = sequences(make_log(users=10, events=20, items=items))
    assert prepare(data, 200, BEHAVIORS, "purchase", RULE, HORIZONS).is_dense() == expected


def test_heads_with_one_answer_only(material):
    assert not material.constant() & {"behavior", "with_item", "time", "goal"}
    rows = [("u", 1000 * step, "view", f"i{step}", "x") for step in range(50)]
    schema = ["user_id", "timestamp", "behavior", "item_id", "category"]
    data = sequences(pl.DataFrame(rows, schema=schema, orient="row"))
    made = prepare(data, 40, ("view", "buy"), "buy", RULE, Horizons(5000, 5000))
    assert made.constant() == {"behavior", "with_item", "time", "goal", "churn"}


@pytest.mark.parametrize(("hours", "goal_hours", "churn_hours"), [(100 * 24, 24, 72), (10, 2, 2), (200, 24, 40)])
def test_horizons_fit_the_log(hours, goal_hours, churn_hours):
    got = default_horizons(np.array([0, hours * HOUR_MS]))
    assert got == Horizons(goal_hours * HOUR_MS, churn_hours * HOUR_MS)
