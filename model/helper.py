"""A second thread for the work of a device: whichever of the two is free does what waits.

A pass of the engine is a chain of products and loops. Two passes side by side, a thread each, need no barrier; threads that share one
product wait for each other after each of some hundred of them, and badly so where one has to wait for its core. The second thread is
of low priority: it takes what the event loop leaves of a core.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, Generic, TypeVar

import torch

K = TypeVar("K")
R = TypeVar("R")

AHEAD = 2  # pieces of work that may wait for whoever is free, while the next one is prepared
SHARED = 64  # events that are worth two passes instead of one, which cost more together
NICE = 5


class Helper:
    """Work begins in the order in which it came, in the helper's thread or in that of whoever waits; use it from one thread."""

    def __init__(self) -> None:
        """The second thread has as many threads of torch's as the one that this is called from."""
        self._thread = ThreadPoolExecutor(1, "helper", _begin, (torch.get_num_threads(),))
        # In order, those whose results nobody is known to have asked for
        self._under_way: deque[Later[object]] = deque()

    def start(self, work: Callable[[], R]) -> Later[R]:
        """The work as something to ask for; it runs in inference mode."""
        while self._under_way and self._under_way[0].asked:
            self._under_way.popleft()
        work = partial(_in_inference, work)
        try:
            future = self._thread.submit(work)
        except RuntimeError:  # no thread, or none any more, for the process ends: whoever asks does it
            future = Future()
        later = Later(work, future, self._catch_up)
        self._under_way.append(later)  # type: ignore[arg-type]  # its result is nobody's here
        return later

    def settle(self) -> None:
        """Nothing is under way any more, or remembered: what nobody has begun never will be, and what has begun is over."""
        while self._under_way:
            self._under_way.pop().end()  # the newest first, or another would begin when the oldest is over

    def _catch_up(self, wanted: Later[R]) -> None:
        """Does what nobody has begun, until the result that is wanted is there or nothing is left to do."""
        for later in self._under_way:
            if wanted.done:
                return
            later.take()


class Later(Generic[R]):
    """Work that is done once, by the helper or by whoever wants its result.

    Nobody collects garbage in a worker: an error must not be kept by what its traceback keeps.
    """

    def __init__(self, work: Callable[[], R], future: Future[R], catch_up: Callable[[Later[R]], None]) -> None:
        self._work, self._future, self._catch_up = work, future, catch_up

    @property
    def done(self) -> bool:
        """Whether the result, or an error, is there."""
        return self._future.done()

    @property
    def asked(self) -> bool:
        """Whether somebody asked for the result, or it was ended: nothing is kept of it any more."""
        return self._future is _OVER

    def __call__(self) -> R:
        """The result, for whoever asks first; raises what the work raised."""
        self._catch_up(self)
        future, self._future = self._future, _OVER
        try:
            return future.result()
        finally:
            del future

    def take(self) -> None:
        """Do it here, if nobody has begun."""
        if not self._future.cancel():
            return
        future = self._future = Future()
        work = self._work
        del self  # which the traceback of an error would keep
        try:
            future.set_result(work())
        except Exception as error:  # noqa: BLE001  # whoever asks for the result gets it
            future.set_exception(error)
        finally:
            del future

    def end(self) -> None:
        """Once this returns nobody does it: it is over, or nobody will begin."""
        if not self._future.cancel():
            wait([self._future])
        self._future = _OVER  # an error would keep what its traceback keeps


_OVER: Future[Any] = Future()  # of works whose results were asked for
_OVER.set_result(None)


def results(
    works: Iterable[tuple[K, Callable[[], R]]], *, ahead: int = 0, helper: Helper | None = None
) -> Generator[tuple[K, R], None, None]:
    """Results in order, each asked for when `ahead` later ones are under way, or nothing more comes.

    With a helper, it and whoever asks do the works, AHEAD of them under way; if that ends early, by an error or otherwise, none is any more,
    nor is anything else that was started with that helper meanwhile.
    """
    waiting: deque[tuple[K, Callable[[], R]]] = deque()
    try:
        for key, work in works:
            waiting.append((key, work if helper is None else helper.start(work)))
            if len(waiting) > (ahead if helper is None else AHEAD):
                first, result = waiting.popleft()
                yield first, result()
        for key, result in waiting:
            yield key, result()
    finally:
        if helper is not None:
            helper.settle()


def _in_inference(work: Callable[[], R]) -> R:
    with torch.inference_mode():
        return work()


def _begin(threads: int) -> None:
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # where a thread has a priority of its own
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
