"""What there is to learn from each event: what the same user did next, and within a horizon.

Honest about the edge of the log: a label that depends on time after `observed_until` is unknown, not negative.
It knows nothing of tensors or the network. N events, grouped by user, in time order inside a user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Horizons:
    """How far the yes-or-no questions look, ms."""

    goal_ms: int
    churn_ms: int


@dataclass(frozen=True, slots=True)
class Targets:
    """Labels per event."""

    next: Ints  # [N] index of the user's next event, -1 where there is none
    gap_ms: Ints  # [N] time to it, 0 where there is none
    goal: Bools  # [N] a goal event in (t, t + goal_ms]
    goal_known: Bools  # [N]
    churn: Bools  # [N] no event in (t, t + churn_ms]
    churn_known: Bools  # [N]


def targets(users: Ints, times_ms: Ints, is_goal: Bools, horizons: Horizons, observed_until: int) -> Targets:
    """Labels of every event; users [N] are equal inside a group."""
    total = len(users)
    following = np.arange(1, total + 1)
    has_next = np.zeros(total, np.bool_)
    has_next[:-1] = users[1:] == users[:-1]
    gap = np.zeros(total, np.int64)
    gap[:-1] = np.where(has_next[:-1], times_ms[1:] - times_ms[:-1], 0)
    to_goal = _time_to_next_goal(users, times_ms, is_goal)
    return Targets(
        next=np.where(has_next, following, -1),
        gap_ms=np.maximum(gap, 0),
        goal=to_goal <= horizons.goal_ms,
        goal_known=times_ms + horizons.goal_ms <= observed_until,
        churn=~has_next | (gap > horizons.churn_ms),
        churn_known=times_ms + horizons.churn_ms <= observed_until,
    )


def _time_to_next_goal(users: Ints, times_ms: Ints, is_goal: Bools) -> Ints:
    """Time in ms from each event to the user's next goal event, the event itself not counted; huge where there is none."""
    total = len(users)
    where = np.where(is_goal, np.arange(total), total)
    at_or_after = np.minimum.accumulate(where[::-1])[::-1]  # [N] index of the first goal event at or after
    after = np.append(at_or_after[1:], total)[:total]
    safe = np.minimum(after, total - 1)
    found = (after < total) & (users[safe] == users)
    return np.where(found, times_ms[safe] - times_ms, np.iinfo(np.int64).max)
