"""Synthetic users and their events, the same in every process, and polls of them.

Users are drawn evenly, which is the worst for whoever keeps something about them; items by Zipf's law. Every user has
more events than a window holds before the first one is asked about. It knows nothing of networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

from benchmarks.engine.setting import Setting
from model.window import Step, Window

BEHAVIORS = ("view", "add_to_cart", "purchase")
BEHAVIOR_SHARES = (0.9, 0.07, 0.03)
PARTITIONS = 8
START_MS = 1_700_000_000_000
LONGEST_GAP_MS = 7_200_000
DRAWN = 65_536  # events at a time

Ints = npt.NDArray[np.int64]


class User:
    """One user's latest events, oldest first."""

    __slots__ = ("behaviors", "categories", "gone", "items", "last_offset", "rows", "times_ms")

    def __init__(self, last_offset: int) -> None:
        self.rows: list[int] = []  # of the items, from 0
        self.items: list[str] = []
        self.behaviors: list[str] = []
        self.categories: list[str] = []
        self.times_ms: list[int] = []
        self.gone = 0  # events that are no longer kept
        self.last_offset = last_offset

    @property
    def count(self) -> int:
        """Events so far, the ones that are gone included."""
        return self.gone + len(self.rows)

    def forget(self, events: int) -> None:
        """Drop the oldest ones."""
        for column in (self.rows, self.items, self.behaviors, self.categories, self.times_ms):
            del column[:events]
        self.gone += events


class Stream:
    """Users who go on and on; a poll must be answered before the next one is taken."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.rule = setting, setting.rule
        self._random = np.random.default_rng(setting.seed)
        self._shares = np.cumsum(1.0 / np.arange(1, setting.items + 1))
        self._names = [item_name(row) for row in range(setting.items)]
        self._drawn = self._draw()
        self._offsets = [setting.users] * PARTITIONS
        self.users = [User(last_offset=number) for number in range(setting.users)]
        for user in self.users:
            for _ in range(int(self._random.integers(setting.window, setting.window + setting.stride))):
                self._append(user)

    def poll(self, size: int, *, unseen: float = 0.0) -> Poll:
        """The next events of users drawn at random; a share of them had one before it that nobody was asked about."""
        numbers = self._random.integers(0, len(self.users), size)
        surprises = self._random.random(size) < unseen
        return self._next(numbers.tolist(), surprises.tolist())

    def everybody(self) -> Iterator[Poll]:
        """One event of each user: what a path keeps is complete then."""
        numbers = list(range(len(self.users)))
        for begin in range(0, len(numbers), self.setting.poll):
            some = numbers[begin : begin + self.setting.poll]
            yield self._next(some, [False] * len(some))

    def _next(self, numbers: Sequence[int], surprises: Sequence[bool]) -> Poll:
        for number in set(numbers):
            if len(self.users[number].rows) > 4 * self.setting.window:
                self.users[number].forget(2 * self.setting.window)
        taken = []
        for number, surprise in zip(numbers, surprises, strict=True):
            user = self.users[number]
            partition = number % PARTITIONS
            if surprise:
                self._append(user)
                user.last_offset = self._offset(partition)
            before = user.last_offset
            self._append(user)
            user.last_offset = self._offset(partition)
            taken.append((number, user.count, before, user.last_offset))
        return Poll(self, taken)

    def _offset(self, partition: int) -> int:
        self._offsets[partition] += 1
        return self._offsets[partition]

    def _append(self, user: User) -> None:
        row, behavior, gap_ms = next(self._drawn)
        user.rows.append(row)
        user.items.append(self._names[row])
        user.behaviors.append(BEHAVIORS[behavior])
        user.categories.append(category_name(row, self.setting))
        user.times_ms.append((user.times_ms[-1] if user.times_ms else START_MS) + gap_ms)

    def _draw(self) -> Iterator[tuple[int, int, int]]:
        random = np.random.default_rng(self.setting.seed + 1)
        while True:
            rows = np.searchsorted(self._shares, random.random(DRAWN) * self._shares[-1])
            behaviors = random.choice(len(BEHAVIORS), DRAWN, p=BEHAVIOR_SHARES)
            gaps = random.integers(1_000, LONGEST_GAP_MS, DRAWN)
            yield from zip(rows.tolist(), behaviors.tolist(), gaps.tolist(), strict=True)


class Poll(Sequence[Window]):
    """Events to answer, as `model.window.Steps`, and as rows for those who know no names."""

    def __init__(self, stream: Stream, taken: Sequence[tuple[int, int, int, int]]) -> None:
        self._stream, self._taken = stream, taken  # user, count, offset before, offset

    def __len__(self) -> int:
        return len(self._taken)

    @overload
    def __getitem__(self, position: int) -> Window: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Window]: ...
    def __getitem__(self, position: int | slice) -> Window | Sequence[Window]:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        user, begin, end = self._place(position)
        return Window(
            user.items[begin:end], user.behaviors[begin:end], user.categories[begin:end], user.times_ms[begin:end]
        )

    def step(self, position: int) -> Step:
        """The window at `position` as a step."""
        number, count, before, offset = self._taken[position]
        user, start = self._stream.users[number], self._stream.rule.first(count)
        newest = count - 1 - user.gone
        return Step(
            user_id=f"user-{number}",
            partition=number % PARTITIONS,
            before=before,
            offset=offset,
            start=start,
            length=count - start,
            item=user.items[newest],
            behavior=user.behaviors[newest],
            category=user.categories[newest],
            time_ms=user.times_ms[newest],
        )

    def rows(self, position: int) -> list[int]:
        """The items of the window at `position`, counted from 0 by falling frequency."""
        user, begin, end = self._place(position)
        return user.rows[begin:end]

    def lengths(self) -> Ints:
        """Events of each window, [B]."""
        return np.array([count - self._stream.rule.first(count) for _, count, _, _ in self._taken], dtype=np.int64)

    def _place(self, position: int) -> tuple[User, int, int]:
        number, count, _, _ = self._taken[position]
        user = self._stream.users[number]
        return user, self._stream.rule.first(count) - user.gone, count - user.gone


def item_name(row: int) -> str:
    """As long as names in shops are."""
    return f"item-{row:07d}"


def category_name(row: int, setting: Setting) -> str:
    """Each item has one."""
    return f"category-{row % setting.categories}"
