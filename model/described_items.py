"""Items that have a text: where they lie by it, before anybody has met them.

An item's vector is `project(text) + delta(item)`: the text's frozen vector, through a learned matrix, and a difference of
the item's own, each number of which is bounded, so that nothing drifts far from what is written about it. Items that were
met too rarely to have a difference have none; they share one bias, which learns from all of them how likely an item is of
which next to nothing is known. Items that nobody met do not take part in learning, since all that could be learned of
them is that they never came. N items, T texts, W numbers per text, D width; rows and classes as in `model.network`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import NextMoveConfig
from model.features import Ints
from model.vocabulary import FIRST_BUCKET

if TYPE_CHECKING:
    from model.material import Bools
    from model.text_encoder import Floats32

BOUND = 0.5  # of each number of an item's own difference


class DescribedItems(nn.Module):
    """What texts say about the items of a network."""

    def __init__(self, config: NextMoveConfig) -> None:
        super().__init__()
        self.first = config.item_first
        self.project = nn.Linear(config.text_width, config.width, bias=False)
        self.rare_bias = nn.Parameter(torch.zeros(()))
        self.vectors: Tensor
        self.texts: Tensor
        self.own: Tensor
        self.offset: Tensor
        self.unmet: Tensor
        self.projected: Tensor | None
        self.register_buffer("vectors", torch.zeros(config.texts + 1, config.text_width))  # the first one: no text
        self.register_buffer("texts", torch.zeros(config.item_rows, dtype=torch.int64))  # row → row of `vectors`
        self.register_buffer("own", torch.ones(config.item_rows, dtype=torch.bool))  # row → has a difference, a bias
        self.register_buffer("offset", torch.zeros(config.item_rows - config.item_first + 1))  # class → from rare_bias
        self.register_buffer("unmet", torch.zeros(config.item_rows - config.item_first + 1, dtype=torch.bool))  # class
        self.register_buffer("projected", None, persistent=False)

    @torch.no_grad()
    def fill(self, vectors: Floats32, texts: Ints, own: Bools, counts: Ints) -> None:
        """From vectors [T, W], the row among them of each item or -1, whether it has its own, how often it was met, [N]."""
        self.vectors[1:] = torch.from_numpy(vectors)
        self.texts[self.first :] = torch.from_numpy(texts + 1)
        self.own[self.first :] = torch.from_numpy(own)
        rare, new = ~own & (counts > 0), ~own & (counts == 0)
        total, once = max(1, counts.sum()), max(1, (counts == 1).sum())
        each_rare = counts[rare].mean() / total if rare.any() else once / total / max(1, new.sum())
        self.rare_bias.fill_(math.log(each_rare))
        self.unmet[1:] = torch.from_numpy(new)
        if new.any():
            each_new = once / total / new.sum()  # what was never met comes as often as what was met once (Good, 1953)
            average = 1 / max(1, (counts > 0).sum())  # no new item is likelier than one on average
            self.offset[1:][torch.from_numpy(new)] = math.log(min(each_new, average) / each_rare)

    def train(self, mode: bool = True) -> DescribedItems:
        """What texts come to is computed once for all answers, and anew in each step of learning."""
        super().train(mode)
        with torch.no_grad():
            self.projected = None if mode else self.project(self.vectors)
        return self

    def forward(self, rows: Tensor) -> Tensor:
        """What the texts of items say, [..., D]; 0 where there is no text."""
        texts = self.texts[rows]
        if self.projected is not None:
            return self.projected[texts]
        return self.project(self.vectors[texts])  # type: ignore[no-any-return]

    def shown(self, rows: Tensor) -> Tensor:
        """Rows of items that have no difference become those of unknown ones."""
        return torch.where(self.own[rows], rows, FIRST_BUCKET + rows % (self.first - FIRST_BUCKET))

    def table(self, own: Tensor) -> Tensor:
        """Vectors of all items [N, D] from their differences [N, D]."""
        projected = self.project(self.vectors) if self.projected is None else self.projected  # [T + 1, D]
        return bounded(own) * self.own[self.first :, None] + projected[self.texts[self.first :]]

    def bias(self, own: Tensor) -> Tensor:
        """Biases of all classes [N + 1] from their own; while learning, items that nobody met cannot come."""
        has = F.pad(self.own[self.first :], (1, 0), value=True)
        found = torch.where(has, own, self.rare_bias + self.offset)
        return found.masked_fill(self.unmet, -math.inf) if self.training else found


def bounded(x: Tensor) -> Tensor:
    """Each number within ± BOUND; small ones stay what they are."""
    return BOUND * torch.tanh(x / BOUND)


def rarely_met(counts: Ints, texts: Ints, least: int) -> Bools:
    """Items that have a text and would not be known without any one of their events, [N]."""
    return np.asarray((texts >= 0) & (counts - 1 < least))
