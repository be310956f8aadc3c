"""Stretches of a life made different each time they are learned from (CL4SRec: Xie et al., ICDE 2022): crop, reorder.

The third of the three, masking, is the network's own: it shows known names as unknown ones. Nothing here lets a position
learn an event that its input holds already. B stretches, L positions.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from model.features import Batch, Ints

Bools = npt.NDArray[np.bool_]

KEPT = 0.5  # of a cropped stretch, at least
REORDERED = 0.2  # of a stretch, at most
SHUFFLED = ("item_rows", "item_ids", "category_rows", "category_ids", "behavior_rows")


def crop(starts: Ints, lengths: Ints, share: float, random: np.random.Generator) -> tuple[Ints, Ints]:
    """Takes off the oldest events of a share of the stretches; new starts and lengths, [B] each."""
    chosen = random.random(len(starts)) < share
    off = np.where(chosen, (random.random(len(starts)) * (1 - KEPT) * lengths).astype(np.int64), 0)
    return starts + off, lengths - off


def reorder(batch: Batch, learns: Bools, share: float, random: np.random.Generator) -> tuple[Batch, Bools]:
    """Shuffles what happened within a short part of a share of the stretches; times stay.

    Inside that part only its last position learns on: before it, what came next may already have been shown.
    """
    order = np.tile(np.arange(learns.shape[1]), (len(learns), 1))  # [B, L]
    learns = learns.copy()
    for row, length in enumerate(batch.lengths.tolist()):
        size = int(random.random() * REORDERED * length)
        if size < 2 or random.random() >= share:
            continue
        begin = int(random.integers(0, length - size + 1))
        order[row, begin : begin + size] = random.permutation(order[row, begin : begin + size])
        learns[row, begin : begin + size - 1] = False
    index = torch.from_numpy(order).to(batch.item_rows.device)
    return replace(batch, **{name: getattr(batch, name).gather(1, index) for name in SHUFFLED}), learns
