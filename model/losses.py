"""What the network is punished for: exact likelihood of mixtures, cross-entropy, pinball.

P learning positions out of B × L, N catalogue size.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import QUANTILES
from model.features import Batch
from model.network import FAR, Heads, Mixture, NextMoveModel

CELLS = 1 << 21  # logits held at once: 8 MB, which the allocator keeps and the cache half holds


@dataclass(frozen=True, slots=True)
class Labels:
    """What came next, for every position of a batch; negative where there is nothing to learn."""

    item_ids: Tensor  # int64 [B, T] identity
    item_rows: Tensor  # int64 [B, T]
    category_ids: Tensor  # int64 [B, T]
    category_rows: Tensor  # int64 [B, T]
    behavior_rows: Tensor  # int64 [B, T]
    log_seconds: Tensor  # float [B, T]
    goal: Tensor  # float [B, T] 0 or 1
    churn: Tensor  # float [B, T] 0 or 1

    def to(self, device: torch.device) -> Labels:
        """The same labels on another device."""
        return Labels(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


WEIGHTS = {"item": 1.0, "category": 1.0, "behavior": 1.0, "with_item": 0.5, "time": 0.5, "goal": 0.5, "churn": 0.5}


def losses(model: NextMoveModel, heads: Heads, batch: Batch, labels: Labels) -> dict[str, tuple[Tensor, int]]:
    """Name → (sum of the loss, number of positions); heads at all positions (T = L) or at the last ones (T = 1)."""
    config = model.config
    return {
        "item": mixture_loss(
            heads.items, batch.item_ids, labels.item_ids, labels.item_rows, config.item_first, *model.item_table()
        ),
        "category": mixture_loss(
            heads.categories,
            batch.category_ids,
            labels.category_ids,
            labels.category_rows,
            config.category_first,
            *model.category_table(),
        ),
        "behavior": _cross_entropy(heads.behaviors, labels.behavior_rows - config.behavior_first),
        "with_item": with_item_loss(model, heads, batch, labels),
        "time": pinball(heads.log_seconds, labels.log_seconds),
        "goal": _binary(heads.goal, labels.goal),
        "churn": _binary(heads.churn, labels.churn),
    }


def mixture_loss(
    mixture: Mixture, ids: Tensor, target_ids: Tensor, target_rows: Tensor, first: int, vectors: Tensor, bias: Tensor
) -> tuple[Tensor, int]:
    """-log p of what came next under `g · softmax + (1 - g) · pointer`.

    Something unknown to the vocabulary is class 0 of the softmax, unless the window holds it: then only the pointer can
    have meant it.
    """
    row, step = torch.nonzero(target_ids >= 0, as_tuple=True)  # [P] each
    wanted = target_ids[row, step]  # [P]
    classes = (target_rows[row, step] - first + 1).clamp(min=0)  # [P]
    hit = ids[row] == wanted[:, None]  # [P, L]
    copied = torch.logsumexp(mixture.pointer[row, step].masked_fill(~hit, FAR), dim=-1)  # [P]
    named = catalogue_log_probability(mixture.query[row, step], vectors, bias, classes)  # [P]
    named = named.masked_fill((classes == 0) & (copied > FAR / 2), FAR)
    share, copy_share = mixture.log_catalogue[row, step], mixture.log_copy[row, step]
    return -torch.logaddexp(share + named, copy_share + copied).sum(), len(row)


def catalogue_log_probability(query: Tensor, vectors: Tensor, bias: Tensor, classes: Tensor) -> Tensor:
    """Log softmax at one class per row, [P]; query [P, D], vectors [N + 1, D], bias [N + 1], classes [P]."""
    result: Tensor = _LogSoftmaxAt.apply(query, vectors, bias, classes)
    return result


class _LogSoftmaxAt(torch.autograd.Function):
    """The full softmax in blocks of rows that stay in cache, computed again on the way back instead of kept.

    Matrix products are in bfloat16, which is several times faster; sums and the softmax are in float32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, vectors: Tensor, bias: Tensor, classes: Tensor) -> Tensor:
        """As `catalogue_log_probability`; keeps one normaliser per row, [P], and no logits."""
        table = vectors.bfloat16()
        normaliser, chosen = query.new_empty(len(query)), query.new_empty(len(query))
        for part in _blocks(len(query), len(bias)):
            logits = _logits(query[part], table, bias)  # [p, N + 1]
            normaliser[part] = logits.logsumexp(-1)
            chosen[part] = logits.gather(1, classes[part, None]).squeeze(1)
        ctx.save_for_backward(query, vectors, bias, classes, normaliser)
        return chosen - normaliser

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients [P, D], [N + 1, D] and [N + 1] from grad [P]: one-hot minus softmax, computed again by block."""
        query, vectors, bias, classes, normaliser = ctx.saved_tensors
        table = vectors.bfloat16()
        to_query, to_vectors, to_bias = torch.empty_like(query), torch.zeros_like(vectors), torch.zeros_like(bias)
        for part in _blocks(len(query), len(bias)):
            slope = _logits(query[part], table, bias).sub_(normaliser[part, None]).exp_()  # [p, N + 1] probabilities
            slope.mul_(-grad[part, None])
            slope.scatter_add_(1, classes[part, None], grad[part, None])
            to_bias += slope.sum(0)
            narrow = slope.bfloat16()
            to_query[part] = (narrow @ table).float()
            to_vectors += narrow.t() @ query[part].bfloat16()
        return to_query, to_vectors, to_bias, None


def _logits(query: Tensor, table: Tensor, bias: Tensor) -> Tensor:
    return (query.bfloat16() @ table.t()).float().add_(bias)


def _blocks(rows: int, columns: int) -> list[slice]:
    size = max(1, CELLS // columns)
    return [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def with_item_loss(model: NextMoveModel, heads: Heads, batch: Batch, labels: Labels) -> tuple[Tensor, int]:
    """The next behaviour, given the next item: what the last behaviour with that item adds."""
    behavior = labels.behavior_rows - model.config.behavior_first
    row, step = torch.nonzero((labels.item_ids >= 0) & (behavior >= 0), as_tuple=True)  # [P] each
    length = batch.item_ids.shape[1]
    steps = torch.arange(1, length + 1, device=row.device)
    seen = steps <= (step[:, None] + 1 if labels.item_ids.shape[1] > 1 else batch.lengths[row][:, None])  # [P, L]
    same = (batch.item_ids[row] == labels.item_ids[row, step][:, None]) & seen
    last = (same * steps).amax(-1)  # [P]
    state = torch.where(last > 0, batch.behavior_rows[row, (last - 1).clamp(min=0)], 0)
    logits = heads.behaviors[row, step].detach() + model.behavior_with_item(state)
    return F.cross_entropy(logits, behavior[row, step], reduction="sum"), len(row)


def pinball(predicted: Tensor, actual: Tensor) -> tuple[Tensor, int]:
    """Pinball loss, mean over the quantiles, where `actual` is not negative; predicted [B, T, Q], actual [B, T]."""
    known = actual >= 0
    error = actual[known][:, None] - predicted[known]  # [P, Q]
    levels = torch.tensor(QUANTILES, device=error.device)
    return torch.maximum(levels * error, (levels - 1) * error).mean(-1).sum(), int(known.sum())


def _cross_entropy(logits: Tensor, classes: Tensor) -> tuple[Tensor, int]:
    known = classes >= 0
    return F.cross_entropy(logits[known], classes[known], reduction="sum"), int(known.sum())


def _binary(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    known = labels >= 0
    return F.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum"), int(known.sum())
