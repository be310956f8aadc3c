"""The best classes of a catalogue for a query, and the log of its softmax's denominator, block by block.

Two stages. The first goes through the whole catalogue in blocks, in the precision asked for, and keeps of each group of
`GROUP` neighbouring classes the largest logit and the log of the sum of exp. The second computes the logits of the
groups with the largest maxima once more, in float32 from the original vectors: the list comes from those, and they
replace their groups' share of the denominator, so that its largest terms are exact.

B queries, D width, N classes besides class 0, R = N + 1 rows, G groups. Class 0 means "none of these": it counts in the
denominator and is never listed. Knows nothing of items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.topk import first_k

Precision = Literal["float32", "bfloat16", "int8"]

GROUP = 16  # neighbouring classes that are one candidate
SLACK: dict[Precision, int] = {"float32": 2, "bfloat16": 6, "int8": 14}  # groups looked into beyond k
BLOCK = 4096  # classes
QUERIES = 256  # at once
LANES = 16  # a multiple of which queries are padded to: the width of a vector register
HIDDEN = torch.iinfo(torch.int32).min  # no sum of products of int8 values is that small
LOWEST = torch.finfo(torch.float32).min
CELLS = 1 << 18  # numbers gathered at once, 1 MB: what the cache holds


class Ranked(NamedTuple):
    """What `Scorer.top` says about B queries."""

    logits: Tensor  # float32 [B, k] best first, ties by lower class; -inf where fewer than k are allowed
    classes: Tensor  # int64 [B, k]; 0 where fewer than k are allowed
    log_total: Tensor  # float32 [B] log Σ exp over all allowed classes and class 0


class Table(NamedTuple):
    """A catalogue as the first stage reads it: R' rows, whole groups."""

    vectors: Tensor  # [R', D] in the precision
    scales: Tensor | None  # float32 [R'] what one step of an int8 row is worth
    offsets: Tensor  # float32 [R'] bias; -inf where a class is never listed


Reduce = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor]]
Dot = Callable[[Tensor, Tensor, Tensor], Tensor]


class Scorer:
    """A catalogue ready for scoring; shares float32 vectors [N + 1, D] and bias [N + 1] with its maker. Not thread-safe.

    `precision` is that of the first stage: a list of lower precision may miss a class whose logit is level with the k-th
    to within the rounding. `banned` classes are neither listed nor counted. With `compiled`, torch.compile fuses what
    follows the product, which needs a C++ compiler on the machine.
    """

    def __init__(
        self,
        vectors: Tensor,
        bias: Tensor,
        *,
        precision: Precision = "float32",
        block: int = BLOCK,
        slack: int | None = None,
        banned: Tensor | None = None,
        compiled: bool = False,
    ) -> None:
        if precision not in SLACK:
            raise ValueError(f"precision must be one of {', '.join(SLACK)}, got {precision}")
        if block < 2 * GROUP or block % (2 * GROUP):
            raise ValueError(f"block must be a multiple of {2 * GROUP}, got {block}")
        self._vectors = vectors.detach().float().contiguous()
        self._bias = bias.detach().float()
        self._allowed = self._bias.clone()
        self._allowed[0 if banned is None else F.pad(banned.long(), (1, 0))] = -torch.inf
        self._block = block
        self._slack = SLACK[precision] if slack is None else slack
        whole = len(bias) // (2 * GROUP) * (2 * GROUP)  # int8 products on GPUs want more than 16 rows
        self._table = prepare(self._vectors[:whole], self._allowed[:whole], precision)
        self._loose = torch.arange(whole, len(bias), device=bias.device)  # always looked into
        self._compiled = compiled
        self._reduce: Reduce = torch.compile(reduce, dynamic=True) if compiled else reduce
        self._dot: Dot = torch.compile(dot, dynamic=True) if compiled else dot

    @property
    def bytes(self) -> int:
        """Memory held, that of the shared vectors included."""
        held = {each.data_ptr(): each.nbytes for each in (*self._table, self._loose) if each is not None}
        held |= {each.data_ptr(): each.nbytes for each in (self._allowed, self._bias, self._vectors)}
        return sum(held.values())

    @torch.inference_mode()
    def logits(self, queries: Tensor, classes: Tensor) -> Tensor:
        """The float32 logits of given classes, banned or not, [B, C]; queries [B, D], classes [B, C]."""
        return self._exact(queries, classes) + self._bias[classes]

    @torch.inference_mode()
    def top(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> Ranked:
        """The k best classes of each query [B, D]; `hidden` [B, H] are not allowed for their row (0: nobody).

        Where a query is not finite, neither is anything said about it.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        parts = [
            self._top(queries[begin : begin + QUERIES], k, None if hidden is None else hidden[begin : begin + QUERIES])
            for begin in range(0, max(1, len(queries)), QUERIES)
        ]
        return Ranked(*(torch.cat(each) for each in zip(*parts, strict=True)))

    def _top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        queries = queries.float()
        groups, rest = self._candidates(queries, k, hidden)
        members = groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)  # [B, K, GROUP]
        classes = torch.cat((members.flatten(1), self._loose.expand(len(queries), -1)), dim=1)  # [B, C] ascending
        logits = self._exact(queries, classes) + self._allowed[classes]
        if hidden is not None and hidden.shape[1]:
            logits = logits.masked_fill(among(classes, hidden), -torch.inf)
        nothing = (queries * self._vectors[0]).sum(1, keepdim=True) + self._bias[0]  # [B, 1]
        total = torch.cat((rest, nothing, logits), dim=1).logsumexp(1)
        best, where = first_k(logits, k)
        listed = classes.gather(1, where).masked_fill(best == -torch.inf, 0)
        doubt = (queries * 0).sum(1)  # NaN where a query is not finite, else 0
        missing = (0, k - best.shape[1])
        return Ranked(F.pad(best + doubt[:, None], missing, value=-torch.inf), F.pad(listed, missing), total + doubt)

    def _candidates(self, queries: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """First stage: K groups that hold the k best, [B, K] ascending, and the log Σ exp of all others, [B, 1]."""
        keep = min(k + self._slack, len(self._table.vectors) // GROUP)
        none = queries.new_empty(len(queries), 0)
        kept, rest = Kept(none, none, none.long()), queries.new_full((len(queries), 1), -torch.inf)
        pending: list[tuple[Tensor, Tensor]] = []
        first = waiting = 0
        for found in self._blocks(queries, hidden):
            if waiting and waiting + len(found[0]) + keep > self._block:
                kept, lost = merge(kept, pending, first, keep)
                first, pending, waiting = first + waiting, [], 0
                rest = torch.logaddexp(rest, lost)
            pending.append(found)
            waiting += len(found[0])
        if pending:
            kept, lost = merge(kept, pending, first, keep)
            rest = torch.logaddexp(rest, lost)
        return kept.groups.sort(dim=1).values, rest

    def _blocks(self, queries: Tensor, hidden: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What `reduce` says about each block, cut to the B queries."""
        rows = len(queries)
        asked, steps = lay_out(F.pad(queries, (0, 0, 0, -rows % LANES)), self._table.vectors.dtype)
        padded = asked.shape[1]
        size = min(self._block, len(self._table.vectors))
        kind = torch.int32 if asked.dtype == torch.int8 else asked.dtype
        scratch = torch.empty((size + 1, padded), dtype=kind, device=queries.device)  # the last row is for nobody
        multiply = torch._int_mm if kind == torch.int32 else torch.mm  # noqa: SLF001  # its only name
        for begin in range(0, len(self._table.vectors), self._block):
            part = slice(begin, begin + self._block)
            vectors, offsets = self._table.vectors[part], self._table.offsets[part]
            scales = None if self._table.scales is None else self._table.scales[part]
            scores = scratch[: len(vectors)]
            multiply(vectors, asked, out=scores)
            if hidden is not None:
                hide(scratch, hidden.t() - begin, len(vectors))
            best, mass = self._reduce(scores, offsets, scales, steps)
            yield best[:, :rows], mass[:, :rows]

    def _exact(self, queries: Tensor, classes: Tensor) -> Tensor:
        """Float32 products without bias, [B, C]; the same for a class and a query whatever stands beside them."""
        if self._compiled:
            return self._dot(self._vectors, queries, classes)
        room = min(CELLS, self._block * len(queries))
        step = max(1, room // max(1, classes.shape[1] * queries.shape[1]))
        parts = range(0, max(1, len(queries)), step)
        return torch.cat([dot(self._vectors, queries[at : at + step], classes[at : at + step]) for at in parts])


class Kept(NamedTuple):
    """The groups with the largest maxima so far, [B, K] each."""

    best: Tensor
    mass: Tensor  # log Σ exp
    groups: Tensor  # int64


def merge(kept: Kept, pending: list[tuple[Tensor, Tensor]], first: int, keep: int) -> tuple[Kept, Tensor]:
    """The `keep` best of those kept and those pending, from group `first` on, and the log Σ exp of the others [B, 1]."""
    best = torch.cat((kept.best, torch.cat([each[0] for each in pending]).t()), dim=1)  # [B, K + G]
    mass = torch.cat((kept.mass, torch.cat([each[1] for each in pending]).t()), dim=1)
    before = kept.groups.shape[1]
    values, where = first_k(best, keep)
    groups = where + (first - before)
    if before:
        groups = torch.where(where < before, kept.groups.gather(1, where.clamp(max=before - 1)), groups)
    chosen = Kept(values, mass.gather(1, where), groups)
    return chosen, mass.scatter_(1, where, -torch.inf).logsumexp(1, keepdim=True)


def prepare(vectors: Tensor, offsets: Tensor, precision: Precision) -> Table:
    """Vectors [R', D] in the precision of the first stage; int8 ones with a scale for each row."""
    if precision == "float32":
        return Table(vectors, None, offsets)
    if precision == "bfloat16":
        return Table(vectors.bfloat16(), None, offsets)
    narrow = torch.empty_like(vectors, dtype=torch.int8)
    scales = torch.empty(len(vectors), device=vectors.device)
    for begin in range(0, len(vectors), BLOCK):
        part = slice(begin, begin + BLOCK)
        narrow[part], scales[part] = quantized(vectors[part])
    return Table(narrow, scales, offsets)


def quantized(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows as int8 of at most ±127 and what one step is worth, [P, D] → [P, D] and [P] (absolute-maximum, symmetric)."""
    scales = rows.abs().amax(1) / 127
    return (rows / scales.clamp(min=1e-30)[:, None]).round().to(torch.int8), scales


def lay_out(queries: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Queries [B, D] as columns [D, B] of the precision, and for int8 what one step of each is worth [B]."""
    if kind != torch.int8:
        return queries.to(kind).t().contiguous(), None
    narrow, scales = quantized(queries)
    return narrow.t().contiguous(), scales


def hide(scores: Tensor, at: Tensor, rows: int) -> None:
    """Blots out each query's hidden classes `at` [H, B] where they are among the first `rows` of scores [> rows, B']."""
    nothing = HIDDEN if scores.dtype == torch.int32 else -torch.inf
    scores.scatter_(0, torch.where((at >= 0) & (at < rows), at, rows), nothing)


def reduce(scores: Tensor, offsets: Tensor, scales: Tensor | None, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Maximum and log Σ exp of each group's logits, two of [n / GROUP, B]; scores [n, B], offsets and scales [n], steps [B]."""
    logits = scores.float()
    if scales is not None and steps is not None:
        logits = torch.where(scores == HIDDEN, -torch.inf, logits * scales[:, None] * steps)
    grouped = (logits + offsets[:, None]).view(-1, GROUP, logits.shape[1])
    best = grouped.amax(1)
    terms = (grouped - best.clamp(min=LOWEST)[:, None]).exp()
    return best, best + terms.sum(1).log()


def dot(vectors: Tensor, queries: Tensor, classes: Tensor) -> Tensor:
    """Products of queries [B, D] with the vectors [R, D] of classes [B, C], [B, C]."""
    return (vectors[classes] * queries[:, None]).sum(-1)


def among(classes: Tensor, listed: Tensor) -> Tensor:
    """Which of each row's classes [B, C] are in the row's list [B, H], H > 0, [B, C]."""
    listed = listed.sort(dim=1).values
    at = torch.searchsorted(listed, classes).clamp(max=listed.shape[1] - 1)
    return listed.gather(1, at) == classes
