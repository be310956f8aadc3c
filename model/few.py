"""The best of a catalogue for few queries, on a CPU, from a table in int8.

Many queries share the reading of a catalogue; few of them wait for memory, and for the operations around the product, each of which
takes as long for one query as for a hundred. So here the first stage reads int8, a quarter of float32's bytes, and both stages are one
function. Where many queries are given the same numbers (`model.precision`), few are told the same as many; else answers depend a
little on how many are given together.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from model.precision import Table, prepare_for_few
from model.scoring_library import compile_for, of_both_stages
from model.stages import BLOCK_CELLS, GROUP, Catalogued, Exact, Ranked, both_stages, reduce

MOST = 8  # queries; with 16 of them one product in float32 is as fast (docs/experiments.md)
SLACK = 6  # groups looked into beyond k


class Few:
    """The classes of whole groups in int8; all others are looked into by the second stage."""

    def __init__(self, exact: Exact, table: Table, *, compiled: bool) -> None:
        """`table` is what many queries are given."""
        offsets = table.offsets
        self._exact, self._table = exact, prepare_for_few(exact.vectors[: len(offsets)], table)
        self.most = MOST if MOST * len(offsets) <= BLOCK_CELLS else 1  # queries that are few
        as_it_is = partial(both_stages, first=reduce)
        self._both: Callable[..., Ranked] = compile_for("cpu", both_stages, of_both_stages) if compiled else as_it_is

    @property
    def own(self) -> tuple[Tensor, ...]:
        """What is in memory for few queries, scales that they may share with many."""
        vectors, scales, _, _, ones = self._table
        return tuple(each for each in (vectors, scales, ones) if each is not None)

    def catalogued(self, k: int) -> Catalogued:
        """What `top` looks at."""
        return Catalogued(self._exact, self._table, min(k + SLACK, len(self._table.offsets) // GROUP), 1)

    def top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        """As `Scorer.top`, of 1 … `most` queries, float32 [B, D]."""
        return self._both(self.catalogued(k), queries, hidden, k)
