"""Windows → tensors: the one code that training, evaluation and serving share.

`encode` turns windows into flat integer columns, `pad` cuts stretches of those columns into a rectangular batch. Serving
cuts whole windows, training cuts chunks of a user's life; every derived feature is computed after the cut, so that both
see the same thing. It knows nothing of the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import chain, repeat

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.vocabulary import NONE, PAD, Catalogue, Vocabulary
from model.window import Window

NO_IDENTITY = -1  # identity of "no item here"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Events of many windows end to end; N events, W windows.

    An identity is equal for two events exactly when their names are equal, known to the vocabulary or not: for known
    names it is the row, for unknown ones a number ≥ the number of rows; `unknown_items` lists those names in order.
    """

    item_rows: Ints  # [N]
    item_ids: Ints  # [N] identity, NO_IDENTITY where the event has no item
    category_rows: Ints  # [N]
    category_ids: Ints  # [N] identity
    behavior_rows: Ints  # [N]
    times_ms: Ints  # [N]
    starts: Ints  # [W]
    lengths: Ints  # [W]
    unknown_items: list[str]
    unknown_categories: list[str]


@dataclass(frozen=True, slots=True)
class Batch:
    """A rectangular batch, padded on the right; B stretches of at most L events."""

    item_rows: Tensor  # int64 [B, L]
    item_ids: Tensor  # int64 [B, L]
    category_rows: Tensor  # int64 [B, L]
    category_ids: Tensor  # int64 [B, L]
    behavior_rows: Tensor  # int64 [B, L]
    times_ms: Tensor  # int64 [B, L]; padding repeats the last time
    lengths: Tensor  # int64 [B]

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def encode(windows: Sequence[Window], vocabulary: Vocabulary) -> Columns:
    """Windows as flat columns; unknown names keep an identity of their own, so that a copy path can point at them."""
    lengths = np.fromiter((len(window.times_ms) for window in windows), np.int64, len(windows))
    total = int(lengths.sum())
    item_rows, item_ids, unknown_items = _named(
        chain.from_iterable(window.items for window in windows), total, vocabulary.items
    )
    category_rows, category_ids, unknown_categories = _named(
        chain.from_iterable(window.categories for window in windows), total, vocabulary.categories
    )
    known = vocabulary.behaviors.index
    behaviors = chain.from_iterable(window.behaviors for window in windows)
    unknown_behavior = vocabulary.behaviors.first - 1
    return Columns(
        item_rows=item_rows,
        item_ids=item_ids,
        category_rows=category_rows,
        category_ids=category_ids,
        behavior_rows=np.fromiter(map(known.get, behaviors, repeat(unknown_behavior)), np.int64, total),
        times_ms=np.fromiter(chain.from_iterable(window.times_ms for window in windows), np.int64, total),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
        unknown_items=unknown_items,
        unknown_categories=unknown_categories,
    )


def _named(names: Iterable[str | None], total: int, catalogue: Catalogue) -> tuple[Ints, Ints, list[str]]:
    """Rows and identities of `total` names, and the unknown names in the order of their identities."""
    listed = list(names)
    rows = np.fromiter(map(catalogue.index.get, listed, repeat(PAD)), np.int64, total)  # type: ignore[arg-type]  # None
    ids = rows.copy()
    unknown: dict[str, tuple[int, int]] = {}
    for position in np.flatnonzero(rows == PAD).tolist():
        name = listed[position]
        if name is None:
            rows[position], ids[position] = NONE, NO_IDENTITY
            continue
        if name not in unknown:
            unknown[name] = catalogue.unknown_row(name), catalogue.rows + len(unknown)
        rows[position], ids[position] = unknown[name]
    return rows, ids, list(unknown)


def pad(columns: Columns, starts: Ints, lengths: Ints, width: int) -> Batch:
    """Cuts the stretches [start, start + length) out of the columns into a batch of the given width."""
    steps = np.arange(width, dtype=np.int64)[None, :]  # [1, L]
    inside = steps < lengths[:, None]  # [B, L]
    index = starts[:, None] + np.minimum(steps, lengths[:, None] - 1)  # [B, L], padding repeats the last event

    def cut(column: Ints, filler: int) -> Tensor:
        return torch.from_numpy(np.where(inside, column[index], filler))

    return Batch(
        item_rows=cut(columns.item_rows, PAD),
        item_ids=cut(columns.item_ids, NO_IDENTITY),
        category_rows=cut(columns.category_rows, PAD),
        category_ids=cut(columns.category_ids, NO_IDENTITY),
        behavior_rows=cut(columns.behavior_rows, PAD),
        times_ms=torch.from_numpy(columns.times_ms[index]),
        lengths=torch.from_numpy(lengths.astype(np.int64)),
    )
