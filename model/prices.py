"""Prices of items, as one of a few buckets: log-spaced between the cheap and the dear of the training range.

A price is taken as a property of the item, its median over the events that are learned from: a history does not keep what
each event cost, so that is all that serving can know. N events, I known items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from model.features import Ints

Floats = npt.NDArray[np.float64]

BUCKETS = 16
UNKNOWN = 0  # the bucket of an item without a price
OUTER = (0.01, 0.99)  # quantiles of the items' prices, between which the edges lie


def item_prices(rows: Ints, prices: Floats, names: Sequence[str], first: int, told: Mapping[str, float]) -> Floats:
    """Each known item's price [I], from events with rows [N] and prices [N], NaN or not above 0 where unknown.

    Otherwise what is `told` of the item; NaN where nothing is.
    """
    found = np.array([told.get(name, np.nan) for name in names], np.float64)
    known = (rows >= first) & (prices > 0)
    medians = pl.DataFrame({"row": rows[known], "price": prices[known]}).group_by("row").median()
    found[medians["row"].to_numpy() - first] = medians["price"].to_numpy()
    return np.where(found > 0, found, np.nan)


def edges(prices: Floats) -> Floats:
    """Where one bucket ends and the next begins, [BUCKETS - 1]; none where there are not two different prices."""
    known = prices[np.isfinite(prices)]
    if len(known) == 0:
        return np.empty(0)
    low, high = np.quantile(known, OUTER)
    return np.geomspace(low, high, BUCKETS - 1) if high > low else np.empty(0)


def buckets(prices: Floats, at: Floats) -> Ints:
    """The bucket of each price, 1 … BUCKETS, and UNKNOWN where there is none."""
    return np.where(np.isfinite(prices), 1 + np.searchsorted(at, prices, side="right"), UNKNOWN)
