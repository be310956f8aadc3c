"""The best of each row, in a defined order even where values are equal. Knows nothing of items."""

from __future__ import annotations

import torch
from torch import Tensor


def first_k(values: Tensor, k: int, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, best first, ties by lower column, or by lower label; at the list's end too.

    Float32 [B, N] and distinct labels [B, N] from 0, N and labels < 2³¹ → two of [B, min(k, N)]. One choice of whole numbers:
    upper half the value, as bits that compare as it does, lower half the column or label.
    """
    columns = values.shape[1]
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    late = torch.arange(columns, device=values.device) if labels is None else labels
    keys = (ordered.long() << 32) | (0x7FFFFFFF - late)
    where = keys.topk(min(k, columns), dim=1).indices
    return values.gather(1, where), where
