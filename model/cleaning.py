"""Cleaning a table of events before it is learned from: which rows go, by which rule, and what was there before and after.

Only what is learned from is cleaned, with bounds that are found in it. What is predicted, live or in an evaluation, is
whatever happened. The rules, in this order; each sees what the one before left:

- *missing*: a row without user, time or behaviour is no event.
- *equal row*: a row equal to an earlier one in every column.
- *same event*: user, item, behaviour and time equal to those of an earlier row; rows without an item are left alone.
  Both rules about duplicates rest where times are too coarse to tell events apart (all of them whole hours, or all equal).
- *impossible time*: more than `stray_spans` times the span from the 1st to the 99th percentile before the one or after the
  other. Quartiles would not do: MovieLens's ratings come in rushes, and a seventh of them lies outside Tukey's fences.
- *bot*: a user with more events per active hour (a clock hour with any event of that user) than Q3 + `bot_fences` · IQR of
  all users, in logarithms since the rates are skewed, and more than `bot_least`. These are the outer fences of
  J. W. Tukey, Exploratory Data Analysis, Addison-Wesley, 1977, §2D, after a re-expression as in its chapter 3.
- *rare item*: fewer than `rare_items` events of that item are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

NEEDED = ("user_id", "timestamp", "behavior")
SAME_EVENT = ("user_id", "item_id", "behavior", "timestamp")
HOUR_MS = 3_600_000
QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class Cleaning:
    """How far each rule goes; the defaults take away what can hardly be a person's doing.

    Off are: `duplicates` with False, `stray_spans` and `bot_fences` with None, `rare_items` with 1. Rare items stay by
    default, since the network already treats an item that it saw once as unknown.
    """

    duplicates: bool = True
    stray_spans: float | None = 1.0
    bot_fences: float | None = 3.0
    bot_least: float = 100.0  # events per active hour that no bot stays below
    rare_items: int = 1

    def __post_init__(self) -> None:
        for name in ("stray_spans", "bot_fences", "bot_least"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"cleaning: {name} must not be negative, got {value}")
        if self.rare_items < 1:
            raise ValueError(f"cleaning: rare_items must be at least 1, got {self.rare_items}")


OFF = Cleaning(duplicates=False, stray_spans=None, bot_fences=None)


@dataclass(frozen=True, slots=True)
class Removal:
    """What one rule took away."""

    rule: str
    bound: str  # in words, "" where there is none
    rows: int
    users: int  # of whom nothing is left


@dataclass(frozen=True, slots=True)
class Summary:
    """A table of events in figures; times are 0 and quartiles empty where there is no event."""

    events: int
    users: int
    items: int
    behaviors: dict[str, float]  # share of the events, most frequent first
    from_ms: int
    until_ms: int
    events_per_user: tuple[float, ...]  # quartiles
    missing: dict[str, float]  # column → share of nulls


@dataclass(frozen=True, slots=True)
class CleaningReport:
    """What was left out of the table that was learned from."""

    removed: tuple[Removal, ...]  # one per rule that is on
    before: Summary
    after: Summary

    def line(self) -> str:
        """One line for a person; "" where nothing was left out."""
        rules = [f"{one.rows:,} {one.rule}" for one in self.removed if one.rows]
        lost = self.before.events - self.after.events
        users = self.before.users - self.after.users
        gone = f", {users:,} of {self.before.users:,} users with them" if users else ""
        return f"{lost:,} of {self.before.events:,} events left out: {', '.join(rules)}{gone}" if rules else ""


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that a rule takes away, and its bound in words."""

    bad: pl.Series  # Boolean [N]
    bound: str = ""


Rule = Callable[[pl.DataFrame, Cleaning], Found]


def clean(frame: pl.DataFrame, cleaning: Cleaning) -> tuple[pl.DataFrame, CleaningReport]:
    """The table of events without what the rules take away, in the same order, and the report."""
    before = summary(frame)
    removed = []
    for name, rule in RULES.items():
        if frame.is_empty():
            break
        found = rule(frame, cleaning)
        kept = frame.filter(~found.bad) if found.bad.any() else frame
        users = _users(frame) - _users(kept) if kept is not frame else 0
        removed.append(Removal(name, found.bound, frame.height - kept.height, users))
        frame = kept
    return frame, CleaningReport(tuple(removed), before, summary(frame))


def summary(frame: pl.DataFrame) -> Summary:
    """The figures of a table of events."""
    times = frame["timestamp"].drop_nulls()
    counts = frame["behavior"].value_counts(sort=True).drop_nulls()
    per_user = frame["user_id"].drop_nulls().value_counts()["count"]
    return Summary(
        events=frame.height,
        users=per_user.len(),
        items=frame["item_id"].drop_nulls().n_unique(),
        behaviors={name: count / frame.height for name, count in counts.iter_rows()},
        from_ms=_whole(times.min()),
        until_ms=_whole(times.max()),
        events_per_user=tuple(_quantiles(per_user, QUARTILES)),
        missing={name: frame[name].null_count() / frame.height for name in frame.columns} if frame.height else {},
    )


# --- rules ----------------------------------------------------------------------------------------------------------


def _missing(frame: pl.DataFrame, _: Cleaning) -> Found:
    return Found(frame.select(pl.any_horizontal(pl.col(*NEEDED).is_null())).to_series())


def _equal_row(frame: pl.DataFrame, cleaning: Cleaning) -> Found:
    if not cleaning.duplicates or _coarse(frame["timestamp"]):
        return _none(frame)
    return Found(~frame.select(pl.struct(pl.all()).is_first_distinct()).to_series())


def _same_event(frame: pl.DataFrame, cleaning: Cleaning) -> Found:
    if not cleaning.duplicates or _coarse(frame["timestamp"]):
        return _none(frame)
    repeated = ~pl.struct(SAME_EVENT).is_first_distinct() & pl.col("item_id").is_not_null()
    return Found(frame.select(repeated).to_series())


def _impossible_time(frame: pl.DataFrame, cleaning: Cleaning) -> Found:
    times = frame["timestamp"]
    low, high = _quantiles(times, (0.01, 0.99))
    if cleaning.stray_spans is None or low == high:
        return _none(frame)
    room = cleaning.stray_spans * (high - low)
    return Found(
        (times < low - room) | (times > high + room), f"before {_day(low - room)} or after {_day(high + room)}"
    )


def _bot(frame: pl.DataFrame, cleaning: Cleaning) -> Found:
    if cleaning.bot_fences is None:
        return _none(frame)
    hours = (pl.col("timestamp") // HOUR_MS).n_unique()
    rates = frame.group_by("user_id").agg(rate=pl.len() / hours)
    low, _, high = _quantiles(rates["rate"].log(), QUARTILES)
    fence = max(cleaning.bot_least, float(pl.Series([high + cleaning.bot_fences * (high - low)]).exp()[0]))
    bots = rates.filter(pl.col("rate") > fence)["user_id"]
    return Found(frame["user_id"].is_in(bots.implode()), f"more than {fence:.0f} events per active hour")


def _rare_item(frame: pl.DataFrame, cleaning: Cleaning) -> Found:
    if cleaning.rare_items == 1:
        return _none(frame)
    rare = (pl.len().over("item_id") < cleaning.rare_items) & pl.col("item_id").is_not_null()
    return Found(frame.select(rare).to_series(), f"fewer than {cleaning.rare_items} events")


RULES: dict[str, Rule] = {
    "missing": _missing,
    "equal row": _equal_row,
    "same event": _same_event,
    "impossible time": _impossible_time,
    "bot": _bot,
    "rare item": _rare_item,
}


def _users(frame: pl.DataFrame) -> int:
    return frame["user_id"].drop_nulls().n_unique()


def _none(frame: pl.DataFrame) -> Found:
    return Found(pl.repeat(False, frame.height, eager=True))


def _coarse(times: pl.Series) -> bool:
    """Whether equal times say little: whole hours (dates are), or one time for all."""
    return bool((times % HOUR_MS == 0).all()) or times.n_unique() == 1


def _quantiles(values: pl.Series, levels: tuple[float, ...]) -> list[float]:
    """Linearly interpolated; empty where there are no values."""
    found = (values.quantile(level, "linear") for level in levels)
    return [float(value) for value in found if value is not None]


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _day(ms: float) -> str:
    """A time as a date; one that no calendar holds as the number that it is."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return f"{ms:.0f} ms"
