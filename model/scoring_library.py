"""What scoring is made of as compiled code: which dimensions may have any size, and what its loops need from the compiler.

B queries, R rows of a catalogue, G groups, H hidden classes, L loose ones; see `model.scorer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from torch import Tensor

from model.ahead_of_time import AheadOfTime, works_on
from model.building import Size
from model.compiling import compiled
from model.stages import GROUP, reduce_by_rows, reduce_fused

P = ParamSpec("P")
R = TypeVar("R")
Reduce = Callable[[Tensor, Tensor, "Tensor | None", "Tensor | None"], tuple[Tensor, Tensor]]

QUERIES, ROWS, LOOSE, HIDDEN = (
    Size("queries"),
    Size("rows"),
    Size("loose"),
    Size("hidden"),
)  # one query: code of its own


LIMITS = {"realize_reads_threshold": 100, "realize_opcount_threshold": 1000}
FUSED = LIMITS | {"cpp.enable_floating_point_contract_flag": "fast"}  # a product and a sum as one instruction
# With limits this low the maximum, which 16 rows read, is computed once and not within each of them: compiling takes 14 s instead of 35
BY_ROWS = FUSED | {"realize_reads_threshold": 5, "realize_opcount_threshold": 20}


def compile_for(
    device: str, function: Callable[P, R], sizes: Callable[..., Any], options: Mapping[str, Any] = FUSED
) -> Callable[P, R]:
    """One loop for all sizes; by the usual options, which are for CPUs, nothing between is written to memory, however often it is read.

    What does not compile is run as it is.
    """
    if device != "cpu":
        tiling = {
            "triton.coalesce_tiling_analysis": False
        }  # does not apply to dynamic shapes, and fails for some of them
        return compiled(function, dynamic=True, or_plain=True, options=tiling)
    if not works_on(device):
        return compiled(function, dynamic=True, or_plain=True, options=options)
    return AheadOfTime(function, sizes, options=options, or_plain=True)


def compiled_reduce(device: str, *, alone: bool = False) -> Reduce:
    """`model.stages.reduce` for several queries, or one alone."""
    if alone or device != "cpu":
        return compile_for(device, reduce_fused, of_reduce)
    return compile_for(device, reduce_by_rows, of_reduce, BY_ROWS)


def compiled_product(
    device: str, function: Callable[[Tensor, Tensor], Tensor]
) -> AheadOfTime[[Tensor, Tensor], Tensor] | None:
    """As a loop of its own; None where libraries' products are to be used."""
    return AheadOfTime(function, of_product, or_plain=True) if works_on(device) else None


def of_product(vectors: Any, query: Any) -> tuple[Any, ...]:
    """Any number of vectors."""
    return {0: Size("pairs", least=1, multiple=32)}, {}


def of_reduce(scores: Any, offsets: Any, scales: Any, steps: Any) -> tuple[Any, ...]:  # arguments as the program's
    """Scores [32 · n, B]."""
    rows = Size("pairs", least=1, multiple=32)
    return {0: rows, 1: QUERIES}, {0: rows}, scales is not None and {0: rows}, steps is not None and {0: QUERIES}


def of_choose(best: Any, mass: Any, keep: int) -> tuple[Any, ...]:
    """Groups [16 · g, B], at least `keep` squares of them."""
    groups = {0: Size("squares", least=keep, multiple=16), 1: QUERIES}
    return groups, groups, keep


def of_conclude(exact: Any, queries: Any, groups: Any, rest: Any, hidden: Any, k: int) -> tuple[Any, ...]:
    """Any catalogue, and any number of queries and of hidden classes."""
    catalogue = ({0: ROWS}, {0: ROWS}, {0: ROWS}, {0: LOOSE})
    return catalogue, {0: QUERIES}, {0: QUERIES}, {0: QUERIES}, hidden is not None and {0: QUERIES, 1: HIDDEN}


def of_both_stages(catalogue: Any, queries: Any, hidden: Any, k: int) -> tuple[Any, ...]:
    """Any catalogue of a kind, and any number of queries and of hidden classes."""
    return of_catalogue(catalogue, k, ""), {0: QUERIES}, hidden is not None and {0: QUERIES, 1: HIDDEN}


def of_catalogue(catalogue: Any, k: int, of: str) -> tuple[Any, ...]:
    """Any catalogue of a kind; a made-up one must have the groups that are looked into."""
    rows = {0: Size(f"{of}rows", least=max(2, k, catalogue.keep * GROUP))}
    exact, table = (rows, rows, rows, {0: Size(f"{of}loose")}), catalogue.table
    if table is None:
        return exact, None
    pairs = {0: Size(f"{of}pairs", least=catalogue.keep, multiple=2 * GROUP)}
    return exact, (pairs, table.scales is not None and pairs, pairs, table.product, table.ones is not None and pairs)


def of_rank(exact: Any, queries: Any, hidden: Any, k: int) -> tuple[Any, ...]:
    """Any catalogue of at least k rows."""
    rows = {0: Size("rows", least=max(2, k))}
    return (rows, rows, rows, {0: LOOSE}), {0: QUERIES}, hidden is not None and {0: QUERIES, 1: HIDDEN}


def of_dot(vectors: Any, queries: Any, classes: Any) -> tuple[Any, ...]:
    """Any catalogue, and any number of queries and classes."""
    return {0: ROWS}, {0: QUERIES}, {0: QUERIES, 1: Size("classes")}
