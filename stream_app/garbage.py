"""Garbage collection at times of our own choosing.

What makes garbage here goes away by its reference counts. Python's collector, which looks for cycles, would look at every
container of the chunks in work, 30 for each event, and find them all alive: a tenth of the worker's time. So it is switched
off, and asked twice a minute; every ten minutes it looks at everything.
"""

from __future__ import annotations

import atexit
import gc

INTERVAL_S = 30.0
FULL_EVERY = 20  # calls of `collect`


def take_over() -> None:
    """Keep what is loaded by now out of all collections, half a million objects of torch and the model; switch off the rest."""
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or what torch's bindings hold would be called a leak
    gc.disable()


class Collector:
    """To be asked every INTERVAL_S, between two steps of the event loop."""

    def __init__(self) -> None:
        self._calls = 0

    def collect(self) -> None:
        """Look for cycles among what is new; now and then among everything."""
        self._calls += 1
        gc.collect(2 if self._calls % FULL_EVERY == 0 else 1)
