"""The cache alone: whom it drops, and whom it remembers. With chunks in flight it is tested with the pipeline."""

import weakref
from typing import cast
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from model.window import WindowRule
from stream_app import history as histories
from stream_app import history_cache
from stream_app.events import Event
from stream_app.history import HistoryRule
from stream_app.history_cache import AT_ONCE, HistoryCache
from stream_app.history_layout import History

RULE = HistoryRule(WindowRule(events=3, age_ms=1000))


users = st.integers(0, 30).map(str)


@given(st.lists(st.lists(users, max_size=12), max_size=30), st.integers(1, 5), st.integers(0, 5))
def test_the_cache_keeps_those_touched_last(turns: list[list[str]], more: int, at_once: int) -> None:
    """`trim` follows each turn: at least `capacity` users stay, at most twice as many and those of a turn, and they leave slowly."""
    most = max((len(set(turn)) for turn in turns), default=0)
    loads: list[bytes] = []
    cache = HistoryCache(loads.append, capacity := most + more)  # those of a turn are in flight together
    last: dict[str, int] = {}  # by user: when touched
    for time, turn in enumerate(turns):
        for user in turn:
            cache.put(user, History.empty(0, time))
            last.pop(user, None)
            last[user] = time
        before = len(cache)
        with mock.patch.object(history_cache, "AT_ONCE", at_once):
            cache.trim()
        assert 0 <= before - len(cache) <= max(at_once, 2 * len(set(turn)))
        assert len(cache) <= 2 * (capacity + most)
        newest_first = list(reversed(last))
        for user in newest_first[:capacity]:
            assert cache.peek(user) == History.empty(0, last[user])
        assert loads == []
        known = [user for user in newest_first if cache.peek(user) is not None]
        assert all(cache.peek(user) == History.empty(0, last[user]) for user in known)
        loads.clear()


def test_who_is_dropped_is_loaded_again() -> None:
    loads: list[bytes] = []
    cache = HistoryCache(loads.append, capacity=2)
    for user in "abcdef":
        cache.put(user, History.empty(0))
        cache.trim()
    assert [cache.get(user, 0) for user in "fedcab"] == [History.empty(0)] * 6
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
            if number % (AT_ONCE // 2) == AT_ONCE // 2 - 1:
                del held
                cache.trim()
    assert [len(generation) for generation in kept] == [capacity - AT_ONCE, capacity]
    cache.trim()
    assert [len(generation) for generation in kept] == [0, capacity]


class Held:
    """Stands for a history; one can see when it is let go."""


def test_the_cache_remembers_that_a_user_was_erased() -> None:
    stored = histories.fold(History.empty(0), Event("u", "view", 0, "i"), 0, RULE, 0)[0].stored
    cache = HistoryCache(lambda _: stored)
    assert len(cache.get("u", 0).entries) == 1
    cache.put("u", None)
    assert cache.get("u", 0) == History.empty(0)
