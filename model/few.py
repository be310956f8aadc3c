"""The best of a catalogue for few queries, on a CPU, where answers may depend a little on how many are given together.

Many queries share the reading of a catalogue; few of them wait for memory, and for the operations around the product, each of which
takes as long for one query as for a hundred. So here the first stage reads int8, a quarter of float32's bytes, and both stages are one
function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from model.precision import Table, prepare
from model.scoring_library import compile_for, of_both_stages
from model.stages import BLOCK_CELLS, GROUP, Catalogued, Exact, Ranked, both_stages, reduce

MOST = 8  # queries; with 16 of them one product in float32 is as fast (docs/experiments.md)
SLACK = 6  # groups looked into beyond k
# The product with int8 reads whole vector registers: beyond the end of a row, and from where one may begin
COLUMNS = 32


class Few:
    """The classes of whole groups in int8; all others are looked into by the second stage."""

    def __init__(self, exact: Exact, *, compiled: bool) -> None:
        offsets = exact.allowed[: exact.allowed.numel() - exact.loose.numel()]  # the same memory
        narrow, scales, _ = prepare(exact.vectors[: len(offsets)], offsets, "int8")
        assert scales is not None
        vectors = F.pad(narrow, (0, -narrow.shape[1] % COLUMNS))
        self._exact, self._table = exact, Table(vectors, scales.bfloat16(), offsets)
        self.most = MOST if MOST * len(offsets) <= BLOCK_CELLS else 1  # queries that are few
        as_it_is = partial(both_stages, first=reduce)
        self._both: Callable[..., Ranked] = compile_for("cpu", both_stages, of_both_stages) if compiled else as_it_is

    @property
    def own(self) -> tuple[Tensor, ...]:
        """What is in memory for few queries alone."""
        return tuple(each for each in self._table[:2] if each is not None)

    def catalogued(self, k: int) -> Catalogued:
        """What `top` looks at."""
        return Catalogued(self._exact, self._table, min(k + SLACK, len(self._table.offsets) // GROUP), 1)

    def top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        """As `Scorer.top`, of 1 … `most` queries, float32 [B, D]."""
        return self._both(self.catalogued(k), queries, hidden, k)
