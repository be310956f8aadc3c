"""The best of a catalogue for few queries, on a CPU, where answers may depend a little on how many are given together.

Many queries share the reading of a catalogue; few of them wait for memory, and for the operations around the product, each of which
takes as long for one query as for a hundred. So here the first stage reads int8, a quarter of float32's bytes, and all that follows the
product is one function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import Table, prepare
from model.scoring_library import compile_for, of_both_stages
from model.stages import BLOCK_CELLS, GROUP, SQUARE, Catalogued, Exact, Ranked, choose, conclude, reduce, reduce_fused

MOST = 8  # queries; with 16 of them one product in float32 is as fast (docs/experiments.md)
SLACK = 6  # groups looked into beyond k
# The product with int8 reads whole vector registers: beyond the end of a row, and from where one may begin
COLUMNS = 32


class Few:
    """The classes of whole squares in int8, of which there is one at least; all others are looked into by the second stage."""

    def __init__(self, exact: Exact, *, compiled: bool) -> None:
        rows = len(exact.bias) // (GROUP * SQUARE) * (GROUP * SQUARE)
        self._exact = exact._replace(loose=torch.arange(rows, len(exact.bias)))
        self._offsets = exact.allowed[:rows]  # the same memory
        narrow, scales, _ = prepare(exact.vectors[:rows], self._offsets, "int8")
        assert scales is not None
        self._vectors, self._scales = F.pad(narrow, (0, -narrow.shape[1] % COLUMNS)), scales.bfloat16()
        self.most = MOST if MOST * rows <= BLOCK_CELLS else 1  # queries that are few
        as_it_is = partial(both_stages, first=reduce)
        self._both: Callable[..., Ranked] = compile_for("cpu", both_stages, of_both_stages) if compiled else as_it_is

    @property
    def own(self) -> tuple[Tensor, Tensor]:
        """What is in memory for few queries alone."""
        return self._vectors, self._scales

    def catalogued(self, k: int) -> Catalogued:
        """The same for a program that it is a part of."""
        keep = min(k + SLACK, len(self._offsets) // GROUP)
        return Catalogued(self._exact, Table(self._vectors, self._scales, self._offsets), keep, 1)

    def top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        """As `Scorer.top`, of 1 … `most` queries, float32 [B, D]."""
        padded = F.pad(queries.bfloat16(), (0, self._vectors.shape[1] - queries.shape[1]))
        scores = torch._weight_int8pack_mm(padded, self._vectors, self._scales)  # noqa: SLF001  # its only name
        keep = min(k + SLACK, len(self._offsets) // GROUP)
        return self._both(self._exact, queries, scores, self._offsets, hidden, keep, k)


def both_stages(
    exact: Exact,
    queries: Tensor,
    scores: Tensor,
    offsets: Tensor,
    hidden: Tensor | None,
    keep: int,
    k: int,
    first: Callable[..., tuple[Tensor, Tensor]] = reduce_fused,
) -> Ranked:
    """What follows the product: scores bfloat16 [B, N'] of whole squares, offsets [N'], hidden [B, H]; `keep` groups are looked into."""
    if hidden is not None:
        scores = scores.scatter(1, torch.where(hidden < scores.shape[1], hidden, 0), -torch.inf)  # 0 is never listed
    best, mass = first(scores.t(), offsets, None, None)
    _, _, groups, rest = choose(best, mass, keep)
    return conclude(exact, queries, groups, rest[:, None], hidden, k)
