"""The best of each row, in a defined order even where values are equal. Knows nothing of items."""

from __future__ import annotations

import torch
from torch import Tensor


def first_k(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, best first, ties by lower column, at the list's end too.

    Float32 [B, N] with N < 2³¹ → two of [B, min(k, N)]. One sort of whole numbers: upper half the value, as bits that compare as it
    does, lower half the column.
    """
    columns = values.shape[1]
    bits = (values + 0.0).view(torch.int32)  # −0 becomes 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    from_the_end = torch.arange(columns - 1, -1, -1, device=values.device)
    keys = (ordered.long() << 32) | from_the_end
    where = columns - 1 - (keys.topk(min(k, columns), dim=1).values & 0xFFFFFFFF)
    return values.gather(1, where), where
