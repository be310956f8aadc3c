"""Windows as rectangles of item rows, for networks that know nothing else.

Windows of a poll are sorted by their length, so that a batch holds little padding. Row 0 is padding, item i is row i + 1.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from benchmarks.engine.stream import Ints, Poll


class Rectangle(NamedTuple):
    """B windows, padded on the right to L events."""

    positions: Ints  # [B] in the poll
    rows: Ints  # [B, L]
    last: Ints  # [B] position of the newest event


def rectangles(poll: Poll, batch: int, step: int, window: int) -> list[Rectangle]:
    """Batches of at most `batch` windows, as wide as the longest rounded up to a multiple of `step`."""
    lengths = poll.lengths()
    order = np.argsort(lengths, kind="stable")
    found = []
    for begin in range(0, len(order), batch):
        some = order[begin : begin + batch]
        wide = min(window, -(-int(lengths[some].max()) // step) * step)
        rows = np.zeros((len(some), wide), dtype=np.int64)
        for place, position in enumerate(some.tolist()):
            listed = poll.rows(position)
            rows[place, : len(listed)] = listed
            rows[place, : len(listed)] += 1
        found.append(Rectangle(some, rows, lengths[some] - 1))
    return found
