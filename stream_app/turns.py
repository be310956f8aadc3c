"""How often threads take turns with Python's lock.

torch lets go of the lock in each of its operations, some thousand of them for a large batch, and wants it back after each. By Python's
default whoever is at work in Python meanwhile may keep it for five milliseconds: while the event loop encodes, the device stands still.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

TURN_S = 1e-5  # as long as a handful of torch's operations take


@contextmanager
def short_turns() -> Iterator[None]:
    """Whoever waits for Python's lock gets it after TURN_S; as long as before afterwards."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
