"""Inference: windows in, forecasts out.

Each call recomputes each window in full, on one device, from one thread. The answer for a window does not depend on
what else is in the batch. It knows nothing of users, topics or time of day; windows carry all there is to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model import artifact
from model.artifact import Artifact, ArtifactError
from model.calibration import Calibration
from model.features import Batch, Columns, encode, pad
from model.forecast import Category, Forecast, Item, difference
from model.network import Copied, Heads, Mixture, NextMoveModel
from model.topk import top_k
from model.vocabulary import Catalogue, Vocabulary
from model.window import Window, WindowRule

__all__ = ["ArtifactError", "Engine", "Forecast"]

BATCH = 128  # windows per pass: more would only leave the cache
CELLS = 1 << 25  # scores per pass, 128 MB: fewer windows where the catalogue is long
GOLDEN_TOP_K = 10
GOLDEN_TOLERANCE = 1e-3  # between machines and devices; the same machine gives 1e-6


class NotFinite(Exception):
    """At least one window of a batch has no answer but NaN or infinity."""


class Chosen(NamedTuple):
    """Top-k of one mixture for B windows."""

    probability: Tensor  # [B, k]
    ids: Tensor  # [B, k] identities as in `Columns`


class Table(NamedTuple):
    """Output vectors of a catalogue, ready for scoring."""

    vectors: Tensor  # [D, N + 1]
    bias: Tensor  # [N + 1]
    popularity: Tensor  # [N + 1] sums to 1
    catalogue: Catalogue


class Engine:
    """A loaded model that answers windows; use it from one thread."""

    def __init__(self, parts: Artifact, *, device: str = "auto", top_k: int = 10, threads: int | None = None) -> None:
        if top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.manifest = parts.manifest
        self.version: str = parts.manifest.version
        self.window: WindowRule = parts.manifest.window
        self.behaviors: tuple[str, ...] = parts.vocabulary.behaviors.names
        self.goal: str = parts.vocabulary.goal
        self.device: str = choose_device(device)
        self.popular_items: list[str] = parts.manifest.popular_items
        self.top_k = top_k
        self.vocabulary: Vocabulary = parts.vocabulary
        self.calibration: Calibration = parts.manifest.calibration or Calibration()
        self._model: NextMoveModel = parts.model.to(self.device).eval()  # type: ignore[arg-type]  # a str is a device
        names = self.vocabulary
        self._items = table(self._model.item_table(), names.items, names.item_counts)
        self._categories = table(self._model.category_table(), names.categories, names.category_counts)
        self._batch = max(1, min(BATCH, CELLS // names.items.rows))
        self._widths = sorted({width for width in (4, 8, 16, 32, 64, 128, 256) if width < self.window.events})

    @classmethod
    def load(cls, directory: str | Path, device: str = "auto", top_k: int = 10, threads: int | None = None) -> Engine:
        """A checked model directory as an engine; raises ArtifactError with one line that says what is wrong."""
        engine = cls(artifact.load(Path(directory)), device=device, top_k=top_k, threads=threads)
        engine.check_golden()
        return engine

    @torch.inference_mode()
    def item_scores(self, windows: Sequence[Window]) -> Tensor:
        """The probability of every known item as the next one, in the vocabulary's order, [windows, items]."""
        columns = encode(windows, self.vocabulary)
        lengths = np.minimum(columns.lengths, self.window.events)
        starts = columns.starts + columns.lengths - lengths
        batch = pad(columns, starts, lengths, int(lengths.max())).to(torch.device(self.device))
        return distribution(self._model(batch, last=True).items, batch.item_ids, self._items, None)[:, 1:]

    def check_golden(self) -> None:
        """Raises ArtifactError when the model no longer gives the answers that it was published with."""
        golden = self.manifest.golden
        answers = self._answer([one.window for one in golden], GOLDEN_TOP_K)
        worst = max((difference(one.forecast, answer) for one, answer in zip(golden, answers, strict=True)), default=0)
        if not worst <= GOLDEN_TOLERANCE:
            raise ArtifactError(
                f"model {self.version} does not reproduce its golden answers on {self.device}: off by {worst:.2g}"
            )

    def warm(self) -> None:
        """Predict once in each width of batch, so that no batch is the first of its shape. Raises NotFinite."""
        name = self.behaviors[0]
        widths = (*self._widths, self.window.events)
        self.predict([Window([None] * width, [name] * width, [None] * width, [0] * width) for width in widths])

    def predict(self, windows: Sequence[Window], top_k: int | None = None) -> list[Forecast]:
        """One forecast per window, in order. Longer windows than the rule are cut; an empty one is a ValueError.

        Raises NotFinite.
        """
        return self._answer(windows, top_k or self.top_k)

    @torch.inference_mode()
    def _answer(self, windows: Sequence[Window], k: int) -> list[Forecast]:
        windows = list(windows)  # whoever asks may cut them only now
        columns = encode(windows, self.vocabulary)
        if len(windows) and columns.lengths.min() < 1:
            raise ValueError("a window needs at least one event")
        lengths = np.minimum(columns.lengths, self.window.events)
        starts = columns.starts + columns.lengths - lengths
        widths = np.array([*self._widths, self.window.events])
        bucket = np.searchsorted(widths, lengths)
        answers: dict[int, Forecast] = {}
        for number, width in enumerate(widths.tolist()):
            members = np.flatnonzero(bucket == number)
            for begin in range(0, len(members), self._batch):
                some = members[begin : begin + self._batch]
                batch = pad(columns, starts[some], lengths[some], width)
                answers.update(zip(some.tolist(), self._pass(batch, columns, k), strict=True))
        return [answers[position] for position in range(len(windows))]

    def _pass(self, batch: Batch, columns: Columns, k: int) -> list[Forecast]:
        """One rectangular batch."""
        batch = batch.to(torch.device(self.device))
        heads: Heads = self._model(batch, last=True)
        unknown = ~((batch.item_ids >= 0) & (batch.item_ids < self.vocabulary.items.rows)).any(1)  # [B]
        items = choose(heads.items, batch.item_ids, self._items, unknown, k)
        behaviors = self._behavior_with(heads, batch, items.ids)
        mixes = heads.behaviors[:, 0].double() / self.calibration.behavior_temperature  # [B, behaviours]
        goals = self.calibration.purchase.apply(heads.goal[:, 0].double())  # [B]
        churns = self.calibration.churn.apply(heads.churn[:, 0].double())
        numbers = [items.probability, mixes, goals, heads.log_seconds[:, 0], churns]
        listed_items = _named(items, self.vocabulary.items, columns.unknown_items)
        if self.vocabulary.has_categories:
            categories = choose(heads.categories, batch.category_ids, self._categories, None, k)
            numbers.append(categories.probability)
            listed_categories = _named(categories, self.vocabulary.categories, columns.unknown_categories)
        else:
            listed_categories = [[] for _ in listed_items]
        if not torch.stack([each.sum() for each in numbers]).isfinite().all():
            raise NotFinite("the model answered with numbers that are not finite")
        return [
            Forecast(
                next_behaviors=mix,
                next_items=[
                    Item(item_id=name, probability=probability, behavior=self.behaviors[behavior])
                    for (name, probability), behavior in zip(some_items, some_behaviors, strict=False)
                ],
                next_categories=[Category(category=name, probability=p) for name, p in some_categories],
                purchase_probability=goal,
                time_to_next_s=(seconds[0], seconds[1], seconds[2]),
                churn_probability=churn,
                fallback="no_known_items" if cold else None,
            )
            for mix, some_items, some_behaviors, some_categories, goal, seconds, churn, cold in zip(
                rounded(mixes.softmax(-1)).tolist(),
                listed_items,
                behaviors.tolist(),
                listed_categories,
                rounded(goals.sigmoid()).tolist(),
                heads.log_seconds[:, 0].double().clamp(max=30).expm1().clamp(min=0).round(decimals=6).tolist(),
                rounded(churns.sigmoid()).tolist(),
                unknown.tolist(),
                strict=True,
            )
        ]

    def _behavior_with(self, heads: Heads, batch: Batch, ids: Tensor) -> Tensor:
        """The most likely behaviour with each of the chosen items, [B, k] positions in `behaviors`."""
        same = batch.item_ids[:, None] == ids[:, :, None]  # [B, k, L]
        steps = torch.arange(1, same.shape[2] + 1, device=same.device)
        last = (same * steps).amax(-1)  # [B, k] 1 + last position with the item, 0 if none
        state = torch.where(last > 0, batch.behavior_rows.gather(1, (last - 1).clamp(min=0)), 0)
        logits: Tensor = heads.behaviors + self._model.behavior_with_item(state)  # [B, k, behaviours]
        return logits.argmax(-1)


def choose_device(device: str) -> str:
    """For "auto" the GPU where there is one; raises ArtifactError for one that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ArtifactError("device cuda was asked for, but this machine has no usable GPU")
    return device


def table(scoring: tuple[Tensor, Tensor], catalogue: Catalogue, counts: Sequence[int]) -> Table:
    """A catalogue's output vectors [N + 1, D] and biases [N + 1], laid out for scoring."""
    vectors, bias = scoring
    seen = torch.tensor([0, *counts], dtype=torch.float32, device=vectors.device)
    return Table(vectors.detach().t().contiguous(), bias.detach().clone(), seen / seen.sum().clamp(min=1), catalogue)


def choose(mixture: Mixture, ids: Tensor, against: Table, unknown: Tensor | None, k: int) -> Chosen:
    """The k most likely of (catalogue ∪ window); where `unknown` [B], popularity stands in for the softmax."""
    first = against.catalogue.first
    scores = distribution(mixture, ids, against, unknown)
    scores[:, 0] = 0  # "none of these" has no name
    values, classes = top_k(scores, k)  # [B, k]
    if mixture.copied is None:
        return Chosen(values, classes + first - 1)
    strange = copies(mixture.copied).masked_fill(ids < against.catalogue.rows, 0)  # [B, L] candidates without a row
    merged = torch.cat((strange.flip(1), values), dim=1)  # most recent first
    merged_ids = torch.cat((ids.flip(1), classes + first - 1), dim=1)
    best, where = merged.sort(dim=1, descending=True, stable=True)
    return Chosen(best[:, :k], merged_ids.gather(1, where[:, :k]))


def distribution(mixture: Mixture, ids: Tensor, against: Table, unknown: Tensor | None) -> Tensor:
    """Probability of class 0, "none of these", and of each known name, [B, N + 1], copies of known names included.

    Without a copy path users repeat nothing: what is in the window gets 0, and the others the more.
    """
    rows, first = against.catalogue.rows, against.catalogue.first
    logits = torch.addmm(against.bias, mixture.query[:, 0], against.vectors)  # [B, N + 1]
    known = (ids >= first) & (ids < rows)
    classes = torch.where(known, ids - first + 1, 0)  # [B, L]
    if mixture.copied is None:
        none = logits[:, :1].clone()
        scores = logits.scatter_(1, classes, float("-inf")).index_copy_(1, classes.new_zeros(1), none).softmax(-1)
        if unknown is not None:
            scores[unknown] = against.popularity
        return scores
    share = mixture.copied.log_catalogue.exp()  # [B, 1]
    scores = logits.softmax(-1).mul_(share)
    if unknown is not None:
        scores[unknown] = against.popularity * share[unknown]
    return scores.scatter_add_(1, classes, copies(mixture.copied) * known)


def copies(copied: Copied) -> Tensor:
    """Probability of each candidate of the window, [B, L]; 0 where no candidate."""
    return (copied.log_copy + copied.pointer[:, 0]).exp()


def _named(chosen: Chosen, catalogue: Catalogue, unknown: list[str]) -> list[list[tuple[str, float]]]:
    """Identities as names; entries without probability are left out."""
    names, first, rows = catalogue.names, catalogue.first, catalogue.rows
    ids, listed = chosen.ids.tolist(), (chosen.probability > 0).tolist()
    return [
        [
            (names[one - first] if one < rows else unknown[one - rows], probability)
            for one, probability, is_listed in zip(*some, strict=True)
            if is_listed
        ]
        for some in zip(ids, rounded(chosen.probability.double()).tolist(), listed, strict=True)
    ]


def rounded(probabilities: Tensor) -> Tensor:
    """Seven decimals: what lies beyond is the noise of float32, and a third of a prediction's bytes."""
    return probabilities.round(decimals=7).clamp(0.0, 1.0)
