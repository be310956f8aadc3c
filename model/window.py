"""The window rule: which of a user's events a prediction may look at.

One object travels with the model artefact, so that training, offline evaluation and serving cut the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class WindowRule:
    """A window is the last `events` events not older than `age_ms` before the newest one."""

    events: int = 50
    age_ms: int = 30 * DAY_MS
    session_gap_ms: int = 30 * 60 * 1000  # a longer pause starts a new session

    def __post_init__(self) -> None:
        for name in ("events", "age_ms", "session_gap_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"window rule: {name} must be at least 1, got {getattr(self, name)}")


class Window(NamedTuple):
    """One user's events, oldest first; four columns of equal length, 1 … `WindowRule.events`.

    Items and categories are None where the event had none; times are in ms UTC, never decreasing.
    """

    items: Sequence[str | None]
    behaviors: Sequence[str]
    categories: Sequence[str | None]
    times_ms: Sequence[int]
