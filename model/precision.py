"""A catalogue's vectors and queries in the precision of scoring's first stage, laid out for their product.

B queries, D width, R rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["float32", "bfloat16", "int8"]
Product = Literal["mm", "int_mm", "qlinear", "int8pack"]

FEW = 16  # queries whose product in float32 is faster, on a CPU, if they stay rows: 7 instead of 10 ms for 8 of them and 50,000 classes
AT_ONCE = 16_384  # rows that are made narrow together
MOST = 127  # of an int8 number
SMALLEST = 1e-12  # step
# Without instructions for sums of four products, pairs of products are added up in 16 bits: 2 · (2 · 63) · 127 < 2¹⁵, numbers of 0 … 2 · 63
# times those of ±127. It is the rows that have less, since their rounding differs from row to row, and so is lost in the total
MOST_OF_PAIRS = 63
ZERO = MOST_OF_PAIRS  # what stands for 0 where none may be negative
# `_weight_int8pack_mm` reads whole vector registers: beyond the end of a row, and from where one may begin
COLUMNS = 32
# What `qlinear_pointwise` is told last: no bias, the answer's scale and zero, its type, and nothing that comes after
BARE: tuple[Any, ...] = (None, 1.0, 0, torch.float32, "none", [], "")


class Table(NamedTuple):
    """A catalogue as the first stage reads it: R' rows, whole groups.

    `product` is how it is multiplied: by `torch.mm`; in int8 by torch's `_int_mm` or by oneDNN's `qlinear_pointwise`, exactly; or for few
    queries by `_weight_int8pack_mm`, whose sums come in bfloat16. Exact up to a width of 2,096, which is where sums reach 2²⁴.
    """

    vectors: Tensor  # [R', D or more] in the precision
    scales: Tensor | None  # float32 [R'] what one step of an int8 row is worth
    offsets: Tensor  # float32 [R'] bias; -inf where a class is never listed
    product: Product
    ones: Tensor | None = None  # bfloat16 [R'] for `int8pack`, which multiplies its sums by something


@cache
def product_of_int8() -> Product:
    """The one that this processor has instructions for, where it has any: `qlinear` where that is seen to be exact."""
    has_vectors = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    has_sums_of_four = torch.cpu._is_vnni_supported()  # noqa: SLF001  # its only name in all versions
    may_be = has_vectors and not has_sums_of_four and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return "qlinear" if may_be and _is_exact() else "int_mm"


def _is_exact() -> bool:
    """Whether `qlinear` sums the largest numbers that there are, of one sign and the other, without loss."""
    rows = torch.tensor([[MOST_OF_PAIRS], [-MOST_OF_PAIRS]], dtype=torch.int8).expand(2, 128).repeat(64, 1)
    queries = torch.tensor([[MOST], [-MOST]], dtype=torch.int8).expand(2, 128).repeat(32, 1)
    asked = torch.ops.onednn.qlinear_prepack(queries, None)
    sums = by_qlinear((rows + ZERO).view(torch.uint8), asked, len(queries))
    return torch.equal(sums, rows.float() @ queries.float().t())


def prepare(vectors: Tensor, offsets: Tensor, precision: Precision) -> Table:
    """Vectors [R', D] in the precision of the first stage; int8 ones with a scale for each row."""
    if precision == "float32":
        return Table(vectors, None, offsets, "mm")
    if precision == "bfloat16":
        return Table(vectors.bfloat16(), None, offsets, "mm")
    if product_of_int8() == "int_mm":
        return Table(*_narrow(vectors, MOST), offsets, "int_mm")
    narrow, scales = _narrow(vectors, MOST_OF_PAIRS)
    return Table(narrow.add_(ZERO).view(torch.uint8), scales, offsets, "qlinear")


def prepare_for_few(vectors: Tensor, table: Table) -> Table:
    """Vectors [R', D] in int8 for few queries, the same numbers as the table has if that is for many in `qlinear`."""
    if table.product == "qlinear":
        assert table.scales is not None
        narrow, scales = table.vectors.view(torch.int8) - ZERO, table.scales
    else:
        narrow, scales = _narrow(vectors, MOST)
    ones = torch.ones(len(narrow), dtype=torch.bfloat16)
    return Table(F.pad(narrow, (0, -narrow.shape[1] % COLUMNS)), scales, table.offsets, "int8pack", ones)


def _narrow(vectors: Tensor, most: int) -> tuple[Tensor, Tensor]:
    narrow = torch.empty_like(vectors, dtype=torch.int8)
    scales = torch.empty(len(vectors), device=vectors.device)
    for begin in range(0, len(vectors), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        narrow[part], scales[part] = quantized(vectors[part], most)
    return narrow, scales


def quantized(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Rows as int8 of at most ±`most` and what one step is worth, [P, D] → [P, D] and [P] (absolute-maximum, symmetric)."""
    scales = (rows.abs().amax(1) / most).clamp(min=SMALLEST)
    return (rows / scales[:, None]).round().to(torch.int8), scales


def lay_out(queries: Tensor, table: Table) -> tuple[Tensor, Tensor | None]:
    """Queries [B, D] as the table's product wants them, and in int8 what one step of each is worth [B]."""
    if table.product == "mm":
        columns = queries.to(table.vectors.dtype).t()
        rows_are_faster = columns.dtype == torch.float32 and len(queries) <= FEW and queries.device.type == "cpu"
        return columns if rows_are_faster else columns.contiguous(), None
    narrow, steps = quantized(queries, MOST)
    if table.product == "qlinear":
        return torch.ops.onednn.qlinear_prepack(narrow, None), steps
    if table.product == "int8pack":
        return F.pad(narrow.bfloat16(), (0, table.vectors.shape[1] - narrow.shape[1])), steps
    return narrow.t().contiguous(), steps


def by_qlinear(vectors: Tensor, asked: Tensor, queries: int) -> Tensor:
    """Products of uint8 vectors [n, D] with so many queries as from `lay_out`: whole numbers, float32 [n, B]."""
    ones, zeros = torch.ones(queries), torch.zeros(queries, dtype=torch.int32)
    found: Tensor = torch.ops.onednn.qlinear_pointwise(vectors, 1.0, ZERO, asked, ones, zeros, *BARE)
    return found
