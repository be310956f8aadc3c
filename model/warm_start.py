"""A training that goes on from an older model: its weights under the new names, what is new and some of what is old to learn.

Rows are moved by name, since another log has other names in another order; a name that the old model did not know begins
like any new one. What else of the network there is stays as it was learned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model import artifact
from model.artifact import Artifact
from model.features import Ints
from model.network import NextMoveModel
from model.vocabulary import Catalogue, Vocabulary
from model.window import WindowRule

RATE = 0.5  # of the recipe's learning rate: most is known
ROWS = {"item.weight": "items", "category.weight": "categories", "behavior.weight": "behaviors"}
CLASSES = {"item_bias": "items", "category_bias": "categories"}
SIZES = ("backbone", "width", "layers", "heads", "kv_heads", "pointer_width", "copy", "text_width", "price_buckets")
FRESH = (
    "item_categories",
    "item_buckets",
    "described.vectors",
    "described.texts",
    "described.own",
    "described.offset",
    "described.unmet",
)


class WarmStartError(Exception):
    """A model that this training cannot go on from; the message is one line."""


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Where a training begins, and what of the older events is learned from again."""

    directory: Path  # of the older model
    replay: float = 0.25  # share of the stretches that hold nothing new (rehearsal: Robins, 1995)


def older_model(warm: WarmStart, window: WindowRule) -> Artifact:
    """The model to go on from; raises ArtifactError, or WarmStartError where it looks at other windows."""
    found = artifact.load(warm.directory)
    if found.manifest.window != window:
        raise WarmStartError(f"{warm.directory} has another window rule; give its stride")
    return found


def seen(times_ms: Ints, older: Artifact) -> int:
    """How many of the events, times [N], lie in the older model's range; raises WarmStartError where all of them do."""
    count = int((times_ms <= older.manifest.training.until_ms).sum())
    if count == len(times_ms):
        raise WarmStartError(
            f"model {older.manifest.version} has learned from all of these days already; give newer events"
        )
    return count


def transplant(model: NextMoveModel, vocabulary: Vocabulary, old: Artifact) -> None:
    """Overwrites a new network's weights with an old one's, as far as it has the names; raises WarmStartError."""
    for name in SIZES:
        if getattr(model.config, name) != getattr(old.model.config, name):
            raise WarmStartError(
                f"the older model has another {name}; give its preset and backbone, or train without it"
            )
    new, before = model.state_dict(), old.model.state_dict()
    if new.keys() != before.keys():
        raise WarmStartError("the older model has other parts than this log wants; train without it")
    for name, value in new.items():
        if name in FRESH:
            continue
        if name in MOVED:
            value = moved(name, value, before[name], vocabulary, old.vocabulary)
        elif value.shape == before[name].shape:
            value = before[name]
        else:
            raise WarmStartError("the older model has other weights than this training; train without it")
        new[name] = value
    model.load_state_dict(new)


STEPS = {"behavior_with_item.weight", "behavior_after"}  # a row per behaviour, a column per answer
MOVED = {*ROWS, *CLASSES, *STEPS, "behavior_head.weight", "behavior_head.bias"}


def moved(name: str, new: Tensor, old: Tensor, vocabulary: Vocabulary, before: Vocabulary) -> Tensor:
    """The new tensor with the old one's rows in the places of their names."""
    found = new.clone()
    to, of = pairs(vocabulary.behaviors, before.behaviors)
    first = vocabulary.behaviors.first
    heads = to[first:] - first, of[first:] - first
    if name in STEPS:
        found[to[:, None], heads[0]] = old[of[:, None], heads[1]]
    elif name.startswith("behavior_head"):
        found[heads[0]] = old[heads[1]]
    elif name in ROWS:
        to, of = pairs(getattr(vocabulary, ROWS[name]), getattr(before, ROWS[name]))
        found[to] = old[of]
    else:
        catalogue = getattr(vocabulary, CLASSES[name])
        to, of = pairs(catalogue, getattr(before, CLASSES[name]))
        known = to >= catalogue.first - 1  # the last shared row stands for class 0, "none of these"
        found[to[known] - catalogue.first + 1] = old[of[known] - catalogue.first + 1]
    return found


def pairs(new: Catalogue, old: Catalogue) -> tuple[Tensor, Tensor]:
    """Rows of the new catalogue and those of the old one that mean the same: shared ones, then names that both know."""
    if new.buckets != old.buckets:
        raise WarmStartError("the older model shares its rows for unknown names otherwise; train without it")
    both = [*zip(range(new.first), range(old.first), strict=True), *_known(new, old)]
    rows = torch.tensor(both, dtype=torch.int64)
    return rows[:, 0], rows[:, 1]


def _known(new: Catalogue, old: Catalogue) -> Iterator[tuple[int, int]]:
    index = old.index
    return ((new.first + place, index[name]) for place, name in enumerate(new.names) if name in index)
