"""What the engine says about one user."""

from __future__ import annotations

from typing import TypedDict

from msgspec import Struct


class Item(TypedDict):
    """An item that may come next; a dictionary, since it goes out as JSON just as it is."""

    item_id: str
    probability: float
    behavior: str | None  # what the user will most likely do with it


class Category(TypedDict):
    """A category that may come next."""

    category: str
    probability: float


class Forecast(Struct, frozen=True):  # made at a tenth of a data class's cost
    """One answer; probabilities are of the user's next event unless said otherwise."""

    next_behaviors: list[float]  # aligned with the engine's behaviours, sums to 1
    next_items: list[Item]  # best first
    next_categories: list[Category]  # best first; empty where the training log had none
    purchase_probability: float  # of the goal behaviour within the goal horizon
    time_to_next_s: tuple[float, float, float]  # quantiles 0.1, 0.5, 0.9, seconds
    churn_probability: float  # no event within the churn horizon
    fallback: str | None  # "no_known_items": the catalogue's part of `next_items` is popularity


def difference(one: Forecast, other: Forecast, *, spared: float = 0) -> float:
    """The largest difference between two answers: of probabilities as they are, of times in log seconds.

    Of a listed name this share of its probability is no difference.
    """
    gaps = [abs(a - b) for a, b in zip(one.next_behaviors, other.next_behaviors, strict=True)]
    gaps.append(abs(one.purchase_probability - other.purchase_probability))
    gaps.append(abs(one.churn_probability - other.churn_probability))
    items = [[(i["item_id"], i["probability"]) for i in answer.next_items] for answer in (one, other)]
    categories = [[(c["category"], c["probability"]) for c in answer.next_categories] for answer in (one, other)]
    gaps += [_listed(items[0], items[1], spared), _listed(categories[0], categories[1], spared)]
    gaps.extend(_log_gap(a, b) for a, b in zip(one.time_to_next_s, other.time_to_next_s, strict=True))
    return max(gaps)


def _listed(one: list[tuple[str, float]], other: list[tuple[str, float]], spared: float) -> float:
    """Two ranked lists: rank by rank in probability, and name by name where both list the name."""
    if len(one) != len(other):
        return 1.0
    by_rank = [(a[1], b[1]) for a, b in zip(one, other, strict=True)]
    theirs = dict(other)
    by_name = [(p, theirs[name]) for name, p in one if name in theirs]
    return max((abs(a - b) - spared * max(a, b) for a, b in by_rank + by_name), default=0.0)


def _log_gap(a: float, b: float) -> float:
    return abs(a - b) / (1.0 + max(abs(a), abs(b)))
