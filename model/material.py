"""A table of events → everything that the steps of training need, computed once.

The vocabulary comes from the events that are learned from, never from those that validate. An event counts as a known
item's only if the item would be known without that very event: otherwise the network would learn that what comes next
is nearly always in the catalogue, which is true of no event that comes later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.described_items import rarely_met
from model.features import NO_IDENTITY, Columns, Ints, encode
from model.item_text import ItemText
from model.losses import Labels
from model.prices import buckets, edges, item_prices
from model.sequences import Sequences
from model.targets import Horizons, Targets, targets
from model.vocabulary import FIRST_BUCKET, Vocabulary, build
from model.window import DAY_MS, WindowRule

Bools = npt.NDArray[np.bool_]

DENSE_EVENTS = 50  # per known item
LIFT_EVENTS = 10  # of the average behind each behaviour, beside what did follow it
MIN_REPEATED = 200  # with fewer items than this seen twice, items seen once are kept as well


@dataclass(frozen=True, slots=True)
class Material:
    """N events; the first `learn_until` of the log are learned from, the rest validates."""

    data: Sequences
    columns: Columns
    vocabulary: Vocabulary
    item_rows: Ints  # [N] the item's row as something to predict
    category_rows: Ints  # [N] likewise
    learned: Targets  # labels as known at the end of the learning part
    checked: Targets  # labels as known at the end of the log
    learn_until: int  # place in the log
    since: int  # place in the log before which an older model knows all; 0 without one
    rule: WindowRule
    horizons: Horizons
    text: ItemText | None
    item_texts: Ints  # [known items] row of the item's text, -1 where it has none
    item_buckets: Ints  # [known items] of the item's price, see `model.prices`; empty where no item has one
    rare: Bools  # [known items] known by a text and hardly by events, see `model.described_items`

    def learning(self) -> Bools:
        """Events whose next event may be learned from, [N]."""
        following = self.learned.next
        return np.asarray((following >= 0) & (self.data.order[following] < self.learn_until))

    def inside(self) -> Bools:
        """Events that are learned from, [N]."""
        return np.asarray(self.data.order < self.learn_until)

    def behavior_steps(self) -> tuple[Ints, Ints]:
        """Rows of the behaviours that are learned from, and classes of those right after them, [E] each; -1: none of the known."""
        learning = np.flatnonzero(self.learning())
        rows = self.columns.behavior_rows
        following = rows[self.learned.next[learning]] - self.vocabulary.behaviors.first
        return rows[learning], np.maximum(following, -1)

    def repeats(self) -> bool:
        """Whether any user of the learning part meets an item or a category twice."""
        inside, columns = self.inside(), self.columns
        for ids in (columns.item_ids, columns.category_ids):
            named = inside & (ids >= 0)
            pairs = np.stack((self.data.users[named], ids[named]), axis=1)
            if len(np.unique(pairs, axis=0)) < len(pairs):
                return True
        return False

    def constant(self) -> set[str]:
        """Names of the heads for which the learning part knows one answer only."""
        learning, inside, ahead = self.learning(), self.inside(), self.learned
        answers = {
            "behavior": self.columns.behavior_rows[ahead.next[learning]],
            "with_item": self.columns.behavior_rows[ahead.next[learning]],
            "time": ahead.gap_ms[learning],
            "goal": ahead.goal[inside & ahead.goal_known],
            "churn": ahead.churn[inside & ahead.churn_known],
        }
        return {name for name, found in answers.items() if len(np.unique(found)) <= 1}

    def is_dense(self) -> bool:
        """Whether a known item is seen so often that its name can be learned."""
        known = [count for count in self.vocabulary.item_counts if count]
        return len(known) > 0 and sum(known) >= DENSE_EVENTS * len(known)

    def checking(self) -> Ints:
        """Events that validate: their next event, or they themselves, lie behind the learning part."""
        following = self.learned.next
        last = (following >= 0) & (self.data.order[following] >= self.learn_until)
        return np.flatnonzero(last | (self.data.order >= self.learn_until))


def prepare(
    data: Sequences,
    learn_until: int,
    behaviors: Sequence[str],
    goal: str,
    rule: WindowRule,
    horizons: Horizons,
    text: ItemText | None = None,
    since: int = 0,
    prices: bool = False,
) -> Material:
    """Counts, encodes and labels; raises VocabularyError."""
    inside = data.order < learn_until
    vocabulary, least = build_vocabulary(data, inside, behaviors, goal, text)
    items = vocabulary.items
    item_texts = np.array([-1 if text is None else text.items.get(name, -1) for name in items.names], np.int64)
    rare = rarely_met(np.array(vocabulary.item_counts, np.int64), item_texts, least)
    columns = encode(data.whole(), vocabulary)
    is_goal = np.fromiter((name == goal for name in data.behaviors), np.bool_, len(data))
    ends = int(data.times_ms[inside].max()), int(data.times_ms.max())
    learned, checked = (targets(data.users, data.times_ms, is_goal, horizons, end) for end in ends)
    return Material(
        data=data,
        columns=columns,
        vocabulary=vocabulary,
        item_rows=without_itself(columns.item_rows, items.first, vocabulary.item_counts, inside, least, rare),
        category_rows=without_itself(
            columns.category_rows, vocabulary.categories.first, vocabulary.category_counts, inside, 1
        ),
        learned=learned,
        checked=checked,
        learn_until=learn_until,
        since=since,
        rule=rule,
        horizons=horizons,
        text=text,
        item_texts=item_texts,
        item_buckets=price_buckets(data, columns.item_rows, vocabulary, inside, text)
        if prices
        else np.zeros(0, np.int64),
        rare=rare,
    )


def price_buckets(
    data: Sequences, item_rows: Ints, vocabulary: Vocabulary, inside: Bools, text: ItemText | None
) -> Ints:
    """Of each known item; none where fewer than two prices are known."""
    if data.prices is None:
        return np.zeros(0, np.int64)
    known = np.where(inside, data.prices, np.nan)
    items = vocabulary.items
    found = item_prices(item_rows, known, items.names, items.first, {} if text is None else text.prices)
    at = edges(found)
    return buckets(found, at) if len(at) else np.zeros(0, np.int64)


def build_vocabulary(
    data: Sequences, inside: Bools, behaviors: Sequence[str], goal: str, text: ItemText | None
) -> tuple[Vocabulary, int]:
    """Names of the events `inside` [N], and how often an item must have been seen to be among them without a text."""
    kept = np.flatnonzero(inside).tolist()
    items = Counter(item for item in map(data.items.__getitem__, kept) if item is not None)
    categories = Counter(name for name in map(data.categories.__getitem__, kept) if name is not None)
    pairs = ((data.items[at], data.categories[at]) for at in kept)
    item_category = {item: name for item, name in pairs if item is not None and name is not None}
    repeated = sum(count >= 2 for count in items.values())
    least = 2 if repeated >= MIN_REPEATED else 1
    if text is not None:
        item_category = {**text.categories, **item_category}
    described = [] if text is None else [name for name in text.items if text.catalogue or name in items]
    vocabulary = build(items, categories, item_category, behaviors, goal, described=described, min_item_count=least)
    return vocabulary, least


def without_itself(
    rows: Ints, first: int, counts: Sequence[int], inside: Bools, least: int, otherwise: Bools | None = None
) -> Ints:
    """Rows of names, an unknown row where the name is known only because of this event, [N].

    Names that are known `otherwise` [names] stay.
    """
    seen = np.concatenate((np.zeros(first, np.int64), np.asarray(counts, np.int64)))[rows]
    only = inside & (rows >= first) & (seen - 1 < least)
    if otherwise is not None:
        only &= ~np.concatenate((np.zeros(first, np.bool_), otherwise))[rows]
    return np.where(only, FIRST_BUCKET, rows)


def log_share(rows: Ints, first: int, total: int) -> Tensor:
    """Log frequency of class 0, "none of these", and of each known row, one half added to each count."""
    counts = np.bincount(np.maximum(rows - first + 1, 0), minlength=total - first + 1) + 0.5
    return torch.log(torch.from_numpy(counts / counts.sum())).float()


def log_lift(rows: Ints, classes: Ints, log_shares: Tensor, total: int) -> Tensor:
    """How much likelier each of C classes is right after each of `total` rows than it is on average, in logs, [total, C].

    Rows and classes [E] of events and those after them, class -1 for one of no name. LIFT_EVENTS that follow the averages,
    log_shares [C], are added to each row's, so that a row that never occurs has zeros.
    """
    named = classes >= 0
    usual = LIFT_EVENTS * log_shares.double().softmax(0)  # [C]
    counts = torch.zeros(total, len(usual), dtype=torch.float64)
    places = torch.from_numpy(rows[named]), torch.from_numpy(classes[named])
    counts.index_put_(places, torch.ones((), dtype=torch.float64), accumulate=True)
    smoothed = (counts + usual) / (counts.sum(1, keepdim=True) + LIFT_EVENTS)
    return torch.log(smoothed * LIFT_EVENTS / usual).float()


def default_horizons(times_ms: Ints) -> Horizons:
    """A day for the goal and three for churn; less where the log is too short to show enough of both answers."""
    times = np.sort(times_ms)
    span = int(times[-1] - times[len(times) // 100])  # a log may begin with a few stray events
    return Horizons(goal_ms=min(DAY_MS, max(1000, span // 5)), churn_ms=min(3 * DAY_MS, max(1000, span // 5)))


def make_labels(material: Material, index: Ints, learns: Bools, next_counts: Bools, ahead: Targets) -> Labels:
    """Labels of the events at `index` [B, T] where `learns`; what comes next only where `next_counts` [N] says so."""
    index = np.minimum(index, len(material.data) - 1)
    following = ahead.next[index]
    counts = learns & (following >= 0) & next_counts[index]
    columns = material.columns

    def of_next(column: Ints) -> Tensor:
        return torch.from_numpy(np.where(counts, column[following], NO_IDENTITY))

    def answer(value: Bools, known: Bools) -> Tensor:
        return torch.from_numpy(np.where(learns & known[index], value[index], -1).astype(np.float32))

    seconds = np.log1p(ahead.gap_ms[index] / 1000).astype(np.float32)
    return Labels(
        item_ids=of_next(columns.item_ids),
        item_rows=of_next(material.item_rows),
        category_ids=of_next(columns.category_ids),
        category_rows=of_next(material.category_rows),
        behavior_rows=of_next(columns.behavior_rows),
        log_seconds=torch.from_numpy(np.where(counts, seconds, np.float32(-1))),
        goal=answer(ahead.goal, ahead.goal_known),
        churn=answer(ahead.churn, ahead.churn_known),
    )
