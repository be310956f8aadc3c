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

NOBODY = 1 << 62  # identity of no name


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


class Barred(NamedTuple):
    """Banned classes, for a program that takes any number H' ≥ 2 of them."""

    vectors: Tensor  # [H', D]
    bias: Tensor  # [H']; -inf where there is no class
    places: Tensor  # int64 [N + 1] where among these each class is; of all others one where there is none, or H'


def barred(found: Banned | None, vectors: Tensor, bias: Tensor, rows: int) -> Barred:
    """Banned classes of a catalogue of so many rows, with their vectors [H, D] and bias [H]; nothing is copied that is long enough."""
    if missing := max(0, 2 - len(bias)):
        vectors, bias = F.pad(vectors, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)
    places = torch.full((rows,), len(bias), device=bias.device) if found is None else found.places
    return Barred(vectors, bias, places)


def padded(strangers: Tensor) -> Tensor:
    """At least two identities, int64 [S] → [S'], rising; those that are added are nobody's."""
    return F.pad(strangers, (0, max(0, 2 - len(strangers))), value=NOBODY)


def are_among(strangers: Tensor, ids: Tensor) -> Tensor:
    """Which of these identities are among those, int64 [S], rising, of which there is at least one; bool of the same shape as ids."""
    places = torch.searchsorted(strangers, ids).clamp(max=len(strangers) - 1)
    return strangers[places] == ids


def banned(names: Collection[str], catalogue: Catalogue, device: torch.device) -> Banned:
    """Those of the names that the catalogue knows."""
    rows = (catalogue.index.get(name) for name in names)
    classes = torch.tensor(sorted(row - catalogue.first + 1 for row in rows if row is not None), dtype=torch.int64)
    places = torch.full((len(catalogue.names) + 1,), len(classes))
    places[classes] = torch.arange(len(classes))
    others = (places[1:] == len(classes)).nonzero()[:, 0] + 1
    return Banned(classes.to(device), places.to(device), others.to(device))
