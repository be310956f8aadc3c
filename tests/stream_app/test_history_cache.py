"""The cache alone: whom it drops, and whom it remembers. With chunks in flight it is tested with the pipeline."""

from model.window import WindowRule
from stream_app import history as histories
from stream_app.events import Event
from stream_app.history import History, HistoryRule
from stream_app.history_cache import HistoryCache

RULE = HistoryRule(WindowRule(events=3, age_ms=1000))


def test_the_cache_drops_who_was_untouched_for_longest() -> None:
    loads: list[bytes] = []

    def load(user: bytes) -> None:
        loads.append(user)

    cache = HistoryCache(load, capacity=2)
    for user in "abca":
        cache.put(user, History(0))
    cache.trim()
    assert [cache.get(user, 0) for user in "cab"] == [History(0)] * 3
    assert loads == [b"b"]
    cache.clear()
    cache.get("c", 0)
    assert loads == [b"b", b"c"]


def test_the_cache_remembers_that_a_user_was_erased() -> None:
    stored = histories.encode(histories.fold(History(0), Event("u", "view", 0, "i"), 0, RULE, 0)[0])
    cache = HistoryCache(lambda _: stored)
    assert len(cache.get("u", 0).entries) == 1
    cache.put("u", None)
    assert cache.get("u", 0) == History(0)
