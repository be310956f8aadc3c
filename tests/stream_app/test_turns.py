"""Turns with Python's lock, with real threads."""

import sys
import threading
import time

import pytest

from stream_app.turns import TURN_S, short_turns

LETTING_GO = 100  # times


def beside_a_busy_thread() -> float:
    """How long it takes to let go of the lock so often and get it back, in seconds."""
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(50))

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        began = time.perf_counter()
        for _ in range(LETTING_GO):
            time.sleep(0)
        return time.perf_counter() - began
    finally:
        over.set()
        busy.join()


def test_whoever_lets_go_again_and_again_goes_on_beside_others() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        assert min(beside_a_busy_thread() for _ in range(5)) < LETTING_GO * before / 2  # others use the cores, too
    assert sys.getswitchinterval() == before


def test_turns_are_as_long_as_before_whatever_happens() -> None:
    before = sys.getswitchinterval()

    def fail() -> None:
        with short_turns():
            assert sys.getswitchinterval() == pytest.approx(TURN_S)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert sys.getswitchinterval() == before
