"""What the network is punished for: exact likelihood of mixtures, cross-entropy, pinball.

P learning positions out of B × L, N catalogue size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import QUANTILES
from model.features import Batch
from model.network import Heads, Mixture, NextMoveModel
from model.pointer import FAR
from model.softmax import log_probability


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


# What a head counts for; see `LossWeights`.
WEIGHTS = {"item": 1.0, "category": 1.0, "behavior": 1.0, "with_item": 0.5, "time": 0.5, "goal": 0.5, "churn": 0.5}


def losses(
    model: NextMoveModel, heads: Heads, batch: Batch, labels: Labels, log_share: Tensor | None = None
) -> dict[str, tuple[Tensor, int]]:
    """Name → (sum of the loss, number of positions); heads at all positions (T = L) or at the last ones (T = 1).

    With the items' `log_share` [N + 1] their softmax is sampled.
    """
    config = model.config
    products = torch.bfloat16 if model.narrow else torch.float32
    return {
        "item": mixture_loss(
            heads.items,
            batch.item_ids,
            labels.item_ids,
            labels.item_rows,
            config.item_first,
            *model.item_table(),
            log_share,
            products,
        ),
        "category": mixture_loss(
            heads.categories,
            batch.category_ids,
            labels.category_ids,
            labels.category_rows,
            config.category_first,
            *model.category_table(),
            products=products,
        ),
        "behavior": _cross_entropy(heads.behaviors, labels.behavior_rows - config.behavior_first),
        "with_item": with_item_loss(model, heads, batch, labels),
        "time": pinball(heads.log_seconds, labels.log_seconds),
        "goal": _binary(heads.goal, labels.goal),
        "churn": _binary(heads.churn, labels.churn),
    }


class LossWeights(nn.Module):
    """How much each head counts, learned beside the network (homoscedastic uncertainty: Kendall et al., CVPR 2018).

    The loss of head k is w · (e^-s · L + s) with a learned s, so that in the end each counts as w · log L: what is large
    because it is hard counts less. The learned factor stays within `BOUND`, since a loss may come near 0. A head whose
    labels never vary counts next to nothing: its loss goes to 0 and its factor would grow, while the gradient of a pinball
    loss does not shrink, and would drown all others.
    """

    BOUND = 1.0  # of |s|
    CONSTANT = 0.01  # weight of a head with one answer only: Adam teaches the head itself all the same

    def __init__(self, constant: Collection[str] = ()) -> None:
        super().__init__()
        self.constant = frozenset(constant)
        self.log_variance = nn.Parameter(torch.zeros(len(WEIGHTS)))

    def forward(
        self, parts: dict[str, tuple[Tensor, int]], counts: Sequence[int] | None = None, share: float = 1.0
    ) -> Tensor:
        """The sum over the heads that had something to learn; parts as `losses` gives them.

        Where several processes learn together, `counts` are the positions of all and `share` is one process's part of
        what is there once, so that the sum over the processes is what one would give.
        """
        counts = counts or [count for _, count in parts.values()]
        scales = self.BOUND * torch.tanh(self.log_variance / self.BOUND)
        terms = [
            self.CONSTANT * total / count
            if name in self.constant
            else WEIGHTS[name] * (total / count / scale.exp() + share * scale)
            for scale, (name, (total, _)), count in zip(scales, parts.items(), counts, strict=True)
            if count
        ]
        return torch.stack(terms).sum() if terms else scales.sum() * 0


def mixture_loss(
    mixture: Mixture,
    ids: Tensor,
    target_ids: Tensor,
    target_rows: Tensor,
    first: int,
    vectors: Tensor,
    bias: Tensor,
    log_share: Tensor | None = None,
    products: torch.dtype = torch.float32,
) -> tuple[Tensor, int]:
    """-log p of what came next under `g · softmax + (1 - g) · pointer`.

    Something unknown to the vocabulary is class 0 of the softmax, unless the window holds it: then only the pointer can
    have meant it.
    """
    row, step = torch.nonzero(target_ids >= 0, as_tuple=True)  # [P] each
    wanted = target_ids[row, step]  # [P]
    classes = (target_rows[row, step] - first + 1).clamp(min=0)  # [P]
    named = log_probability(mixture.query[row, step], vectors, bias, classes, log_share, products)  # [P]
    if mixture.copied is None:
        return -named.sum(), len(row)
    hit = ids[row] == wanted[:, None]  # [P, L]
    copied = torch.logsumexp(mixture.copied.pointer[row, step].masked_fill(~hit, FAR), dim=-1)  # [P]
    named = named.masked_fill((classes == 0) & (copied > FAR / 2), FAR)
    share, copy_share = mixture.copied.log_catalogue[row, step], mixture.copied.log_copy[row, step]
    return -torch.logaddexp(share + named, copy_share + copied).sum(), len(row)


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
