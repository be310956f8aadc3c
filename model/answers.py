"""What a network says, as forecasts: heads to answers as numbers, and those to lists of names.

B windows, L events of a window, N catalogue, k names listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.ahead_of_time import Lasting, works_on
from model.calibration import Calibration
from model.conclusion import Conclude, Fixed, Seen, compiled_conclude, conclude, fixed
from model.features import Batch
from model.forecast import Category, Forecast, Item
from model.hiding import Barred, Hidden, are_among, banned, barred, padded
from model.mixing import distribution, listing, ranking, scored, table
from model.network import Heads, NextMoveModel
from model.precision import Precision
from model.scorer import Scorer
from model.short_pass import Asked
from model.told import Told
from model.vocabulary import Catalogue, Vocabulary

Names = Callable[[int, int], str]  # (window, identity) → a name that the vocabulary does not know
ListOfNames = tuple[int, int, npt.NDArray[np.object_]]  # identity of the first, one beyond that of the last, and all


class NotFinite(Exception):
    """At least one window of a batch has no answer but NaN or infinity."""


class Answers:
    """Makes forecasts of a network's heads, with the vocabulary's names.

    Items are scored in `precision`, or with `few_in_int8` those of few windows in int8 (`model.few`), and those that are listed once more in
    float32; with `compiled_scoring` by compiled code. With `compiled` all that follows is, on a CPU.
    """

    def __init__(
        self,
        model: NextMoveModel,
        vocabulary: Vocabulary,
        calibration: Calibration,
        *,
        precision: Precision = "float32",
        compiled: bool = False,
        compiled_scoring: bool = False,
        few_in_int8: bool = False,
    ) -> None:
        self._model = model
        self._behaviors = np.array(vocabulary.behaviors.names, object)
        self._vocabulary = vocabulary
        self._calibration = calibration
        scorer = Scorer(*model.item_table(), precision=precision, compiled=compiled_scoring, few_in_int8=few_in_int8)
        self._items = ranking(scorer, vocabulary.items, vocabulary.item_counts)
        scorer = Scorer(*model.category_table(), compiled=compiled_scoring)
        self._categories = ranking(scorer, vocabulary.categories, vocabulary.category_counts)
        self._item_names, self._category_names = names_of(vocabulary.items), names_of(vocabulary.categories)
        self._conclude: Conclude = compiled_conclude() if compiled and works_on(model.device.type) else conclude
        self._may_be_asked = compiled and compiled_scoring and works_on(model.device.type)
        self._fixed: dict[int, Fixed] = {}  # by the number of names listed
        self._barred: Barred | None = None  # what is banned, as short passes want it, when one first asks
        self.hidden = Hidden()
        self._strangers: frozenset[str] = frozenset()  # banned names that the vocabulary does not know

    def hide(self, hidden: Hidden) -> None:
        """From now on these items are not listed, instead of those before."""
        names, scorer = self._vocabulary.items, self._items.scorer
        found = banned(hidden.banned, names, scorer.device)
        scorer.ban(found.classes)
        self._items = self._items._replace(banned=found if len(found.classes) else None)
        self._fixed.clear()
        self._barred = None
        self._strangers = frozenset(name for name in hidden.banned if name not in names.index)
        self.hidden = hidden

    def item_probabilities(self, heads: Heads, seen: Seen) -> Tensor:
        """Of every known item as the next one, in the vocabulary's order, [B, N]."""
        names = self._vocabulary
        against = table(self._model.item_table(), names.items, names.item_counts)
        return distribution(heads.items, seen.item_ids, against, None)[:, 1:]

    @property
    def strangers(self) -> frozenset[str]:
        """Names that are not to be listed and that the vocabulary does not know."""
        return self._strangers

    def tell(self, heads: Heads, seen: Seen, k: int, strangers: Tensor | None = None) -> Told:
        """Heads at the newest events (T = 1) as answers, on the same device; nothing here waits for it.

        `strangers` int64 [S], rising: identities beyond the vocabulary that are not to be listed.
        """
        hidden = self._hidden_in(seen.item_ids, strangers)
        items = scored(heads.items, seen.item_ids, self._items, k, hidden)
        categories = None
        if self._vocabulary.has_categories:
            categories = scored(heads.categories, seen.category_ids, self._categories, k, None)
        return self._conclude(heads, seen, hidden, items, categories, self._fixed_of(k), k)

    def asked(self, rows: int, k: int, strangers: Tensor) -> Lasting[Asked] | None:
        """What `tell` says about so many windows, for a program that it is a part of; None where that is no use. Strangers as there."""
        if not self._may_be_asked:
            return None
        items, categories = self._items.scorer.in_one_piece(rows, k), None
        if self._vocabulary.has_categories:
            categories = self._categories.scorer.in_one_piece(rows, k)
        if items is None or (categories is None and self._vocabulary.has_categories):
            return None
        given, hide, unwanted = self._fixed_of(k), self.hidden.seen, None
        if not self._model.config.copy:  # then scoring alone has to know what is hidden, and `conclude` is not to ask
            given, hide = given._replace(items=given.items._replace(barred=None)), False
        elif not hide:
            unwanted = padded(strangers.to(self._model.device))
        if self._barred is None:
            names = self._items
            self._barred = barred(names.banned, *names.scorer.banned, len(names.popularity))
        return Lasting(Asked(items, categories, given, self._barred, unwanted, hide, k))

    def forecasts(self, told: Told, items: Names, categories: Names) -> list[Forecast]:
        """One per window, in order, of answers on the host. Raises NotFinite."""
        if not told.sound.all():
            raise NotFinite("the model answered with numbers that are not finite")
        columns = (
            _named(told.ids, told.listed, self._item_names, items),
            told.probabilities.flatten().tolist(),
            self._behaviors[told.behaviors.numpy()].flat,
        )
        listed: list[Item] = [  # twice as fast as by the type's name
            {"item_id": name, "probability": p, "behavior": with_it} for name, p, with_it in zip(*columns, strict=True)
        ]
        pairs = zip(
            _named(told.category_ids, told.categories_listed, self._category_names, categories),
            told.category_probabilities.flatten().tolist(),
            strict=True,
        )
        found: list[Category] = [{"category": name, "probability": p} for name, p in pairs]
        return list(
            map(
                Forecast,
                told.mixes.tolist(),
                _cut(listed, told.listed, told.ids.shape[1]),
                _cut(found, told.categories_listed, told.category_ids.shape[1]),
                told.goals.tolist(),
                map(tuple, told.seconds.tolist()),
                told.churns.tolist(),
                ["no_known_items" if cold else None for cold in told.unknown.tolist()],
            )
        )

    def _hidden_in(self, ids: Tensor, strangers: Tensor | None) -> Tensor | None:
        """Which events of the windows are about something that is not to be listed, bool [B, L]; banned classes aside."""
        if self.hidden.seen:
            return torch.ones_like(ids, dtype=torch.bool)
        if strangers is None or not len(strangers):
            return None
        return are_among(strangers, ids)

    def _fixed_of(self, k: int) -> Fixed:
        """What lists of k depend on besides the windows."""
        if k not in self._fixed:
            lists = listing(self._items, k), listing(self._categories, k)
            self._fixed[k] = fixed(*lists, self._model.behavior_with_item.weight, self._calibration)
        return self._fixed[k]


def seen_in(batch: Batch) -> Seen:
    """What the windows of a batch hold."""
    return Seen(batch.item_ids, batch.category_ids, batch.behavior_rows)


def noted(strange: Sequence[Mapping[int, str]]) -> Names:
    """The names that were noted with each window."""
    return lambda window, identity: strange[window][identity]


def strangers(listed: Sequence[str], rows: int) -> Names:
    """The names of `Columns.unknown_items` or `unknown_categories`."""
    return lambda _, identity: listed[identity - rows]


def names_of(catalogue: Catalogue) -> ListOfNames:
    """Its names, and a last one that is nobody's."""
    return catalogue.first, catalogue.rows, np.array([*catalogue.names, ""], object)


def _named(ids: Tensor, listed: Tensor, among: ListOfNames, strange: Names) -> list[str]:
    """The names of identities [B, k], window after window; those without probability are never looked at."""
    first, rows, known = among
    numbers = ids.numpy()
    beyond = numbers >= rows
    names = known[np.where(beyond | (numbers < first), -1, numbers - first)]
    if beyond.any():
        there = np.arange(numbers.shape[1]) < listed.numpy()[:, None]  # those with a probability come first
        for window, place in np.argwhere(beyond & there).tolist():
            names[window, place] = strange(window, int(numbers[window, place]))
    found: list[str] = names.ravel().tolist()
    return found


def _cut(listed: list[Any], counts: Tensor, length: int) -> list[list[Any]]:
    """What is listed for each window, the first of `length` each."""
    return [listed[window * length : window * length + count] for window, count in enumerate(counts.tolist())]
