import numpy as np
import polars as pl
import pytest

from model import measures
from model.exam import set_exam
from model.intervals import Resamples
from model.questions import Ranking
from model.sequences import sequences
from model.slices import slices
from model.splits import by_share


@pytest.fixture(scope="module")
def parts(engine, log):
    """Slices of a ranking where the model is always right and the baseline never; two users come late."""
    late = log.tail(2).with_columns(
        user_id=pl.Series(["new", "new"]), timestamp=pl.col("timestamp") + pl.Series([1, 2])
    )
    late = late.with_columns(item_id=pl.Series(["item-1", "unheard"]))
    data = sequences(pl.concat([log, late]))
    exam = set_exam(engine, data, by_share(data, 1600 / 2002 + 1e-9))
    at = np.concatenate((exam.wanted, exam.cold))
    right, wrong = np.ones(len(at), np.int64), np.zeros(len(at), np.int64)
    ranking = Ranking("item", at, {"model": right, "repeat": wrong}, np.ones(len(at)), (1, 10))
    users = np.unique(data.users[exam.test])
    found = slices(exam, ranking, Resamples(len(users)), np.searchsorted(users, data.users))
    return {one.name: one for one in found}, len(at)


@pytest.mark.parametrize("kind", ["history", "item", "user"])
def test_slices_of_each_kind_hold_every_event_once(parts, kind):
    found, events = parts
    assert sum(one.events for name, one in found.items() if kind in name.split()[:2]) == events


def test_what_is_new_is_counted_apart(parts):
    found, events = parts
    assert found["user new"].events == 2
    assert found["no history"].events == 1
    assert found["item not in the window, never seen in training"].events >= 1
    cold, warm = (found[f"{name} item, after some history"].events for name in ("cold", "all but cold"))
    assert cold == 1
    assert cold + warm + found["no history"].events == events
    assert all(one.model == 1 and one.best == 0 for one in found.values())


def test_a_slice_of_few_users_is_never_called_ahead(parts):
    found, _ = parts
    assert (found["user new"].interval, found["user new"].against_best.verdict) == (None, "level")
    assert found["user seen in training"].against_best.verdict == "ahead"
    assert found["user seen in training"].against_best.interval == (1, 1)


def test_a_slice_is_measured_like_the_whole(engine, log):
    data = sequences(log)
    exam = set_exam(engine, data, by_share(data, 0.8))
    ranks = np.random.default_rng(0).integers(0, 11, len(exam.wanted))
    ranking = Ranking("item", exam.wanted, {"model": ranks, "repeat": ranks}, ranks * 0.0, (1, 10))
    users = np.unique(data.users[exam.test])
    found = {one.name: one for one in slices(exam, ranking, Resamples(len(users)), np.searchsorted(users, data.users))}
    assert found["user seen in training"].model == pytest.approx(measures.value(measures.ndcg(ranks, 10), len(ranks)))
    inside = np.array([data.items[at] in data.items[max(data.first[at], at - 50) : at] for at in exam.wanted.tolist()])
    again = found["item already in the window"]
    assert (again.events, again.model) == (
        inside.sum(), pytest.approx(measures.value(measures.ndcg(ranks[inside], 10), inside.sum()))
    )  # fmt: skip
