"""Items that are not listed, whatever the model thinks of them.

What is listed keeps its probability, and its order: hiding takes items out of the list, never out of the model's belief.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.vocabulary import Catalogue


class Hidden(NamedTuple):
    """What whoever runs the model wants not to see."""

    banned: frozenset[str] = frozenset()  # items
    seen: bool = False  # nor items of the user's window


class Banned(NamedTuple):
    """H of a catalogue's N classes; class 0 means "none of these"."""

    classes: Tensor  # int64 [H]
    places: Tensor  # int64 [N + 1] where in `classes` each class is; H for all others
    others: Tensor  # int64 [N - H] the classes that are not banned, the most popular first

    def has(self, classes: Tensor) -> Tensor:
        """Which of these classes are banned, bool of the same shape."""
        return self.places[classes] < len(self.classes)

    def most_popular(self, k: int) -> Tensor:
        """The k first classes that are not banned, [k]; 0 where there are fewer."""
        return F.pad(self.others[:k], (0, k - len(self.others[:k])))


def banned(names: Collection[str], catalogue: Catalogue, device: torch.device) -> Banned:
    """Those of the names that the catalogue knows."""
    rows = (catalogue.index.get(name) for name in names)
    classes = torch.tensor(sorted(row - catalogue.first + 1 for row in rows if row is not None), dtype=torch.int64)
    places = torch.full((len(catalogue.names) + 1,), len(classes))
    places[classes] = torch.arange(len(classes))
    others = (places[1:] == len(classes)).nonzero()[:, 0] + 1
    return Banned(classes.to(device), places.to(device), others.to(device))
