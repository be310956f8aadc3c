import numpy as np
import pytest

from model import measures
from model.intervals import MIN_USERS, Resamples, difference


def test_the_first_figure_is_that_of_everyone_and_draws_are_seeded():
    users, values = np.repeat(np.arange(20), 3), np.arange(60.0)
    found = Resamples(20, seed=1).figures(measures.mean(values), users)
    assert (len(found), found[0]) == (1001, values.mean())
    assert np.array_equal(found, Resamples(20, seed=1).figures(measures.mean(values), users))
    assert not np.array_equal(found, Resamples(20, seed=2).figures(measures.mean(values), users))
    assert (Resamples(20).weights.sum(1) == 20).all()


def test_an_interval_is_as_wide_as_the_theory_says():
    """One event per user: the percentile interval approaches mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(size=400)
    draws = Resamples(400, count=4000)
    low, high = draws.interval(draws.figures(measures.mean(values), np.arange(400)))
    half = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_events_that_always_agree_count_as_one():
    """Ten copies of each user's event add nothing, however many events there are."""
    values = np.random.default_rng(0).normal(size=50)
    draws = Resamples(50)
    alone = draws.interval(draws.figures(measures.mean(values), np.arange(50)))
    copied = draws.interval(draws.figures(measures.mean(np.repeat(values, 10)), np.repeat(np.arange(50), 10)))
    assert copied == pytest.approx(alone)


def test_few_users_or_few_defined_figures_have_no_interval():
    draws = Resamples(MIN_USERS - 1)
    assert draws.interval(draws.figures(measures.mean(np.arange(9.0)), np.arange(9))) is None
    assert Resamples(50).interval(np.full(1001, np.nan)) is None


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "verdict"),
    [
        (0.5, True, "ahead"),
        (0.5, False, "behind"),
        (-0.5, False, "ahead"),
        (-0.5, True, "behind"),
        (0.0, True, "level"),
    ],
)
def test_ahead_only_where_the_interval_excludes_nothing(shift, higher_is_better, verdict):
    random = np.random.default_rng(3)
    values, noise = random.normal(size=100), random.normal(size=100)
    draws, users = Resamples(100), np.arange(100)
    ours, theirs = (draws.figures(measures.mean(one), users) for one in (values + shift + noise / 10, values))
    found = difference(draws, ours, theirs, "repeat", higher_is_better=higher_is_better)
    assert (found.baseline, found.verdict) == ("repeat", verdict)
    assert found.value == pytest.approx(ours[0] - theirs[0])
    low, high = found.interval
    assert high - low < 0.1  # paired: what both share does not scatter
