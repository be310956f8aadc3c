"""A pass of few events as one program: the step, what it leaves in the pool, both stages of scoring, and what is told.

Apart, these are some seven libraries and dozens of small operations between them, each of which takes as long for one event as for a
hundred: of 3.7 ms for one event and 50,000 items 1.2. Here they are one library, which says what they say up to rounding, and leaves 2.5 ms.

B events, S slots, W events of a window, D width, R rows of a catalogue, k names listed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.ahead_of_time import AheadOfTime
from model.building import Size
from model.conclusion import Fixed, Seen, conclude, fixed_sizes
from model.hiding import Barred, are_among
from model.incremental import Step
from model.mixing import scored_by
from model.pool import Event, Pool, keep
from model.scoring_library import FUSED, of_catalogue
from model.stages import Catalogued, banned_mass
from model.step_library import described, pool_sizes
from model.told import Told

OPTIONS = FUSED | {
    "joint_graph_constant_folding": False,  # a weight that is one number would become part of the code
    "reorder_for_locality": False,  # what the pool holds would be read after it has changed, and so be copied, all of it
}


class Asked(NamedTuple):
    """What is to be told of events, with all that it depends on besides them."""

    items: Catalogued
    categories: Catalogued | None
    given: Fixed
    barred: Barred
    strangers: Tensor | None  # int64 [S'] rising: identities that are not to be listed; None where it does not matter
    hide: bool  # what is in the windows is not listed
    k: int


class ShortPass(nn.Module):
    """A pass of distinct slots: the pool holds one event more of each, and this is said about them."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step

    def forward(self, pool: tuple[Pool], columns: Tensor, named: Tensor, asked: tuple[Asked]) -> Told:
        """Columns as an `Event` [fields, B], named [B, D] as from `model.incremental.named`."""
        items, categories, given, barred, strangers, hide, k = asked[0]
        event = Event(*columns.unbind(0))
        found = self.step(pool[0], event, named)
        keep(pool[0], event, found)
        heads, seen = found.heads, Seen(found.item_ids, found.category_ids, found.behavior_rows)
        hidden = torch.ones_like(seen.item_ids, dtype=torch.bool) if hide else None
        of_items, apart = scored_by(items, heads.items, seen.item_ids, given.items.bounds.unbind(), k, hidden)
        without = None if apart is None else barred.places[apart]
        missing = banned_mass(barred.vectors, barred.bias, heads.items.query[:, 0], without)
        if strangers is not None:
            hidden = are_among(strangers, seen.item_ids)
        of_categories = None
        if categories is not None:
            bounds = given.categories.bounds.unbind()
            of_categories, _ = scored_by(categories, heads.categories, seen.category_ids, bounds, k, None)
        return conclude(heads, seen, hidden, of_items._replace(missing=missing), of_categories, given, k)


def short_pass(step: Step) -> AheadOfTime[[tuple[Pool], Tensor, Tensor, tuple[Asked]], Told]:
    """Compiled for each number of events when it first has so many; where that fails it `is_plain`, and slower than what it is made of."""
    return AheadOfTime(ShortPass(step), _sizes, about=described(step), options=OPTIONS, or_plain=True)


def _sizes(pool: tuple[Pool], columns: Tensor, named: Tensor, asked: tuple[Asked]) -> tuple[Any, ...]:
    """Any number of slots, any catalogue, and any list of what is banned."""
    items, categories, given, _, strangers, _, k = asked[0]
    classes = {0: Size("barred")}
    return (
        (pool_sizes(pool[0]),),
        {},
        {},
        (
            (
                of_catalogue(items, k, "items_"),
                categories and of_catalogue(categories, k, "categories_"),
                fixed_sizes(given),
                (classes, classes, {0: Size("places")}),
                strangers is not None and {0: Size("strangers")},
            ),
        ),
    )
