"""Garbage: collected when it is asked for, never in between, and what was loaded before is left alone."""

import gc
import weakref

from stream_app import garbage


class Cycle:
    def __init__(self) -> None:
        self.me = self


def gone(collector: garbage.Collector, calls: int = 1) -> bool:
    """Whether a cycle that nobody knows is gone after so many calls."""
    watched = weakref.ref(Cycle())
    for _ in range(calls):
        collector.collect()
    return watched() is None


def test_cycles_go_when_it_is_asked_and_not_before() -> None:
    garbage.take_over()
    watched = [weakref.ref(Cycle()) for _ in range(2000)]
    assert not gc.isenabled()
    assert all(one() is not None for one in watched), "with Python's own collector some would be gone"
    garbage.Collector().collect()
    assert all(one() is None for one in watched)


def test_what_is_old_goes_too_now_and_then() -> None:
    gc.collect()
    old = Cycle()
    watched = weakref.ref(old)
    for _ in range(2):
        gc.collect(1)  # it is of the oldest generation by now
    garbage.take_over()
    gc.unfreeze()
    del old
    collector = garbage.Collector()
    for _ in range(garbage.FULL_EVERY - 1):
        collector.collect()
    assert watched() is not None
    collector.collect()
    assert watched() is None


def test_what_was_there_before_is_out_of_it() -> None:
    before = gc.get_freeze_count()
    garbage.take_over()
    assert gc.get_freeze_count() > before + 1000
    assert gone(garbage.Collector())


def test_one_test_leaves_nothing_to_the_next() -> None:
    """See `tests/conftest.py`."""
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
