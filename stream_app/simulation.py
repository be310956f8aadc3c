"""A synthetic shop: simulated users who browse, come back and buy, as one table of events.

Everything here is invented, from a seed. It has the shapes that real logs have (sessions, heavy tails, repeat visits, a
funnel, drifting popularity), not their numbers: good for a demo or a test, no evidence for the quality of a model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY_S = 86_400.0

SESSIONS_PER_DAY = 1.6  # of a median user, before the tail of the gaps
WARM_UP = 7  # days before the first one that are simulated and thrown away, so that not all start at once
SEARCH_FIRST, SEARCH_LATER = 0.20, 0.05  # share of steps that are searches: the first of a session, the others
STAY = 0.85  # a new item comes from the category that the session is about
EXPLORE = 0.15  # a session is about a category outside the user's tastes
REPEAT = 0.20  # a view goes back to an item that the user has seen
FAVORITE, CART, BUY_NOW = 0.03, 0.07, 0.002  # per view, before the category, price and repeat factors
CHECKOUT = 0.35  # a cart becomes a purchase at once …
RETURN = 0.30  # … or else in a later session, after another look


@dataclass(frozen=True, slots=True)
class ShopConfig:
    """The size of the shop; the defaults give about 28,000 events.

    `start_ms` (ms UTC) is midnight before the first day. Raises ValueError for a shop that cannot be.
    """

    users: int = 600
    items: int = 3_000
    categories: int = 60
    days: int = 7
    seed: int = 1
    start_ms: int = 1_736_121_600_000  # Monday, 2025-01-06

    def __post_init__(self) -> None:
        if min(self.users, self.categories, self.days) < 1:
            raise ValueError("a shop needs at least one user, one category and one day")
        if self.items < self.categories:
            raise ValueError(f"{self.items} items cannot fill {self.categories} categories; add items")


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """Items sorted by category; `reach[day * items + item]` is the running sum of the items' popularity."""

    category: Ints  # (items,)
    price: Floats  # (items,)
    first: Ints  # (categories + 1,) where each category's items begin
    reach: Floats  # (days * items,)
    favorite: Floats  # (items,) chance per view, likewise below
    cart: Floats
    checkout: Floats


@dataclass(frozen=True, slots=True)
class _Sessions:
    """Sorted by user, then by time; seconds since the start."""

    user: Ints
    start_s: Floats
    steps: Ints
    topic: Ints  # the category that the session is about


@dataclass(frozen=True, slots=True)
class _Happenings:
    """Events of one behaviour, in no particular order; item −1 means none."""

    behavior: str
    user: Ints
    session: Ints
    time_s: Floats
    item: Ints

    def where(self, mask: Bools) -> _Happenings:
        return self.take(np.flatnonzero(mask))

    def take(self, rows: Ints) -> _Happenings:
        return _Happenings(self.behavior, self.user[rows], self.session[rows], self.time_s[rows], self.item[rows])

    def then(self, behavior: str, after_s: Floats) -> _Happenings:
        """The same users do something else with the same items, some seconds later."""
        return _Happenings(behavior, self.user, self.session, self.time_s + after_s, self.item)


def simulate(shop: ShopConfig | None = None) -> pl.DataFrame:
    """A shop's events as a table of events, with prices. The same configuration always gives the same table."""
    shop = shop or ShopConfig()
    rng = np.random.default_rng(shop.seed)
    catalogue = _catalogue(shop, rng)
    tastes = _tastes(shop, rng)
    sessions = _sessions(shop, tastes, rng)
    searches, views = _browse(shop, catalogue, sessions, tastes, rng)
    happenings = [searches, views, *_funnel(catalogue, sessions, views, rng)]
    return _table(shop, catalogue, happenings, rng)


# --- the shop -------------------------------------------------------------------------------------------------------


def _catalogue(shop: ShopConfig, rng: np.random.Generator) -> _Catalogue:
    extra = _zipf_draw(shop.categories, 0.6, shop.items - shop.categories, rng)
    category = np.sort(np.concatenate([np.arange(shop.categories), extra]))
    first = np.searchsorted(category, np.arange(shop.categories + 1))
    level = rng.lognormal(3.3, 0.9, shop.categories)  # a category's usual price
    factor = rng.lognormal(0.0, 0.5, shop.items)  # the item's, against it
    eager = rng.lognormal(0.0, 0.4, (3, shop.categories))  # a category's own funnel
    cheap = factor**-0.3
    return _Catalogue(
        category,
        np.maximum(np.round(level[category] * factor, 2), 0.01),
        first,
        np.cumsum(_popularity(shop, category, first, rng)),
        FAVORITE * eager[0][category],
        CART * eager[1][category] * cheap,
        np.minimum(CHECKOUT * eager[2][category], 0.9),
    )


def _popularity(shop: ShopConfig, category: Ints, first: Ints, rng: np.random.Generator) -> Floats:
    """Zipf inside each category, times a rise and fall around the item's own day, times a small random walk."""
    rank = np.arange(shop.items) - first[category]
    day = np.arange(shop.days)[:, None]
    peak = rng.uniform(-0.5 * shop.days, 1.5 * shop.days, shop.items)
    height, width = rng.exponential(1.0, shop.items), rng.uniform(0.8, 3.0, shop.items)  # log units, days
    bump = height * np.exp(-0.5 * ((day - peak) / width) ** 2)
    walk = np.cumsum(rng.normal(0.0, 0.15, (shop.days, shop.items)), axis=0)
    return np.asarray(np.exp(bump + walk) * (rank + 1.0) ** -0.75)  # (days, items)


def _tastes(shop: ShopConfig, rng: np.random.Generator) -> tuple[Ints, Floats]:
    """Each user's five categories, and the running sum of their shares: (users, 5) both."""
    favourites = _zipf_draw(shop.categories, 0.7, shop.users * 5, rng).reshape(shop.users, 5)
    shares = rng.gamma(1.0, size=(shop.users, 5)) + 1e-9
    return favourites, np.cumsum(shares / shares.sum(axis=1, keepdims=True), axis=1)


def _zipf_draw(values: int, exponent: float, count: int, rng: np.random.Generator) -> Ints:
    weight = (np.arange(values) + 1.0) ** -exponent
    return rng.choice(values, count, p=weight / weight.sum())


# --- who comes when -------------------------------------------------------------------------------------------------


def _sessions(shop: ShopConfig, tastes: tuple[Ints, Floats], rng: np.random.Generator) -> _Sessions:
    """Visits with heavy-tailed gaps on a clock that runs with the shop's day, so that nights are quiet."""
    rate = SESSIONS_PER_DAY * rng.lognormal(0.0, 0.7, (shop.users, 1))
    gaps = 0.02 + rng.pareto(1.6, (shop.users, 20 * (shop.days + WARM_UP))) / rate  # days; mean 1 / (0.6 rate)
    busy = np.cumsum(gaps, axis=1) - WARM_UP
    user, visit = np.nonzero((busy >= 0) & (busy < shop.days))
    count = len(user)
    steps = np.clip(rng.lognormal(1.0, 0.9, count).round(), 1, 80).astype(np.int64)
    return _Sessions(
        user.astype(np.int64), _wall_clock(busy[user, visit], shop.days), steps, _topics(user, tastes, shop, rng)
    )


def _wall_clock(busy_days: Floats, days: int) -> Floats:
    """Seconds since the start at which so many days' worth of traffic has passed."""
    hour = np.arange(0, 24 * days + 0.1, 0.25)
    traffic = 1.0 + 0.7 * np.cos((hour - 16.5) * 2 * np.pi / 24) + 0.3 * np.cos((hour - 21.0) * 4 * np.pi / 24)
    passed = np.concatenate([[0.0], np.cumsum(traffic[:-1])])
    return np.interp(busy_days, passed * days / passed[-1], hour * 3600.0)


def _topics(user: Ints, tastes: tuple[Ints, Floats], shop: ShopConfig, rng: np.random.Generator) -> Ints:
    """A category for each row of `user`: one of the user's own mostly, any at times."""
    favourites, reach = tastes
    choice = np.minimum((reach[user] < rng.random((len(user), 1))).sum(axis=1), 4)
    anything = _zipf_draw(shop.categories, 0.7, len(user), rng)
    return np.where(rng.random(len(user)) < EXPLORE, anything, favourites[user, choice])


# --- what they look at ----------------------------------------------------------------------------------------------


def _browse(
    shop: ShopConfig,
    catalogue: _Catalogue,
    sessions: _Sessions,
    tastes: tuple[Ints, Floats],
    rng: np.random.Generator,
) -> tuple[_Happenings, _Happenings]:
    """The searches and the views: a session's steps, one after the other."""
    session = np.repeat(np.arange(len(sessions.user)), sessions.steps)
    user, count = sessions.user[session], len(session)
    time_s = sessions.start_s[session] + _restart(rng.lognormal(3.2, 1.1, count), session)
    opening = np.diff(session, prepend=-1) > 0
    search = rng.random(count) < np.where(opening, SEARCH_FIRST, SEARCH_LATER)
    topic = np.where(rng.random(count) < STAY, sessions.topic[session], _topics(user, tastes, shop, rng))
    item = _items(shop, catalogue, topic, time_s, rng)
    steps = _Happenings("view", user, session, time_s, item)
    searches = steps.where(search)
    views = steps.where(~search)
    seen = _revisit(views, rng)
    return (
        _Happenings("search", searches.user, searches.session, searches.time_s, np.full_like(searches.item, -1)),
        _Happenings("view", views.user, views.session, views.time_s, views.item[seen]),
    )


def _restart(gaps: Floats, session: Ints) -> Floats:
    """Running sum of the gaps that begins at 0 in each session."""
    total = np.cumsum(gaps)
    opening = np.searchsorted(session, session)
    return np.asarray(total - total[opening])


def _items(shop: ShopConfig, catalogue: _Catalogue, topic: Ints, time_s: Floats, rng: np.random.Generator) -> Ints:
    """An item of each topic, by the popularity of the day."""
    day = np.minimum((time_s / DAY_S).astype(np.int64), shop.days - 1)
    low = day * shop.items + catalogue.first[topic]
    high = day * shop.items + catalogue.first[topic + 1] - 1
    below = np.where(low > 0, catalogue.reach[low - 1], 0.0)
    at = below + rng.random(len(topic)) * (catalogue.reach[high] - below)
    found: Ints = np.clip(np.searchsorted(catalogue.reach, at, side="right"), low, high)
    return np.asarray(found - day * shop.items)


def _revisit(views: _Happenings, rng: np.random.Generator) -> Ints:
    """For each view the row whose item it shows: its own, or an earlier one of the same user, the recent ones rather.

    Going `back` rows has a chance proportional to about 1 / back. A revisit of a revisit leads to the first look.
    """
    row = np.arange(len(views.user))
    before = row - np.searchsorted(views.user, views.user)
    back = np.floor((before + 1.0) ** rng.random(len(row))).astype(np.int64)
    source = np.where((rng.random(len(row)) < REPEAT) & (before > 0), row - back, row)
    while not np.array_equal(source, source[source]):
        source = source[source]
    return source


# --- what comes of it -----------------------------------------------------------------------------------------------


def _funnel(
    catalogue: _Catalogue, sessions: _Sessions, views: _Happenings, rng: np.random.Generator
) -> list[_Happenings]:
    """Favourites, carts, purchases, and the second looks that lead to late purchases."""

    def chance(of: _Happenings, rate: Floats | float) -> _Happenings:
        return of.where(rng.random(len(of.user)) < rate)

    def later(of: _Happenings, behavior: str, median_s: float) -> _Happenings:
        return of.then(behavior, median_s * rng.lognormal(0.0, 0.8, len(of.user)))

    keen = 1.0 + _seen_before(views)  # a second look is twice as serious
    favorites = later(_once(chance(views, catalogue.favorite[views.item] * keen)), "favorite", 12.0)
    carts = later(_once(chance(views, catalogue.cart[views.item] * keen)), "add_to_cart", 20.0)
    at_once = rng.random(len(carts.user)) < catalogue.checkout[carts.item]
    looks = _come_back(chance(carts.where(~at_once), RETURN), sessions, rng)
    buyers = [carts.where(at_once), looks, chance(views, BUY_NOW)]
    return [favorites, carts, looks, *(later(of, "purchase", 150.0) for of in buyers)]


def _seen_before(views: _Happenings) -> Bools:
    return ~np.isin(np.arange(len(views.user)), _first_rows(views))


def _once(of: _Happenings) -> _Happenings:
    """The first time that each user does it with each item."""
    return of.take(_first_rows(of))


def _first_rows(of: _Happenings) -> Ints:
    pair = of.user * (of.item.max(initial=0) + 1) + of.item
    return np.sort(np.unique(pair, return_index=True)[1])


def _come_back(carts: _Happenings, sessions: _Sessions, rng: np.random.Generator) -> _Happenings:
    """Another look at what is in the cart, early in one of the user's next sessions; nothing where there is none."""
    target = carts.session + rng.geometric(0.6, len(carts.session))
    there = target < len(sessions.user)
    there[there] = sessions.user[target[there]] == carts.user[there]
    kept, target = carts.where(there), target[there]
    start_s = np.maximum(sessions.start_s[target], kept.time_s)
    return _Happenings("view", kept.user, target, start_s + 30.0 * rng.lognormal(0.0, 0.8, len(target)), kept.item)


# --- the table ------------------------------------------------------------------------------------------------------


def _table(
    shop: ShopConfig, catalogue: _Catalogue, happenings: list[_Happenings], rng: np.random.Generator
) -> pl.DataFrame:
    """All that happened before the last day was over, by time."""
    item = np.concatenate([of.item for of in happenings])
    time_s = np.concatenate([of.time_s for of in happenings])
    none = pl.Series(item < 0)
    frame = pl.DataFrame(
        {
            "user_id": _names("u", shop.users, rng).gather(np.concatenate([of.user for of in happenings])),
            "timestamp": shop.start_ms + np.floor(time_s * 1000).astype(np.int64),
            "behavior": np.repeat([of.behavior for of in happenings], [len(of.item) for of in happenings]),
            "item_id": _names("i", shop.items, rng).gather(np.maximum(item, 0)).set(none, None),
            "category": _names("c", shop.categories, rng).gather(catalogue.category[item]).set(none, None),
            "price": pl.Series(catalogue.price[item]).set(none, None),
        }
    )
    in_time = pl.col("timestamp") < shop.start_ms + int(shop.days * DAY_S * 1000)
    return frame.filter(in_time).sort("timestamp", maintain_order=True)


def _names(letter: str, count: int, rng: np.random.Generator) -> pl.Series:
    """Identifiers in random order, so that their numbers say nothing: u0001, u0002, …"""
    width = len(str(count))
    return pl.Series([f"{letter}{number:0{width}d}" for number in rng.permutation(count) + 1])
