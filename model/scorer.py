"""The best classes of a catalogue for a query, and the log of its softmax's denominator, block by block.

Two stages. The first goes through the whole catalogue in blocks, in the precision asked for, and keeps of each group of
`GROUP` neighbouring classes the largest logit and its mass, the sum of exp relative to it. The second computes the logits of the
groups with the largest maxima once more, in float32 from the original vectors: the list comes from those, and they
replace their groups' share of the denominator, so that its largest terms are exact.

B queries, D width, N classes besides class 0, R = N + 1 rows, G groups. Class 0 means "none of these": it counts in the
denominator and is never listed. What the stages do to tensors is in `model.stages`. Knows nothing of items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.few import MOST as FEW
from model.few import Few
from model.precision import Precision, by_qlinear, lay_out, prepare
from model.scoring_library import (
    compile_for,
    compiled_product,
    compiled_reduce,
    of_choose,
    of_conclude,
    of_dot,
    of_rank,
)
from model.stages import (
    BLOCK_CELLS,
    GROUP,
    NOTHING,
    SQUARE,
    Catalogued,
    Exact,
    HiddenInOrder,
    Ranked,
    banned_mass,
    choose,
    conclude,
    dot,
    hide,
    log_sum,
    product_alone,
    rank,
    reduce,
)
from model.topk import first_k

SLACK: dict[Precision, int] = {"float32": 2, "bfloat16": 4, "int8": 6}  # groups looked into beyond k
SHORT = 4096  # rows of a catalogue that is scored in one product
BLOCK = 16_384  # classes at most; fewer for many queries
BLOCK_ALONE = 8 * BLOCK  # classes at most for one query, on a CPU: every block costs .1 ms besides its work
LEAST = 4096  # classes
ROOM = 128  # times as much at once on other devices, which need much to do and have the memory
QUERIES = 256  # at once on a CPU
QUERIES_ELSEWHERE = 2048
LANES = (
    8 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 16
)  # numbers of a vector register: queries are padded to whole ones
CELLS = 1 << 18  # numbers gathered at once, 1 MB: what the cache holds


class Kept(NamedTuple):
    """The groups with the largest maxima so far, [B, K] each, and what all others come to."""

    best: Tensor
    mass: Tensor  # Σ exp relative to the best
    groups: Tensor  # int64
    rest: Tensor  # [B] log Σ exp


class Scorer:
    """A catalogue ready for scoring; shares float32 vectors [N + 1, D] and bias [N + 1] with its maker. Several threads
    may ask at once, and nobody while it is told what to ban.

    `precision` is that of the first stage: a list of lower precision may miss a class whose logit is level with the k-th
    to within the rounding. A few queries on a CPU are given a table in int8 of their own (`model.few`) where int8 is multiplied by
    `qlinear`, and are told the same; and with `few_in_int8` in float32 and bfloat16 too, so that what is said to a query then depends a
    little on how many it comes with. `banned` classes are neither listed nor counted. With `compiled`, what follows the product is
    fused, and so is the product of a query that comes alone in float32 or bfloat16, which needs a C++ compiler on the machine.
    """

    def __init__(
        self,
        vectors: Tensor,
        bias: Tensor,
        *,
        precision: Precision = "float32",
        block: int | None = None,
        slack: int | None = None,
        banned: Tensor | None = None,
        compiled: bool = False,
        few_in_int8: bool = False,
    ) -> None:
        if precision == "int8" and vectors.device.type != "cpu":
            raise ValueError(f"int8 is for CPUs, not for {vectors.device.type}")
        if precision not in SLACK:
            raise ValueError(f"precision must be one of {', '.join(SLACK)}, got {precision}")
        self._room = 1 if vectors.device.type == "cpu" else ROOM
        self._block_alone = (BLOCK_ALONE if self._room == 1 else BLOCK * ROOM) if block is None else block
        block = BLOCK * self._room if block is None else block
        if block < 2 * GROUP or block % (2 * GROUP):
            raise ValueError(f"block must be a multiple of {2 * GROUP}, got {block}")
        vectors, bias = vectors.detach().float().contiguous(), bias.detach().float()
        allowed = bias.clone()
        allowed[0 if banned is None else F.pad(banned.long(), (1, 0))] = -torch.inf
        self._banned = vectors[:0], bias[:0]
        self._block = block
        self._slack = SLACK[precision] if slack is None else slack
        whole = len(bias) // (2 * GROUP) * (2 * GROUP)
        self._table = prepare(vectors[:whole], allowed[:whole], precision)
        self._exact = Exact(vectors, bias, allowed, torch.arange(whole, len(bias), device=bias.device))
        self._cut: dict[int, list[tuple[Tensor, Tensor | None, Tensor]]] = {}  # the table's blocks, by their size
        self._compiled = compiled
        kind = vectors.device.type
        self._reduce = compiled_reduce(kind) if compiled else reduce
        self._reduce_alone = compiled_reduce(kind, alone=True) if compiled else reduce
        self._choose = compile_for(kind, choose, of_choose) if compiled else choose
        self._conclude = compile_for(kind, conclude, of_conclude) if compiled else conclude
        self._rank = compile_for(kind, rank, of_rank) if compiled else rank
        self._dot = compile_for(kind, dot, of_dot) if compiled and kind == "cpu" else dot
        self._few: Few | None = None
        by = self._table.product
        wanted = by == "qlinear" or (few_in_int8 and by == "mm")  # `int_mm` reads the table as fast as memory gives it
        if wanted and kind == "cpu" and len(bias) > max(SHORT, 2 * GROUP):
            self._few = Few(self._exact, self._table, compiled=compiled)
        self._multiply_alone = compiled_product(kind, product_alone) if compiled and by == "mm" else None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._exact.vectors.device

    @property
    def bytes(self) -> int:
        """Memory held, that of the shared vectors included."""
        of_few = () if self._few is None else self._few.own
        tensors = (each for each in (*self._table, *self._exact, *of_few) if isinstance(each, Tensor))
        held = {each.data_ptr(): each.nbytes for each in tensors}
        return sum(held.values())

    @torch.inference_mode()
    def logits(self, queries: Tensor, classes: Tensor) -> Tensor:
        """The float32 logits of given classes, banned or not, [B, C]; queries [B, D], classes [B, C]."""
        vectors, bias = self._exact.vectors, self._exact.bias
        if len(bias) <= SHORT:
            return torch.addmm(bias, queries.float(), vectors.t()).gather(1, classes)
        step = self._rows_at_once(len(queries), classes.shape[1], self._dot is not dot)
        parts = range(0, max(1, len(queries)), step)
        found = [self._dot(vectors, queries[at : at + step], classes[at : at + step]) for at in parts]
        return torch.cat(found) + bias[classes]

    @torch.inference_mode()
    def ban(self, classes: Tensor) -> None:
        """From now on these classes [H] are neither listed nor counted, and those before are again."""
        vectors, bias, allowed, _ = self._exact
        allowed.copy_(bias)  # the first stage reads the same memory
        allowed[F.pad(classes.long(), (1, 0))] = -torch.inf
        self._banned = vectors[classes], bias[classes]

    @property
    def banned(self) -> tuple[Tensor, Tensor]:
        """Vectors [H, D] and bias [H] of the classes that `ban` was told."""
        return self._banned

    @torch.inference_mode()
    def banned_mass(self, queries: Tensor, without: Tensor | None = None) -> Tensor:
        """Log Σ exp over the classes that `ban` was told, without those at the places [B, L] of its list (H: none); [B]."""
        vectors, bias = self._banned
        masses, step = [], max(1, BLOCK_CELLS * self._room // max(1, len(bias)))
        for begin in range(0, len(queries), step):
            part = slice(begin, begin + step)
            masses.append(banned_mass(vectors, bias, queries[part].float(), None if without is None else without[part]))
        return torch.cat(masses)

    @torch.inference_mode()
    def top(self, queries: Tensor, k: int, hidden: Tensor | None = None) -> Ranked:
        """The k best classes of each query [B, D]; `hidden` [B, H] are not allowed for their row (0: nobody).

        Where a query is not finite, neither is anything said about it.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if len(self._exact.bias) <= SHORT:
            return self._rank(self._exact, queries.float(), hidden, k)
        if self._few is not None and 1 <= len(queries) <= self._few.most:
            return self._few.top(queries.float(), k, hidden)
        most = QUERIES if queries.device.type == "cpu" else QUERIES_ELSEWHERE
        parts = [
            self._top(queries[begin : begin + most], k, None if hidden is None else hidden[begin : begin + most])
            for begin in range(0, max(1, len(queries)), most)
        ]
        return whole(parts)

    def in_one_piece(self, queries: int, k: int) -> Catalogued | None:
        """What `top` and `logits` say to a few queries, for a program that they are a part of; None where blocks are better."""
        exact, table = self._exact, self._table
        if queries > FEW:
            return None
        if len(exact.bias) <= SHORT:
            return Catalogued(exact, None, 0, 1)
        if self._few is not None and queries <= self._few.most:
            return self._few.catalogued(k)
        lanes = 1 if queries == 1 else LANES
        if queries > 1 and (queries + -queries % lanes) * len(table.vectors) > BLOCK_CELLS:
            return None
        return Catalogued(exact, table, min(k + self._slack, len(table.vectors) // GROUP), lanes)

    def _top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        queries = queries.float()
        groups, rest = self._candidates(queries, k, hidden)
        step = self._rows_at_once(len(queries), groups.shape[1] * GROUP + len(self._exact.loose), self._compiled)
        found = []
        for begin in range(0, max(1, len(queries)), step):
            part = slice(begin, begin + step)
            some = None if hidden is None else hidden[part]
            found.append(self._conclude(self._exact, queries[part], groups[part], rest[part], some, k))
        return whole(found)

    def _rows_at_once(self, queries: int, classes: int, fused: bool) -> int:
        """Of how many queries the vectors of so many classes are gathered: on a CPU, in a fused loop, they never exist."""
        if fused and self._room == 1:
            return max(1, queries)
        room = min(CELLS * self._room, self._block * queries)
        return max(1, room // max(1, classes * self._exact.vectors.shape[1]))

    def _candidates(self, queries: Tensor, k: int, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """First stage: K groups that hold the k best, [B, K], and the log Σ exp of all others, [B, 1]."""
        keep = min(k + self._slack, len(self._table.vectors) // GROUP)
        if not keep:  # no whole group
            nothing = queries.new_full((len(queries), 1), -torch.inf)
            return nothing[:, :0].long(), nothing
        alone = len(queries) == 1 and queries.device.type == "cpu"  # groups themselves fill the vector registers
        padded = queries if alone else F.pad(queries, (0, 0, 0, -len(queries) % LANES))
        kept: Kept | None = None
        pending: list[tuple[Tensor, Tensor]] = []
        first = waiting = 0
        for found in self._blocks(padded, hidden):
            if waiting and waiting + len(found[0]) > self._block:
                kept = self._merge(kept, pending, first, keep)
                first, pending, waiting = first + waiting, [], 0
            pending.append(found)
            waiting += len(found[0])
        _, _, groups, rest = self._merge(kept, pending, first, keep)
        return groups[: len(queries)], rest[: len(queries), None]

    def _merge(self, kept: Kept | None, pending: list[tuple[Tensor, Tensor]], first: int, keep: int) -> Kept:
        """The `keep` best of those kept and those pending, from group `first` on; what is lost is added to the rest."""
        groups = sum(len(each) for each, _ in pending)
        if filling := -groups % SQUARE:  # nothing, of no mass
            best, mass = (each.new_empty((filling, each.shape[1])) for each in pending[0])
            pending = [*pending, (best.fill_(-torch.inf), mass.zero_())]
        best, mass = pending[0] if len(pending) == 1 else (torch.cat(each) for each in zip(*pending, strict=True))
        values, masses, where, lost = self._choose(best, mass, min(keep, groups))
        found = Kept(values, masses, where + first if first else where, lost)
        if kept is None:
            return found
        values, masses, places = (torch.cat(each, dim=1) for each in zip(kept[:3], found[:3], strict=True))
        chosen, where = first_k(values, keep, places)
        lost = log_sum(values, masses.scatter(1, where, 0), 1)
        rest = torch.logaddexp(torch.logaddexp(kept.rest, found.rest), lost)
        return Kept(chosen, masses.gather(1, where), places.gather(1, where), rest)

    def _blocks(self, queries: Tensor, hidden: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """What `reduce` says about each block, [n / GROUP, B] each."""
        rows, product = len(self._table.vectors), self._table.product
        finish = self._reduce_alone if len(queries) == 1 else self._reduce
        alone = self._multiply_alone if len(queries) == 1 else None
        if alone is not None and alone.is_plain:
            alone = None
        asked, steps = (queries[0], None) if alone is not None else lay_out(queries, self._table)
        most, cells = self._block_alone if len(queries) == 1 else self._block, BLOCK_CELLS * self._room
        size = min(most, max(LEAST, cells // max(1, len(queries)) // (2 * GROUP) * (2 * GROUP)))
        blocks = range(0, rows, size)
        in_order = None
        if hidden is not None and queries.device.type == "cpu":
            in_order, hidden = HiddenInOrder(hidden, len(queries), blocks), None
        kind = torch.int32 if product == "int_mm" else asked.dtype
        room = 0 if product == "qlinear" else min(size, rows) + 2  # the first and the last for nobody
        scratch = queries.new_empty((room, len(queries)), dtype=kind)
        inside = scratch[1:-1]
        multiply = torch._int_mm if product == "int_mm" else torch.mm  # noqa: SLF001  # its only name
        for number, (vectors, scales, offsets) in enumerate(self._parts(size)):
            if product == "qlinear":  # which has memory of its own
                scores = by_qlinear(vectors, asked, len(queries))
            else:
                scores = inside if number < len(blocks) - 1 else inside[: len(vectors)]
                if alone is not None:
                    scores.copy_(alone(vectors, asked))
                else:
                    multiply(vectors, asked, out=scores)
            if in_order is not None:
                in_order.hide(scores, number, NOTHING[product])
            if hidden is not None:
                hide(scratch, hidden.t() - (blocks[number] - 1), len(scores), NOTHING[product])
            yield finish(scores, offsets, scales, steps)

    def _parts(self, size: int) -> list[tuple[Tensor, Tensor | None, Tensor]]:
        """Vectors, scales and offsets of the blocks of that size; cut once, since each cut lets another thread have Python's lock."""
        if size not in self._cut:
            vectors, scales, offsets, _, _ = self._table
            parts = [slice(begin, begin + size) for begin in range(0, len(vectors), size)]
            self._cut[size] = [
                (vectors[part], None if scales is None else scales[part], offsets[part]) for part in parts
            ]
        return self._cut[size]


def whole(parts: list[Ranked]) -> Ranked:
    """One answer of several queries' one after the other."""
    return parts[0] if len(parts) == 1 else Ranked(*(torch.cat(each) for each in zip(*parts, strict=True)))
