"""The best of a catalogue for few queries, on a CPU.

Many queries share the reading of a catalogue; few of them wait for memory, which gives some 10 GB/s, and for the operations around the
product, each of which takes as long for one query as for a hundred. So here the first stage reads vectors of int8, whatever many
queries are given, and all that follows the product is one function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import Table, prepare, quantized
from model.scoring_library import compile_for, of_both_stages
from model.stages import BLOCK_CELLS, GROUP, HIDDEN, SQUARE, Exact, Ranked, choose, conclude, reduce_fused

MOST = 8  # queries: of 12 and more one product in float32 is as fast
SLACK = 6  # groups looked into beyond k
COLUMNS = 32  # the product of bfloat16 with int8 reads whole vector registers, also beyond the end of a row


class Few:
    """The classes of whole squares in int8; all others are looked into by the second stage."""

    def __init__(self, exact: Exact, table: Table, *, compiled: bool) -> None:
        """`table` is what many queries are given: where it is int8, it is used for one as well."""
        vectors, bias = exact.vectors, exact.bias
        rows = len(bias) // (GROUP * SQUARE) * (GROUP * SQUARE)
        self._exact = exact._replace(loose=torch.arange(rows, len(bias)))
        self._offsets = exact.allowed[:rows]  # the same memory
        self._is_whole = table.scales is not None  # then queries become whole numbers too
        if table.scales is not None:
            self._vectors, self._scales = table.vectors[:rows], table.scales[:rows]
        else:
            narrow, scales, _ = prepare(vectors[:rows], self._offsets, "int8")
            assert scales is not None
            self._vectors, self._scales = F.pad(narrow, (0, -narrow.shape[1] % COLUMNS)), scales.bfloat16()
        self._both = compile_for("cpu", both_stages, of_both_stages) if compiled else both_stages

    @property
    def held(self) -> tuple[Tensor, ...]:
        """What is in memory for this alone, or for many queries as well."""
        return self._vectors, self._scales

    def takes(self, queries: int) -> bool:
        """Whether so many queries are few: their scores all exist at once, and where that is too much for MOST, only one is few."""
        rows = len(self._vectors)
        most = MOST if not self._is_whole and MOST * rows <= BLOCK_CELLS else 1
        return bool(rows) and 1 <= queries <= most

    def top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        """As `Scorer.top`; queries float32 [B, D]."""
        steps = None
        if self._is_whole:
            narrow, steps = quantized(queries)
            scores = torch._int_mm(self._vectors, narrow.t().contiguous()).t()  # noqa: SLF001  # its only name
        else:
            narrow = F.pad(queries.bfloat16(), (0, self._vectors.shape[1] - queries.shape[1]))
            scores = torch._weight_int8pack_mm(narrow, self._vectors, self._scales)  # noqa: SLF001  # likewise
        scales = self._scales if self._is_whole else None
        return self._both(self._exact, queries, scores, self._offsets, scales, steps, hidden, k)


def both_stages(
    exact: Exact,
    queries: Tensor,
    scores: Tensor,
    offsets: Tensor,
    scales: Tensor | None,
    steps: Tensor | None,
    hidden: Tensor | None,
    k: int,
) -> Ranked:
    """What follows the product: scores [B, N'] of whole squares, offsets and scales [N'], steps [B]; hidden [B, H]."""
    if hidden is not None:
        nothing = HIDDEN if scores.dtype == torch.int32 else -torch.inf
        scores = scores.scatter(1, torch.where(hidden < scores.shape[1], hidden, 0), nothing)  # 0 is never listed
    best, mass = reduce_fused(scores.t(), offsets, scales, steps)
    _, _, groups, rest = choose(best, mass, min(k + SLACK, len(offsets) // GROUP))
    return conclude(exact, queries, groups, rest[:, None], hidden, k)
