"""Exact top-k over a long row of scores, by way of block maxima.

The k best entries lie in at most k blocks, and those are the k blocks with the largest maxima: find the blocks first,
then look only inside them. Knows nothing of items.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


def top_k(scores: Tensor, k: int, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, best first, ties by lower column; [B, N] → two of [B, min(k, N)].

    Which of several equal scores make the list at its end is not defined.
    """
    rows, columns = scores.shape
    k = min(k, columns)
    blocks = columns // block
    if blocks <= 2 * k:
        return _ordered(*scores.topk(k, dim=1))
    body = scores[:, : blocks * block].reshape(rows, blocks, block)  # [B, blocks, block]
    best = body.amax(-1).topk(k, dim=1).indices  # [B, k]
    inside = body.gather(1, best[:, :, None].expand(rows, k, block)).flatten(1)  # [B, k · block]
    offsets = torch.arange(block, device=scores.device)
    where = (best[:, :, None] * block + offsets).flatten(1)  # [B, k · block]
    tail = torch.arange(blocks * block, columns, device=scores.device).expand(rows, -1)
    values, chosen = torch.cat((inside, scores[:, blocks * block :]), dim=1).topk(k, dim=1)
    return _ordered(values, torch.cat((where, tail), dim=1).gather(1, chosen))


def _ordered(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    columns, by_column = columns.sort(dim=1)
    values, by_value = values.gather(1, by_column).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, by_value)


def first_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `top_k`, and of several equal values at the list's end the lower columns make it; float32 [B, N], N < 2³¹.

    One sort of whole numbers: upper half the value, as bits that compare as it does, lower half the column.
    """
    columns = values.shape[1]
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    from_the_end = torch.arange(columns - 1, -1, -1, device=values.device)
    keys = (ordered.long() << 32) | from_the_end
    where = columns - 1 - (keys.topk(min(k, columns), dim=1).values & 0xFFFFFFFF)
    return values.gather(1, where), where
