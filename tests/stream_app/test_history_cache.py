"""The cache alone: whom it drops, and whom it remembers. With chunks in flight it is tested with the pipeline."""

import weakref
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from model.window import WindowRule
from stream_app import history as histories
from stream_app.events import Event
from stream_app.history import History, HistoryRule
from stream_app.history_cache import AT_ONCE, HistoryCache

RULE = HistoryRule(WindowRule(events=3, age_ms=1000))


users = st.integers(0, 30).map(str)


@given(st.lists(users | st.just("trim")), st.integers(1, 12))
def test_the_cache_keeps_those_touched_last(touched: list[str], capacity: int) -> None:
    """At least `capacity` of them, and at most twice as many and those touched since."""
    loads: list[bytes] = []
    cache = HistoryCache(loads.append, capacity)
    last: dict[str, int] = {}  # by user: when touched
    since = set[str]()
    for time, user in enumerate(touched):
        if user == "trim":
            cache.trim()
            since.clear()
            continue
        cache.put(user, History(0, time))
        since.add(user)
        last.pop(user, None)
        last[user] = time
    newest_first = list(reversed(last))
    for user in newest_first[:capacity]:
        assert cache.peek(user) == History(0, last[user])
    assert loads == []
    known = [user for user in newest_first if cache.peek(user) is not None]
    assert len(known) <= len(cache) < 2 * (capacity + max(1, len(since)))
    assert all(cache.peek(user) == History(0, last[user]) for user in known)


def test_who_is_dropped_is_loaded_again() -> None:
    loads: list[bytes] = []
    cache = HistoryCache(loads.append, capacity=2)
    for user in "abcdef":
        cache.put(user, History(0))
        cache.trim()
    assert [cache.get(user, 0) for user in "fedcab"] == [History(0)] * 6
    assert loads == [b"d", b"c", b"a", b"b"]
    cache.clear()
    cache.get("f", 0)
    assert loads[4:] == [b"f"]


def test_who_is_dropped_is_let_go_a_few_at_a_time() -> None:
    capacity = 3 * AT_ONCE // 2
    cache = HistoryCache(lambda _: None, capacity)
    kept = [weakref.WeakSet[Held]() for _ in range(2)]
    for generation in kept:
        for number in range(capacity):
            held = Held()
            generation.add(held)
            cache.put(f"{id(generation)}-{number}", cast(History, held))
        del held
        cache.trim()
    assert [len(generation) for generation in kept] == [capacity - AT_ONCE, capacity]
    cache.trim()
    assert [len(generation) for generation in kept] == [0, capacity]


class Held:
    """Stands for a history; one can see when it is let go."""


def test_the_cache_remembers_that_a_user_was_erased() -> None:
    stored = histories.encode(histories.fold(History(0), Event("u", "view", 0, "i"), 0, RULE, 0)[0])
    cache = HistoryCache(lambda _: stored)
    assert len(cache.get("u", 0).entries) == 1
    cache.put("u", None)
    assert cache.get("u", 0) == History(0)
