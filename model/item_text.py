"""What is written about items, as vectors: one per distinct text, and which item has which."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from model.text_encoder import Floats32, encode


@dataclass(frozen=True, slots=True)
class ItemText:
    """Texts of items, encoded.

    Of a `catalogue` every item can be predicted, whether anybody ever met it or not; otherwise only those that are
    learned from.
    """

    encoder: str  # the last two parts of its place
    vectors: Floats32 = field(repr=False)  # [T, W]
    items: Mapping[str, int] = field(repr=False)  # item → row of `vectors`
    catalogue: bool = False
    categories: Mapping[str, str] = field(default_factory=dict, repr=False)  # item → category, as far as it is told
    prices: Mapping[str, float] = field(default_factory=dict, repr=False)  # likewise

    def fingerprint(self) -> str:
        """sha256; equal texts under equal encoders have equal ones."""
        digest = hashlib.sha256(self.vectors.tobytes())
        for part in (self.items, self.categories, self.prices, {"": self.catalogue}):
            digest.update(repr(sorted(part.items())).encode())
        return digest.hexdigest()


def encoded(
    texts: Mapping[str, str],
    encoder: Path,
    *,
    catalogue: bool = False,
    categories: Mapping[str, str] | None = None,
    prices: Mapping[str, float] | None = None,
    report: Callable[[int, int], None] | None = None,
) -> ItemText:
    """Item → text as vectors, each distinct text once; report gets (texts done, texts in all). Raises TextError."""
    distinct = sorted(set(texts.values()))
    row = {text: number for number, text in enumerate(distinct)}
    vectors = encode(distinct, encoder, report and (lambda done: report(done, len(distinct))))
    items = {item: row[text] for item, text in texts.items()}
    return ItemText(
        "/".join(encoder.resolve().parts[-2:]), centred(vectors), items, catalogue, categories or {}, prices or {}
    )


def centred(vectors: Floats32) -> Floats32:
    """Without what all texts have in common, and with length 1 again, [T, W]: so that they differ by more than little.

    Sentence vectors lie in a narrow cone (Li et al., EMNLP 2020).
    """
    if len(vectors) < 2:
        return vectors
    moved = vectors - vectors.mean(0)
    return np.asarray(moved / np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), 1e-6), np.float32)
