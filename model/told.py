"""What an engine says about windows, as numbers, and their way from the device to the host.

B windows, k names listed, C columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ALIKE = 0.95  # share of the names of lists that agree


class Told(NamedTuple):
    """Answers to B windows: float64 and int64, `unknown` and `sound` bool; without categories those columns are empty."""

    probabilities: Tensor  # [B, k] of the items, best first
    ids: Tensor  # [B, k] identities as in `Columns`
    behaviors: Tensor  # [B, k] the likeliest with each item, counted among the behaviours
    listed: Tensor  # [B] how many of the k have a probability
    category_probabilities: Tensor  # [B, k]
    category_ids: Tensor  # [B, k]
    categories_listed: Tensor  # [B]
    unknown: Tensor  # [B] nothing in the window is an item that the vocabulary knows
    mixes: Tensor  # [B, behaviours] probabilities
    goals: Tensor  # [B] probability
    churns: Tensor  # [B] probability
    seconds: Tensor  # [B, quantiles]
    sound: Tensor  # [B] everything was finite


def packed(told: Told) -> Tensor:
    """All columns bit by bit in one tensor, int64 [B, C], which is on the host in one copy."""
    return torch.cat([_bits(each if each.dim() == 2 else each[:, None]) for each in told], dim=1)


def unpacked(numbers: Tensor, like: Told) -> Told:
    """The columns again, of any number of windows; their widths and types are those of `like`."""
    widths = [each.shape[1] if each.dim() == 2 else 1 for each in like]
    parts = zip(torch.split(numbers, widths, dim=1), like, strict=True)
    return Told(*(_read(part, one) for part, one in parts))


def fetched(told: Told) -> Told:
    """On the host, in one copy."""
    return told if told.ids.device.type == "cpu" else unpacked(packed(told).cpu(), told)


def difference(one: Told, other: Told) -> float:
    """The largest difference of two probabilities or log waits; infinite where lists or anything else disagree. On the host.

    Lists agree where nearly all of their names do: neighbours may change places within rounding.
    """
    for name in ("listed", "categories_listed", "unknown", "sound"):
        if not torch.equal(getattr(one, name), getattr(other, name)):
            return math.inf
    lists = ((one.ids, other.ids), (one.category_ids, other.category_ids))
    shares = [(a[:, :, None] == b[:, None]).any(-1) for a, b in lists]
    shares.append(one.behaviors == other.behaviors)
    if any(each.numel() and each.double().mean() < ALIKE for each in shares):
        return math.inf
    names = ("probabilities", "category_probabilities", "mixes", "goals", "churns", "seconds")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    pairs[-1] = one.seconds.log1p(), other.seconds.log1p()
    off = [float((a - b).abs().nan_to_num(nan=math.inf).max()) for a, b in pairs if a.numel()]
    return max(off, default=0.0)


def _bits(column: Tensor) -> Tensor:
    return column.view(torch.int64) if column.dtype == torch.float64 else column.long()


def _read(part: Tensor, like: Tensor) -> Tensor:
    part = part if like.dim() == 2 else part[:, 0]
    if like.dtype == torch.bool:
        return part != 0
    return part.view(torch.float64) if like.dtype == torch.float64 else part
