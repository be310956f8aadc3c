"""Strings ↔ rows: the item, category and behaviour names that a model knows.

Rows of every catalogue: 0 padding, 1 "the event has none", then a few shared rows for unknown names (chosen by a
hash that is the same in every process), then the known names, most frequent first. It knows nothing of tensors.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PAD = 0
NONE = 1
FIRST_BUCKET = 2


class VocabularyError(ValueError):
    """A vocabulary that cannot be built or read; the message is one line."""


@dataclass(frozen=True)
class Catalogue:
    """One closed list of names; position in `names` + `first` is the row."""

    names: tuple[str, ...]
    buckets: int = 1

    def __post_init__(self) -> None:
        if self.buckets < 1:
            raise VocabularyError(f"a catalogue needs at least 1 row for unknown names, got {self.buckets}")
        if len(set(self.names)) != len(self.names):
            raise VocabularyError("a catalogue lists a name twice")

    @property
    def first(self) -> int:
        """Row of the first known name."""
        return FIRST_BUCKET + self.buckets

    @property
    def rows(self) -> int:
        """Number of rows, special ones included."""
        return self.first + len(self.names)

    @cached_property
    def index(self) -> dict[str, int]:
        """Known name → row."""
        return {name: self.first + position for position, name in enumerate(self.names)}

    def row(self, name: str | None) -> int:
        """The row of a name; unknown names share a few rows, equal names always the same one."""
        if name is None:
            return NONE
        found = self.index.get(name)
        return self.unknown_row(name) if found is None else found

    def unknown_row(self, name: str) -> int:
        """The shared row of a name that is not in the catalogue."""
        return FIRST_BUCKET + zlib.crc32(name.encode("utf-8", "surrogatepass")) % self.buckets


@dataclass(frozen=True)
class Vocabulary:
    """All names of one model, how often each item was seen, and each item's usual category."""

    items: Catalogue
    categories: Catalogue
    behaviors: Catalogue
    goal: str
    item_counts: tuple[int, ...] = ()
    category_counts: tuple[int, ...] = ()
    item_categories: tuple[int, ...] = field(default=(), repr=False)  # category row per known item

    def __post_init__(self) -> None:
        if self.goal not in self.behaviors.names:
            raise VocabularyError(f"the goal {self.goal!r} is not one of the behaviours {list(self.behaviors.names)}")
        for name, column, names in (
            ("item_counts", self.item_counts, self.items.names),
            ("item_categories", self.item_categories, self.items.names),
            ("category_counts", self.category_counts, self.categories.names),
        ):
            if len(column) != len(names):
                raise VocabularyError(f"{name} has {len(column)} entries for {len(names)} names")

    @property
    def has_categories(self) -> bool:
        """Whether the training log had any category."""
        return len(self.categories.names) > 0

    def popular_items(self, limit: int = 1000) -> list[str]:
        """The most frequent items of the training log, best first."""
        return list(self.items.names[:limit])

    @cached_property
    def content_hash(self) -> str:
        """sha256 of the JSON form; equal vocabularies have equal hashes."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """One JSON document; `from_json` reads it back."""
        document = {
            "goal": self.goal,
            "behaviors": list(self.behaviors.names),
            "items": {"buckets": self.items.buckets, "names": list(self.items.names)},
            "categories": {"buckets": self.categories.buckets, "names": list(self.categories.names)},
            "item_counts": list(self.item_counts),
            "category_counts": list(self.category_counts),
            "item_categories": list(self.item_categories),
        }
        return json.dumps(document, ensure_ascii=True, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Vocabulary:
        """Reads `to_json`'s form; raises VocabularyError with one line when it is not that."""
        try:
            document: dict[str, Any] = json.loads(text)
            return cls(
                items=Catalogue(tuple(document["items"]["names"]), document["items"]["buckets"]),
                categories=Catalogue(tuple(document["categories"]["names"]), document["categories"]["buckets"]),
                behaviors=Catalogue(tuple(document["behaviors"])),
                goal=document["goal"],
                item_counts=tuple(document["item_counts"]),
                category_counts=tuple(document["category_counts"]),
                item_categories=tuple(document["item_categories"]),
            )
        except VocabularyError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise VocabularyError(f"not a vocabulary: {type(error).__name__}: {error}") from error


def build(
    item_counts: Mapping[str, int],
    category_counts: Mapping[str, int],
    item_category: Mapping[str, str],
    behaviors: Sequence[str],
    goal: str,
    *,
    described: Collection[str] = (),
    max_items: int = 1_000_000,
    min_item_count: int = 1,
    item_buckets: int = 64,
    category_buckets: int = 16,
) -> Vocabulary:
    """A vocabulary from counts; items and categories by falling count, then by name, so that the order is defined.

    Items that are `described` are known however rarely they were counted, if at all.
    """
    counted = {name: count for name, count in item_counts.items() if count >= min_item_count}
    item_counts = counted | {name: item_counts.get(name, 0) for name in described}
    items = _ranked(item_counts, 0)[:max_items]
    categories = _ranked(category_counts, 1)
    category_catalogue = Catalogue(tuple(categories), category_buckets)
    return Vocabulary(
        items=Catalogue(tuple(items), item_buckets),
        categories=category_catalogue,
        behaviors=Catalogue(tuple(behaviors)),
        goal=goal,
        item_counts=tuple(item_counts[name] for name in items),
        category_counts=tuple(category_counts[name] for name in categories),
        item_categories=tuple(category_catalogue.row(item_category.get(name)) for name in items),
    )


def _ranked(counts: Mapping[str, int], at_least: int) -> list[str]:
    names: Iterable[str] = (name for name, count in counts.items() if count >= at_least)
    return sorted(names, key=lambda name: (-counts[name], name))
