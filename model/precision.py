"""A catalogue's vectors and queries in the precision of scoring's first stage, laid out for their product.

B queries, D width, R rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]

FEW = 16  # queries whose product in float32 is faster, on a CPU, if they stay rows: 7 instead of 10 ms for 8 of them and 50,000 classes
AT_ONCE = 16_384  # rows that are made narrow together


class Table(NamedTuple):
    """A catalogue as the first stage reads it: R' rows, whole groups."""

    vectors: Tensor  # [R', D or more] in the precision
    scales: Tensor | None  # [R'] what one step of an int8 row is worth; float32, in `model.few` bfloat16
    offsets: Tensor  # float32 [R'] bias; -inf where a class is never listed


def prepare(vectors: Tensor, offsets: Tensor, precision: Precision) -> Table:
    """Vectors [R', D] in the precision of the first stage; int8 ones with a scale for each row."""
    if precision == "float32":
        return Table(vectors, None, offsets)
    if precision == "bfloat16":
        return Table(vectors.bfloat16(), None, offsets)
    narrow = torch.empty_like(vectors, dtype=torch.int8)
    scales = torch.empty(len(vectors), device=vectors.device)
    for begin in range(0, len(vectors), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        narrow[part], scales[part] = quantized(vectors[part])
    return Table(narrow, scales, offsets)


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 of at most ±127 and what one step is worth, [P, D] → [P, D] and [P] (absolute-maximum, symmetric)."""
    scales = rows.abs().amax(1) / 127
    return (rows / scales.clamp(min=1e-30)[:, None]).round().to(torch.int8), scales


def lay_out(queries: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Queries [B, D] as columns [D, B] of the precision, laid out as its product wants them, and for int8 what one step of each is worth [B]."""
    if kind != torch.int8:
        columns = queries.to(kind).t()
        rows_are_faster = kind == torch.float32 and len(queries) <= FEW and queries.device.type == "cpu"
        return columns if rows_are_faster else columns.contiguous(), None
    narrow, scales = quantized(queries)
    return narrow.t().contiguous(), scales
