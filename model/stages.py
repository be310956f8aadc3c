"""What scoring is made of, as functions of tensors: a first stage that is about groups of neighbouring classes, and a second about those that matter.

B queries, D width, N classes besides class 0, R = N + 1 rows, G groups, K groups looked into; see `model.scorer`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.precision import Product, Table, by_qlinear, lay_out
from model.topk import first_k

GROUP = 16  # neighbouring classes that are one candidate
SQUARE = 16  # neighbouring groups that are looked at together first
BLOCK_CELLS = 1 << 20  # scores at once: 2 or 4 MB, which a CPU's cache holds
HIDDEN = torch.iinfo(torch.int32).min  # no sum of products of int8 values is that small
# The score of what is hidden. As a float it stays far below all logits with any scale, and finite, so that nothing has to look for it
NOTHING: dict[Product, float] = {"mm": -torch.inf, "int_mm": HIDDEN, "qlinear": -1e33, "int8pack": -1e33}
EIGHT_BITS = 1 << 16  # of the 24 of a float32's, bfloat16 keeps 8
LOWEST = torch.finfo(torch.float32).min
REACH = 16.0  # how far below its group's largest a logit still counts
# Of exp((x − REACH) / 32) around REACH, by powers of x: of positive terms alone, so that no digit is lost
CUBIC = (
    1 - REACH / 32 + REACH**2 / (2 * 32**2) - REACH**3 / (6 * 32**3),
    1 / 32 - 2 * REACH / (2 * 32**2) + 3 * REACH**2 / (6 * 32**3),
    1 / (2 * 32**2) - 3 * REACH / (6 * 32**3),
    1 / (6 * 32**3),
)


class Ranked(NamedTuple):
    """What `Scorer.top` says about B queries."""

    logits: Tensor  # float32 [B, k] best first, ties by lower class; -inf where fewer than k are allowed
    classes: Tensor  # int64 [B, k]; 0 where fewer than k are allowed
    log_total: Tensor  # float32 [B] log Σ exp over all allowed classes and class 0


class Exact(NamedTuple):
    """A catalogue as the second stage reads it, float32."""

    vectors: Tensor  # [R, D]
    bias: Tensor  # [R]
    allowed: Tensor  # [R] bias; -inf where a class is never listed
    loose: Tensor  # int64: the last classes, of no whole group and always looked into


class Catalogued(NamedTuple):
    """A catalogue that is scored in one piece: a short one, or a long one for few queries."""

    exact: Exact
    table: Table | None  # as the first stage reads it; without it there is one stage
    keep: int  # groups looked into
    lanes: int  # several queries are padded to a multiple of it

    def top(self, queries: Tensor, k: int, hidden: Tensor | None) -> Ranked:
        """As `model.scorer.Scorer.top`."""
        if self.table is None:
            return rank(self.exact, queries, hidden, k)
        return both_stages(self, queries, hidden, k)

    def logits(self, queries: Tensor, classes: Tensor) -> Tensor:
        """As `model.scorer.Scorer.logits`."""
        return dot(self.exact.vectors, queries, classes) + self.exact.bias[classes]


def rank(exact: Exact, queries: Tensor, hidden: Tensor | None, k: int) -> Ranked:
    """All of a short catalogue in one product, which is less work than to choose groups."""
    logits = torch.addmm(exact.allowed, queries, exact.vectors.t())  # [B, R]
    logits[:, 0] = -torch.inf
    if hidden is not None:
        logits = logits.scatter(1, hidden, -torch.inf)
    best, where = first_k(logits, k)
    return ranked(best, where, logits.logsumexp(1, keepdim=True), exact, queries, k)


def conclude(exact: Exact, queries: Tensor, groups: Tensor, rest: Tensor, hidden: Tensor | None, k: int) -> Ranked:
    """The second stage: what is listed of groups [B, K], and the total with the log Σ exp of all others [B, 1]."""
    members = groups[:, :, None] * GROUP + torch.arange(GROUP, device=groups.device)  # [B, K, GROUP]
    classes = torch.cat((members.flatten(1), exact.loose.expand(len(queries), -1)), dim=1)  # [B, C]
    logits = dot(exact.vectors, queries, classes) + exact.allowed[classes]
    if hidden is not None:
        at = places(hidden, groups, len(exact.bias) - len(exact.loose))
        logits = F.pad(logits, (1, 0)).scatter(1, at, -torch.inf)[:, 1:]
    best, where = first_k(logits, k, classes)
    return ranked(best, classes.gather(1, where), torch.cat((rest, logits), dim=1), exact, queries, k)


def ranked(best: Tensor, classes: Tensor, logits: Tensor, exact: Exact, queries: Tensor, k: int) -> Ranked:
    """Lists [B, k or fewer] and what the total is made of, class 0 aside [B, any], as an answer."""
    nothing = (queries * exact.vectors[0]).sum(1, keepdim=True) + exact.bias[0]  # [B, 1]
    total = torch.cat((logits, nothing), dim=1).logsumexp(1)
    doubt = (queries * 0).sum(1)  # NaN where a query is not finite, else 0
    missing = (0, k - best.shape[1])
    listed = F.pad(classes.masked_fill(best == -torch.inf, 0), missing)
    return Ranked(F.pad(best + doubt[:, None], missing, value=-torch.inf), listed, total + doubt)


def places(hidden: Tensor, groups: Tensor, whole: int) -> Tensor:
    """Where hidden classes [B, H] stand among the members of groups [B, K] and the classes from `whole` on, from 1; 0: nowhere."""
    steps = torch.arange(1, groups.shape[1] + 1, device=groups.device)
    turn = ((hidden[:, :, None] // GROUP == groups[:, None]) * steps).sum(-1)  # [B, H] which group, from 1
    inside = torch.where(turn > 0, (turn - 1) * GROUP + hidden % GROUP + 1, 0)
    return torch.where(hidden >= whole, groups.shape[1] * GROUP + hidden - whole + 1, inside)


def choose(best: Tensor, mass: Tensor, keep: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The `keep` groups with the largest maxima: those, their masses and places, [B, keep] each; log Σ exp of the others [B].

    best, mass [G, B], G a multiple of SQUARE; mass is overwritten. The best groups lie in the best squares.
    """
    squares = first_k(best.view(len(best) // SQUARE, SQUARE, best.shape[1]).amax(1).t(), keep)[1]  # [B, keep or fewer]
    inside = (squares[:, :, None] * SQUARE + torch.arange(SQUARE, device=best.device)).flatten(1)
    values, where = first_k(best.gather(0, inside.t()).t(), keep, inside)
    where = inside.gather(1, where)
    chosen = mass.gather(0, where.t()).t()
    return values, chosen, where, log_sum(best, mass.scatter_(0, where.t(), 0), 0)


def log_sum(best: Tensor, mass: Tensor, dim: int) -> Tensor:
    """Log Σ exp over groups of which each has a `mass` relative to its best."""
    most = best.amax(dim, keepdim=True).clamp(min=LOWEST)
    return ((best - most).exp() * mass).sum(dim).log() + most.squeeze(dim)


def hide(scores: Tensor, at: Tensor, rows: int, nothing: float) -> None:
    """Blots out each query's hidden classes `at` [H, B] where they are among rows 1 … `rows` of scores [≥ rows + 2, B'].

    What lies before or behind lands in the rows around them.
    """
    scores.scatter_(0, at.clamp_(0, rows + 1), nothing)


class HiddenInOrder:
    """The same on a CPU, which is faster at looking only at those that are among the rows of a block: places in the order of blocks."""

    def __init__(self, hidden: Tensor, columns: int, blocks: range) -> None:
        """Hidden classes [B, H] of scores with so many columns, and where blocks begin."""
        block = hidden // blocks.step
        places = (hidden - block * blocks.step) * columns + torch.arange(len(hidden))[:, None]  # in their block
        is_there = (hidden > 0) & (hidden < blocks.stop)  # class 0 is nobody
        numbers = torch.where(is_there, block, len(blocks)).flatten().numpy()
        few = numbers.astype(np.min_scalar_type(len(blocks)))  # whose sort takes a third of that of all places
        order = np.argsort(few, kind="stable")
        counts = np.bincount(few, minlength=len(blocks) + 1).tolist()
        self._places = torch.split(torch.from_numpy(places.flatten().numpy()[order]), counts)

    def hide(self, scores: Tensor, number: int, nothing: float) -> None:
        """Blots out those that are among the rows of scores [n, B'], which are the block of that number."""
        scores.view(-1).index_fill_(0, self._places[number], nothing)


def reduce(scores: Tensor, offsets: Tensor, scales: Tensor | None, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    """Each group's largest logit and Σ exp relative to it, [n / GROUP, B]; scores [n, B], offsets and scales [n], steps [B].

    Scores are overwritten where they are float32 and no sums of int8's.
    """
    if scales is None or steps is None:
        logits = scores.float()
    else:
        logits = in_bfloat16(scores).mul_(scales[:, None]).mul_(steps)
    if scores.dtype == torch.int32:
        logits.masked_fill_(scores == HIDDEN, -torch.inf)
    grouped = logits.add_(offsets[:, None]).view(len(scores) // GROUP, GROUP, scores.shape[1])
    best = grouped.amax(1)
    return best, grouped.sub_(best.clamp(min=LOWEST)[:, None]).exp_().sum(1)


def reduce_fused(scores: Tensor, offsets: Tensor, scales: Tensor | None, steps: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same for a compiler, which makes one loop of it; nothing is overwritten."""
    grouped = logits_of(scores, offsets, scales, steps).view(len(scores) // GROUP, GROUP, scores.shape[1])
    best = grouped.amax(1)
    return best, exp_above(grouped - reach_of(best)[:, None]).sum(1)


def reduce_by_rows(
    scores: Tensor, offsets: Tensor, scales: Tensor | None, steps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for a compiler for CPUs, and several queries, which fill its registers: scores are read once for maximum and sum."""
    grouped, lifts = scores.view(-1, GROUP, scores.shape[1]), offsets.view(-1, GROUP)
    worth = None if scales is None else scales.view(-1, GROUP)
    rows = [
        logits_of(grouped[:, row], lifts[:, row], None if worth is None else worth[:, row], steps)
        for row in range(GROUP)
    ]
    best = functools.reduce(torch.maximum, rows)
    begin = reach_of(best)
    return best, functools.reduce(torch.add, (exp_above(row - begin) for row in rows))


def logits_of(scores: Tensor, offsets: Tensor, scales: Tensor | None, steps: Tensor | None) -> Tensor:
    """Float32 [n, B]; scores [n, B], offsets and scales [n], steps [B]."""
    worth = None if scales is None or steps is None else scales[:, None] * steps
    logits = (scores.float() if worth is None else in_bfloat16(scores) * worth) + offsets[:, None]
    return torch.where(scores == HIDDEN, -torch.inf, logits) if scores.dtype == torch.int32 else logits


def in_bfloat16(scores: Tensor) -> Tensor:
    """Sums of products of int8 numbers as float32; if they are that already, rounded as those are that few queries get.

    To eight bits, ties to even, by sums alone (T. J. Dekker, "A floating-point technique for extending the available precision",
    1971), which a compiler makes vectors of; conversions there and back it leaves out. Each sum is of less than 2²⁴, and is the same
    with or without a product in it.
    """
    if scores.dtype != torch.float32:
        return scores.float()
    above = scores * EIGHT_BITS
    return (scores + above) - above


def both_stages(
    catalogue: Catalogued,
    queries: Tensor,
    hidden: Tensor | None,
    k: int,
    first: Callable[..., tuple[Tensor, Tensor]] = reduce_fused,
) -> Ranked:
    """Of a catalogue with a table, the first stage by one product; hidden [B, H]."""
    exact, table, keep, lanes = catalogue
    assert table is not None
    scores, steps = products(table, queries, lanes)
    if hidden is not None:
        at = torch.where(hidden < len(scores), hidden, 0)  # class 0 is never listed
        scores = scores.scatter(0, at.t(), NOTHING[table.product])
    best, mass = first(scores, table.offsets, None if steps is None else table.scales, steps)
    best, mass = best[:, : len(queries)], mass[:, : len(queries)]
    _, groups = first_k(best.t(), keep)
    rest = log_sum(best, mass.scatter(0, groups.t(), 0), 0)
    return conclude(exact, queries, groups, rest[:, None], hidden, k)


def products(table: Table, queries: Tensor, lanes: int) -> tuple[Tensor, Tensor | None]:
    """Products of all vectors with queries [B, D], [n, B or more], and of those in int8 what one step of each query is worth."""
    alone = len(queries) == 1
    if table.product == "mm" and alone:
        return product_alone(table.vectors, queries[0]), None
    padded = queries if alone else F.pad(queries, (0, 0, 0, -len(queries) % lanes))
    asked, steps = lay_out(padded, table)
    return multiplied(table, asked, len(padded)), steps


def multiplied(table: Table, asked: Tensor, queries: int) -> Tensor:
    """Products of all vectors of a table with so many queries as from `lay_out`, [n, B]."""
    if table.product == "qlinear":
        return by_qlinear(table.vectors, asked, queries)
    if table.product == "int8pack":
        assert table.ones is not None
        return torch._weight_int8pack_mm(asked, table.vectors, table.ones).t()  # noqa: SLF001  # its only name
    multiply = torch._int_mm if table.product == "int_mm" else torch.mm  # noqa: SLF001
    return multiply(table.vectors, asked)


def banned_mass(vectors: Tensor, bias: Tensor, queries: Tensor, without: Tensor | None) -> Tensor:
    """Log Σ exp over classes with these vectors [H, D] and bias [H], without those at the places [B, L] (H: none); [B]."""
    logits = F.pad(torch.addmm(bias, queries, vectors.t()), (0, 1), value=-torch.inf)  # [B, H + 1]
    if without is not None:
        logits.scatter_(1, without, -torch.inf)
    return logits.logsumexp(1)


def reach_of(best: Tensor) -> Tensor:
    """The logit above which a group's others count, finite if all are -inf.

    Rounded as logits are. Where that is more than REACH, as where all of a group is hidden by a large number, its mass is about 0.
    """
    return best.clamp(min=LOWEST) - REACH


def exp_above(x: Tensor) -> Tensor:
    """exp(x − REACH) for x ≤ REACH to within 7e-6 (absolute), by products alone: 1 + y + y²/2 + y³/6 of y = (x − REACH) / 32, squared five times.

    For x below 0 it stays at 1e-7, which is little beside the 1 that each group's maximum adds. `relu` is one instruction where `clamp`
    has to look for NaN.
    """
    x = x.relu()
    power = ((CUBIC[3] * x + CUBIC[2]) * x + CUBIC[1]) * x + CUBIC[0]
    for _ in range(5):
        power = power * power
    return power


def product_alone(vectors: Tensor, query: Tensor) -> Tensor:
    """Products of all vectors [n, D] with one query [D], float32 [n, 1].

    As one loop of a compiler, which on processors without AVX-512 takes half as long as the libraries' product of matrix and vector.
    """
    return (vectors.float() * query).sum(1, keepdim=True)


def dot(vectors: Tensor, queries: Tensor, classes: Tensor) -> Tensor:
    """Products of queries [B, D] with the vectors [R, D] of classes [B, C], [B, C]."""
    return (vectors[classes] * queries[:, None]).sum(-1)
