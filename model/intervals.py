"""How far a figure would move with other users: the cluster bootstrap.

Events of one user depend on each other, so whole users are drawn, with replacement, as many as there are (Field and Welsh,
"Bootstrapping clustered data", JRSS B 69, 2007); intervals are percentiles of the resampled figures (Efron and Tibshirani,
"An Introduction to the Bootstrap", 1993, chapter 13). All figures are taken over the same draws, so differences are
paired. Intervals speak of other users of the same days, not of other days, nor of another seed of the training.
U users, E events, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model.measures import Floats, Ints, Measure

RESAMPLES = 1000
LEVEL = 0.95
MIN_USERS = 10  # with fewer, an interval would promise more than it keeps


class Resamples:
    """Seeded draws of users, counted."""

    def __init__(self, users: int, *, seed: int = 0, count: int = RESAMPLES) -> None:
        random = np.random.default_rng(seed)
        self.weights = np.ones((1 + count, users), np.uint8)  # how often each is drawn; row 0: everyone once
        for row in range(1, 1 + count):
            self.weights[row] = np.bincount(random.integers(0, users, users), minlength=users)

    def figures(self, measure: Measure, users: Ints) -> Floats:
        """The figure, then the same with each draw of users, [1 + R]; users [E] numbers of the users of the events.

        With events of few users the draws are NaN.
        """
        if len(np.unique(users)) >= MIN_USERS:
            return measure.over(self.weights, users)
        alone = measure.over(self.weights[:1], users)
        return np.append(alone, np.full(len(self.weights) - 1, np.nan))

    def interval(self, figures: Floats) -> tuple[float, float] | None:
        """Where the figure lies with 95 % of the draws; None where it is undefined with half of them."""
        drawn = figures[1:][np.isfinite(figures[1:])]
        if len(drawn) < len(figures) / 2:
            return None
        low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
        return low, high


@dataclass(frozen=True, slots=True)
class Difference:
    """The model minus the best baseline of a measure."""

    baseline: str
    value: float
    interval: tuple[float, float] | None
    verdict: str  # "ahead" or "behind" where the interval excludes 0, otherwise "level"


def difference(draws: Resamples, model: Floats, baseline: Floats, name: str, *, higher_is_better: bool) -> Difference:
    """Compares two figures over the same draws, [1 + R] each."""
    gap = model - baseline
    interval = draws.interval(gap)
    verdict = "level"
    if interval is not None and not interval[0] <= 0 <= interval[1]:
        verdict = "ahead" if (interval[0] > 0) == higher_is_better else "behind"
    return Difference(name, float(gap[0]), interval, verdict)
