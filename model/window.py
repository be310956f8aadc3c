"""The window rule: which of a user's events a prediction may look at.

One object travels with the model artefact, so that training, offline evaluation and serving cut the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, overload, runtime_checkable

DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class WindowRule:
    """A window is the last `events` events not older than `age_ms` before the newest one.

    With a stride its oldest events leave together, and so much earlier that the start stays where it is in between: a full
    window then holds `events - stride + 1` … `events` events. What a model has computed for an event of a window stays true
    until the start moves, which is what makes states worth keeping. Where the start lies depends on nothing but the number
    of the user's events so far and the newest one's time.
    """

    events: int = 50
    age_ms: int = 30 * DAY_MS
    session_gap_ms: int = 30 * 60 * 1000  # a longer pause starts a new session
    stride: int = 1  # so many events leave together
    age_stride_ms: int = 1  # events older than a whole multiple of this leave together

    def __post_init__(self) -> None:
        for name in ("events", "age_ms", "session_gap_ms", "stride", "age_stride_ms"):
            if getattr(self, name) < 1:
                raise ValueError(f"window rule: {name} must be at least 1, got {getattr(self, name)}")
        for name, most in (("stride", self.events), ("age_stride_ms", self.age_ms)):
            if getattr(self, name) > most:
                raise ValueError(f"window rule: {name} must be at most {most}, got {getattr(self, name)}")

    def with_stride(self, stride: int) -> WindowRule:
        """The same rule with this stride, and with the same share of its age as age stride. Raises ValueError."""
        part_ms = max(1, self.age_ms * stride // self.events) if stride > 1 else 1
        return replace(self, stride=stride, age_stride_ms=part_ms)

    def first(self, count: int) -> int:
        """Which of a user's first `count` events the window of the last of them begins with, age left aside; from 0."""
        return max(0, -(-(count - self.events) // self.stride) * self.stride)

    def oldest_ms(self, newest_ms: int) -> int:
        """Events before this time are too old for the window of an event at `newest_ms`."""
        return -(-(newest_ms - self.age_ms) // self.age_stride_ms) * self.age_stride_ms


class Window(NamedTuple):
    """One user's events, oldest first; four columns of equal length, 1 … `WindowRule.events`.

    Items and categories are None where the event had none; times are in ms UTC, never decreasing.
    """

    items: Sequence[str | None]
    behaviors: Sequence[str]
    categories: Sequence[str | None]
    times_ms: Sequence[int]


class Step(NamedTuple):
    """A window as one that came before and one more event, for a model that keeps what it computed for the former."""

    user_id: str
    partition: int  # offsets are of this one
    before: int  # offset of the user's last event before the newest one, -1 where there is none
    offset: int  # of the newest event
    start: int  # which of all the user's events the window begins with, counted from 0
    length: int  # events of the window, the newest one included
    item: str | None
    behavior: str
    category: str | None
    time_ms: int


class Past(NamedTuple):
    """A user's window as it is now, for a model that is to keep what it computes for it until the next event."""

    user_id: str
    partition: int  # offsets are of this one
    offset: int  # of the last event that the window knows
    start: int  # which of all the user's events the window begins with, counted from 0
    window: Window


@runtime_checkable
class Steps(Protocol):
    """Windows that know where they stand in their users' lives."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, position: int) -> Window: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Window]: ...
    def step(self, position: int) -> Step | None:
        """The window at `position` as a step; None where it is not that of the user's newest event in its place."""
