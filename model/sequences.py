"""A table of events → users' lives end to end, and the chunks and windows that are cut out of them.

The same cut for training (chunks whose positions all learn) and for evaluation (one window per event), by the window rule;
the events of a user are counted from the first one of the table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from model.window import Window, WindowRule

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

COLUMNS = ("user_id", "timestamp", "behavior", "item_id", "category")


class FrameError(Exception):
    """A table of events that cannot be used; the message is one line."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """N events grouped by user, in time order inside a user, ties in the order of the log."""

    users: Ints  # [N] user number
    times_ms: Ints  # [N]
    order: Ints  # [N] position in the log sorted by time: the split by global time cuts here
    items: list[str | None]  # [N]
    behaviors: list[str]  # [N]
    categories: list[str | None]  # [N]
    first: Ints  # [N] index of the user's first event
    prices: Floats | None = None  # [N] NaN where unknown; None where the log has none

    def __len__(self) -> int:
        return len(self.users)

    def fingerprint(self) -> str:
        """sha256 of the events; equal tables of events have equal ones."""
        digest = hashlib.sha256()
        for numbers in (self.users, self.times_ms, self.order):
            digest.update(numbers.tobytes())
        for names in (self.items, self.behaviors, self.categories):
            digest.update(json.dumps(names).encode())
        if self.prices is not None:
            digest.update(self.prices.tobytes())
        return digest.hexdigest()

    def window(self, last: int, rule: WindowRule) -> Window:
        """What the rule lets a prediction see right after event `last`."""
        start = int(self.window_starts(np.array([last]), rule)[0])
        cut = slice(start, last + 1)
        return Window(self.items[cut], self.behaviors[cut], self.categories[cut], self.times_ms[cut].tolist())

    def window_starts(self, last: Ints, rule: WindowRule) -> Ints:
        """First event of the window that ends with each event `last`; `WindowRule.first` and `.oldest_ms` for arrays."""
        first, events, stride = self.first[last], rule.events, rule.stride
        starts: Ints = first + np.maximum(0, -(-(last - first + 1 - events) // stride) * stride)
        oldest_ms = -(-(self.times_ms[last] - rule.age_ms) // rule.age_stride_ms) * rule.age_stride_ms
        cut = np.flatnonzero(self.times_ms[starts] < oldest_ms)
        starts[cut] = self._since(starts[cut], last[cut], oldest_ms[cut])
        return starts

    def _since(self, begins: Ints, ends: Ints, oldest_ms: Ints) -> Ints:
        """Of each stretch begins … ends of a life, the first event at or after a time, which the last one is; by bisection."""
        while (begins < ends).any():
            middle = (begins + ends) // 2
            old = self.times_ms[middle] < oldest_ms
            begins[old] = middle[old] + 1
            ends[~old] = middle[~old]
        return begins

    def whole(self) -> list[Window]:
        """Each user's life as one long window, in order, so that `encode` gives columns that match the indices here."""
        edges = [*np.unique(self.first).tolist(), len(self)]
        times = self.times_ms.tolist()
        return [
            Window(self.items[a:b], self.behaviors[a:b], self.categories[a:b], times[a:b]) for a, b in pairwise(edges)
        ]


def sequences(frame: pl.DataFrame) -> Sequences:
    """Groups a table of events; raises FrameError for a missing column, a wrong type, or no usable row."""
    priced = "price" in frame.columns and frame["price"].null_count() < frame.height
    frame = usable(frame).select(*COLUMNS, *(["price"] if priced else []))
    if not frame["timestamp"].is_sorted():
        frame = frame.sort("timestamp", maintain_order=True)
    number = frame["user_id"].unique().cast(pl.String).sort()  # the order of users is that of their names
    numbers = frame["user_id"].cast(pl.Enum(number)).to_physical().cast(pl.Int64)
    frame = frame.drop("user_id").with_row_index("order").with_columns(user=numbers).sort("user", "order")
    users = frame["user"].to_numpy()
    begins = np.flatnonzero(np.diff(users, prepend=-1))
    return Sequences(
        users=users,
        times_ms=frame["timestamp"].to_numpy(),
        order=frame["order"].cast(pl.Int64).to_numpy(),
        items=_names(frame["item_id"]),
        behaviors=_names(frame["behavior"]),
        categories=_names(frame["category"]),
        first=np.repeat(begins, np.diff(begins, append=len(users))),
        prices=frame["price"].cast(pl.Float64).fill_null(np.nan).to_numpy() if priced else None,
    )


def _names(column: pl.Series) -> list[Any]:
    """A name per row, None where there is none; equal names are one object, which saves most of their memory."""
    distinct = column.unique().drop_nulls()
    names = dict(zip(distinct.to_physical(), distinct.cast(pl.String), strict=True))
    return [
        names.get(code) for part in column.to_frame().iter_slices(1 << 16) for code in part.to_series().to_physical()
    ]


def usable(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that have a user, a time and a behaviour, names as codes (polars' Categorical); raises FrameError."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise FrameError(f"the table of events has no column {', '.join(missing)}")
    if frame.height == 0:
        raise FrameError("the table of events is empty")
    try:
        frame = frame.with_columns(
            pl.col("timestamp").cast(pl.Int64), *(_coded(frame[name]) for name in COLUMNS if name != "timestamp")
        ).drop_nulls(["user_id", "timestamp", "behavior"])
    except pl.exceptions.PolarsError as error:
        raise FrameError(f"the table of events has a column of the wrong type: {str(error).splitlines()[0]}") from error
    if frame.height == 0:
        raise FrameError("the table of events has no row with a user, a time and a behaviour")
    return frame


def _coded(names: pl.Series) -> pl.Series:
    return names if names.dtype == pl.Categorical else names.cast(pl.String).cast(pl.Categorical)


def chunks(data: Sequences, until: int, rule: WindowRule, offset: int, overlap: float = 0.5) -> tuple[Ints, Ints, Ints]:
    """Stretches that let every event learn: start, length, and the first index that learns; [C] each.

    Only events before place `until` of the log take part. A stretch is as long as the rule allows; its first `overlap`
    only gives context, so that what learns sees at least that much where the user has it, and learns once. Without any
    overlap all of a stretch learns, and a life that fits into one window is one stretch: less context, half the work.
    `offset` moves the cuts, so that different epochs cut differently.

    With a stride the cuts lie where the start of a window moves, and what learns is a whole multiple of it: so a stretch is full,
    and nothing sees more than serving shows. With half an overlap and a stride of `events // 2` (or more) all that learns in a
    stretch has the very window of serving, but for the age; there is one way to cut, whatever `offset` is.
    """
    learning = max(1, int(rule.events * (1 - overlap)) // rule.stride) * rule.stride
    shift = offset % learning
    shift -= (rule.events + shift) % rule.stride
    kept = np.flatnonzero(data.order < until)  # of each user a first part of the life
    group = (kept - data.first[kept] + shift) // learning
    if overlap == 0:
        group[np.bincount(data.users[kept])[data.users[kept]] <= rule.events] = 0
    new = (np.diff(data.users[kept], prepend=-1) != 0) | (np.diff(group, prepend=-1) != 0)
    begins = kept[new]
    ends = kept[np.append(np.flatnonzero(new)[1:] - 1, len(kept) - 1)] if len(kept) else begins
    begins, ends = _within_windows(data, begins, ends, rule)
    starts = data.window_starts(ends, rule)
    return starts, ends - starts + 1, begins if overlap else starts


def _within_windows(data: Sequences, begins: Ints, ends: Ints, rule: WindowRule) -> tuple[Ints, Ints]:
    """Splits stretches that reach further back than the window of their last event, so that each lies within one window."""
    found: list[tuple[Ints, Ints]] = []
    while len(ends):
        starts = np.maximum(begins, data.window_starts(ends, rule))
        found.append((starts, ends))
        more = starts > begins
        begins, ends = begins[more], starts[more] - 1
    if len(found) < 2:
        return found[0] if found else (begins, ends)
    begins, ends = (np.concatenate(each) for each in zip(*found, strict=True))
    order = np.argsort(begins)
    return begins[order], ends[order]


def window_list(data: Sequences, last: Sequence[int], rule: WindowRule) -> list[Window]:
    """The windows that end with each of these events."""
    index = np.asarray(last, np.int64)
    times = data.times_ms.tolist()
    return [
        Window(data.items[a:b], data.behaviors[a:b], data.categories[a:b], times[a:b])
        for a, b in zip(data.window_starts(index, rule).tolist(), (index + 1).tolist(), strict=True)
    ]
