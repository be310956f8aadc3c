"""Two threads that share what waits: each work once, results in order, and nothing under way behind an error."""

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model import helper
from model.helper import AHEAD, Helper, results
from model.threads import shared

LIMIT_S = 10.0


@given(st.lists(st.sampled_from([0, 0.0005, 0.002]), max_size=12))
def test_results_come_in_order_and_each_work_is_done_once(times_s: list[float]) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(times_s[number])
        done.append(number)
        return number * number

    works = ((number, lambda number=number: work(number)) for number in range(len(times_s)))
    found = list(results(works, helper=Helper()))
    assert found == [(number, number * number) for number in range(len(times_s))]
    assert sorted(done) == list(range(len(times_s)))


def test_whoever_asks_does_what_nobody_has_begun() -> None:
    """The first work waits for the second: it would wait for ever if whoever asks for it only waited, too."""
    first_begun, second_done = threading.Event(), threading.Event()
    aid = Helper()
    first = aid.start(lambda: (first_begun.set(), second_done.wait(LIMIT_S), threading.get_ident()))
    assert first_begun.wait(LIMIT_S)
    second = aid.start(lambda: (second_done.set(), threading.get_ident()))
    _, heard, who = first()
    assert heard
    assert who != threading.get_ident()
    assert second()[1] == threading.get_ident()


def test_both_threads_have_work_at_the_same_time() -> None:
    at_work: set[int] = set()
    together: list[int] = []

    def work() -> None:
        at_work.add(threading.get_ident())
        time.sleep(0.02)
        together.append(len(at_work))
        at_work.remove(threading.get_ident())

    list(results(((number, work) for number in range(10)), helper=Helper()))
    assert len(together) == 10
    assert max(together) == 2


@pytest.mark.parametrize("wrong", [0, 2, 5])
def test_behind_an_error_nothing_is_under_way(wrong: int) -> None:
    at_work, overlaps = threading.Semaphore(2), []

    def work(number: int) -> None:
        overlaps.append(at_work.acquire(blocking=False))
        time.sleep(0.02)
        at_work.release()
        if number == wrong:
            raise ValueError(f"work {number}")

    aid = Helper()
    found = []
    with pytest.raises(ValueError, match=f"work {wrong}"):
        found.extend(results(((number, lambda number=number: work(number)) for number in range(6)), helper=aid))
    assert [number for number, _ in found] == list(range(wrong))
    assert at_work.acquire(blocking=False)
    assert at_work.acquire(blocking=False), "a work was going on behind the error"
    at_work.release(2)
    begun = len(overlaps)
    assert begun <= wrong + AHEAD + 1
    time.sleep(0.05)
    assert len(overlaps) == begun, "a work began behind the error"
    assert aid.start(lambda: 7)() == 7, "the helper is of no use any more"


def test_an_error_of_whoever_brings_the_works_ends_them_too() -> None:
    begun: list[int] = []

    def works():
        for number in range(AHEAD):
            yield number, lambda number=number: begun.append(number)
        raise KeyError("no more")

    with pytest.raises(KeyError):
        list(results(works(), helper=Helper()))
    known = list(begun)
    time.sleep(0.02)
    assert begun == known


def test_who_takes_no_more_results_stops_the_works() -> None:
    begun: list[int] = []
    found = results(((number, lambda number=number: begun.append(number)) for number in range(9)), helper=Helper())
    assert next(found)[0] == 0
    found.close()
    known = list(begun)
    time.sleep(0.02)
    assert begun == known
    assert len(begun) <= AHEAD + 1


def test_who_settles_lets_nothing_begin_behind_what_is_at_work() -> None:
    at_work, release = threading.Event(), threading.Event()
    begun: list[int] = []
    aid = Helper()
    aid.start(lambda: (at_work.set(), release.wait(LIMIT_S)))
    assert at_work.wait(LIMIT_S)
    for number in range(100):
        aid.start(partial(begun.append, number))
    timer = threading.Timer(0.05, release.set)
    timer.start()
    aid.settle()
    timer.join()
    assert release.is_set(), "it did not wait for what is at work"
    aid.start(lambda: None)()
    assert begun == []


def test_without_a_helper_results_are_asked_for_as_late_as_is_said() -> None:
    told: list[str] = []

    def works():
        for number in range(4):
            told.append(f"begin {number}")
            yield number, lambda number=number: told.append(f"ask {number}")

    list(results(works(), ahead=1))
    assert told == [
        "begin 0", "begin 1", "ask 0", "begin 2", "ask 1", "begin 3", "ask 2", "ask 3",
    ]  # fmt: skip
    told.clear()
    list(results(works()))
    assert told == [f"{what} {number}" for number in range(4) for what in ("begin", "ask")]


def test_the_second_thread_is_like_the_first_but_for_its_priority() -> None:
    first, release = threading.Event(), threading.Event()

    def look() -> tuple[int, bool, int]:
        first.set()
        release.wait(LIMIT_S)
        return (
            torch.get_num_threads(),
            torch.is_inference_mode_enabled(),
            os.getpriority(os.PRIO_PROCESS, threading.get_native_id() if sys.platform == "linux" else 0),
        )

    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        later = Helper().start(look)
        assert first.wait(LIMIT_S)  # nobody else has begun it
        release.set()
        threads, inference, priority = later()
    finally:
        torch.set_num_threads(before)
    assert (threads, inference) == (before + 1, True)
    if sys.platform == "linux":
        assert priority == min(19, os.getpriority(os.PRIO_PROCESS, 0) + helper.NICE)


def test_nothing_of_what_is_done_is_remembered() -> None:
    """By reference counts, for a worker that collects no garbage: neither of a batch, nor of a helper that is gone."""

    class Thing:
        pass

    aid, things = Helper(), [Thing() for _ in range(8)]
    gone = [weakref.ref(thing) for thing in things]
    works = [(number, partial(id, thing)) for number, thing in enumerate(things)]
    for key, result in results(iter(works), helper=aid):
        assert result == id(things[key])
    del works, things
    limit = time.monotonic() + LIMIT_S
    while any(one() is not None for one in gone) and time.monotonic() < limit:
        time.sleep(0.001)  # the helper lets go of its last work a moment after it is done
    assert [one() for one in gone] == [None] * 8
    ended = weakref.ref(aid)
    del aid
    assert ended() is None


@pytest.mark.parametrize("here", [True, False])
def test_an_error_is_not_kept_by_what_it_keeps(here: bool) -> None:
    """By reference counts: whoever has dropped the error has dropped the batch that its frames hold."""
    aid = Helper()
    held, release = threading.Event(), threading.Event()
    if here:  # the helper's thread is busy
        aid.start(lambda: (held.set(), release.wait(LIMIT_S)))
        assert held.wait(LIMIT_S)

    def wrong(thing: set[int]) -> None:
        raise ValueError(len(thing))

    def batch() -> weakref.ref[set[int]]:
        thing: set[int] = Batch((1, 2, 3))
        works: list[tuple[int, Callable[[], None]]] = [(number, partial(wrong, thing)) for number in range(3)]
        if here:
            later = aid.start(works[0][1])
            later.take()
            with pytest.raises(ValueError, match="3"):
                later()
        else:
            with pytest.raises(ValueError, match="3"):
                list(results(iter(works), helper=aid))
        return weakref.ref(thing)

    gc.disable()
    try:
        left = batch()
        release.set()
        aid.settle()
        limit = time.monotonic() + LIMIT_S
        while left() is not None and time.monotonic() < limit:
            time.sleep(0.001)
        assert left() is None
    finally:
        gc.enable()


def test_an_error_that_nobody_asks_for_is_not_kept_either() -> None:
    """Another one was asked for first, and ended the batch."""
    aid = Helper()
    held, release = threading.Event(), threading.Event()
    busy = aid.start(lambda: (held.set(), release.wait(LIMIT_S)))
    assert held.wait(LIMIT_S)

    def wrong(thing: set[int]) -> None:
        raise ValueError(len(thing))

    def batch() -> weakref.ref[set[int]]:
        thing: set[int] = Batch((1, 2, 3))
        refills = [aid.start(partial(wrong, thing)) for _ in range(2)]
        for refill in reversed(refills):
            refill.take()
        release.set()
        busy()
        aid.start(lambda: None)  # which forgets what nothing is kept of any more
        with pytest.raises(ValueError, match="3"):
            refills[0]()
        aid.settle()
        return weakref.ref(thing)

    gc.disable()
    try:
        assert batch()() is None
    finally:
        gc.enable()


class Batch(set[int]):
    """Something that can be referred to weakly."""


def test_where_no_thread_can_be_had_whoever_asks_does_the_work() -> None:
    aid = Helper()
    aid._thread.shutdown()  # as at the end of the process
    assert list(results(((n, threading.get_ident) for n in range(5)), helper=aid)) == [
        (n, threading.get_ident()) for n in range(5)
    ]
    aid.start(lambda: pytest.fail("nobody asked"))
    aid.settle()


@pytest.mark.parametrize(("count", "compiled", "ahead_of_time", "wanted"), [
    (1, True, True, (1, False)), (2, True, True, (1, True)), (5, False, False, (2, True)), (5, True, False, (5, False)),
])  # fmt: skip
def test_who_has_how_many_threads(
    monkeypatch: pytest.MonkeyPatch, count: int, compiled: bool, ahead_of_time: bool, wanted: tuple[int, bool]
) -> None:
    monkeypatch.setattr("model.threads.works_on", lambda device: ahead_of_time)
    assert shared(count, compiled=compiled) == wanted
