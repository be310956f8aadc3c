"""What a network says, as forecasts: mixtures over catalogue and window to lists of names, logits to probabilities.

B windows, L events of a window, N catalogue, k names listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.calibration import Calibration, awaited
from model.features import Batch
from model.forecast import Category, Forecast, Item
from model.hiding import Banned, Hidden, banned
from model.network import Copied, Heads, Mixture, NextMoveModel
from model.pointer import FAR
from model.scorer import Precision, Scorer
from model.told import Told
from model.vocabulary import Catalogue, Vocabulary

Names = Callable[[int, int], str]  # (window, identity) → a name that the vocabulary does not know
LONGEST = 30.0  # log seconds, of an answer


class NotFinite(Exception):
    """At least one window of a batch has no answer but NaN or infinity."""


class Seen(NamedTuple):
    """What the windows hold; [B, L] each, NO_IDENTITY behind the newest event."""

    item_ids: Tensor
    category_ids: Tensor
    behavior_rows: Tensor


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


class Ranking(NamedTuple):
    """A catalogue that answers with its best."""

    scorer: Scorer
    popularity: Tensor  # [N + 1] of classes, falling but for class 0, which is 0; sums to 1
    catalogue: Catalogue
    names: npt.NDArray[np.object_]  # [N + 1] of the catalogue, and a last one that is nobody's
    banned: Banned | None = None  # what the scorer was told to ban


class Answers:
    """Makes forecasts of a network's heads, with the vocabulary's names.

    Items are scored in `precision`, and those that are listed once more in float32; with `compiled` by compiled code.
    """

    def __init__(
        self,
        model: NextMoveModel,
        vocabulary: Vocabulary,
        calibration: Calibration,
        *,
        precision: Precision = "float32",
        compiled: bool = False,
    ) -> None:
        self._model = model
        self._behaviors = np.array(vocabulary.behaviors.names, object)
        self._vocabulary = vocabulary
        self._calibration = calibration
        self._wait_lines = calibration.of_waits(model.device)
        scorer = Scorer(*model.item_table(), precision=precision, compiled=compiled)
        self._items = ranking(scorer, vocabulary.items, vocabulary.item_counts)
        scorer = Scorer(*model.category_table(), compiled=compiled)
        self._categories = ranking(scorer, vocabulary.categories, vocabulary.category_counts)
        self.hidden = Hidden()
        self._strangers: frozenset[str] = frozenset()  # banned names that the vocabulary does not know

    def hide(self, hidden: Hidden) -> None:
        """From now on these items are not listed, instead of those before."""
        names, scorer = self._vocabulary.items, self._items.scorer
        found = banned(hidden.banned, names, scorer.device)
        scorer.ban(found.classes)
        self._items = self._items._replace(banned=found if len(found.classes) else None)
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
        names = self._vocabulary
        unknown = ~((seen.item_ids >= 0) & (seen.item_ids < names.items.rows)).any(1)  # [B]
        hidden = self._hidden_in(seen.item_ids, strangers)
        chosen = choose(heads.items, seen.item_ids, self._items, unknown, k, hidden)
        if names.has_categories:
            categories = choose(heads.categories, seen.category_ids, self._categories, None, k)
        else:
            categories = Chosen(*(each[:, :0] for each in chosen))
        mixes = heads.behaviors[:, 0].double() / self._calibration.behavior_temperature  # [B, behaviours]
        goals = self._calibration.purchase.apply(heads.goal[:, 0].double())  # [B]
        churns = self._calibration.churn.apply(heads.churn[:, 0].double())
        log_seconds = heads.log_seconds[:, 0].double()  # [B, quantiles]
        numbers = (chosen.probability, categories.probability, mixes, goals[:, None], churns[:, None], log_seconds)
        seconds = awaited(log_seconds.clamp(0, LONGEST), self._wait_lines).clamp(0, LONGEST).expm1()
        return Told(
            probabilities=rounded(chosen.probability.double()),
            ids=chosen.ids,
            behaviors=self._behavior_with(heads, seen, chosen.ids),
            listed=(chosen.probability > 0).sum(1),
            category_probabilities=rounded(categories.probability.double()),
            category_ids=categories.ids,
            categories_listed=(categories.probability > 0).sum(1),
            unknown=unknown,
            mixes=rounded(mixes.softmax(-1)),
            goals=rounded(goals.sigmoid()),
            churns=rounded(churns.sigmoid()),
            seconds=seconds.round(decimals=6),
            sound=torch.stack([each.sum(1) for each in numbers]).isfinite().all(0),
        )

    def forecasts(self, told: Told, items: Names, categories: Names) -> list[Forecast]:
        """One per window, in order, of answers on the host. Raises NotFinite."""
        if not told.sound.all():
            raise NotFinite("the model answered with numbers that are not finite")
        columns = (
            _named(told.ids, told.listed, self._items, items),
            told.probabilities.flatten().tolist(),
            self._behaviors[told.behaviors.numpy()].flat,
        )
        listed: list[Item] = [  # twice as fast as by the type's name
            {"item_id": name, "probability": p, "behavior": with_it} for name, p, with_it in zip(*columns, strict=True)
        ]
        pairs = zip(
            _named(told.category_ids, told.categories_listed, self._categories, categories),
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
        places = torch.searchsorted(strangers, ids).clamp(max=len(strangers) - 1)
        return strangers[places] == ids

    def _behavior_with(self, heads: Heads, seen: Seen, ids: Tensor) -> Tensor:
        """The most likely behaviour with each of the chosen items, [B, k] positions among the behaviours."""
        same = seen.item_ids[:, None] == ids[:, :, None]  # [B, k, L]
        steps = torch.arange(1, same.shape[2] + 1, device=same.device)
        last = (same * steps).amax(-1)  # [B, k] 1 + last position with the item, 0 if none
        state = torch.where(last > 0, seen.behavior_rows.gather(1, (last - 1).clamp(min=0)), 0)
        logits: Tensor = heads.behaviors + self._model.behavior_with_item(state)  # [B, k, behaviours]
        return logits.argmax(-1)


def seen_in(batch: Batch) -> Seen:
    """What the windows of a batch hold."""
    return Seen(batch.item_ids, batch.category_ids, batch.behavior_rows)


def noted(strange: Sequence[Mapping[int, str]]) -> Names:
    """The names that were noted with each window."""
    return lambda window, identity: strange[window][identity]


def strangers(listed: Sequence[str], rows: int) -> Names:
    """The names of `Columns.unknown_items` or `unknown_categories`."""
    return lambda _, identity: listed[identity - rows]


def table(scoring: tuple[Tensor, Tensor], catalogue: Catalogue, counts: Sequence[int]) -> Table:
    """A catalogue's output vectors [N + 1, D] and biases [N + 1], laid out for scoring."""
    vectors, bias = scoring
    seen = torch.tensor([0, *counts], dtype=torch.float32, device=vectors.device)
    return Table(vectors.detach().t().contiguous(), bias.detach().clone(), seen / seen.sum().clamp(min=1), catalogue)


def ranking(scorer: Scorer, catalogue: Catalogue, counts: Sequence[int]) -> Ranking:
    """A catalogue of names by falling counts."""
    seen = torch.tensor([0, *counts], dtype=torch.float32, device=scorer.device)
    names = np.array([*catalogue.names, ""], object)
    return Ranking(scorer, seen / seen.sum().clamp(min=1), catalogue, names)


def choose(
    mixture: Mixture, ids: Tensor, against: Ranking, unknown: Tensor | None, k: int, hidden: Tensor | None = None
) -> Chosen:
    """The k most likely of (catalogue ∪ window); where `unknown` [B], popularity stands in for the softmax.

    Without a copy path users repeat nothing: what is in the window is not listed, and the others are the likelier. What is banned,
    or in the window and `hidden` (bool [B, L]), is not listed either, and the others are as likely as they were.
    """
    rows, first = against.catalogue.rows, against.catalogue.first
    query = mixture.query[:, 0]  # [B, D]
    known = (ids >= first) & (ids < rows)
    classes = torch.where(known, ids - first + 1, 0)  # [B, L]
    apart = classes if mixture.copied is None else None if hidden is None else torch.where(hidden, classes, 0)
    ranked = against.scorer.top(query, k, apart)
    total = ranked.log_total  # [B]
    if against.banned is not None:
        without = None if apart is None else against.banned.places[apart]
        total = torch.logaddexp(total, against.scorer.banned_mass(query, without))
    if mixture.copied is not None:
        candidate = mixture.copied.pointer[:, 0] > FAR / 2  # [B, L] each distinct thing of the window once
        logits = against.scorer.logits(query, classes)  # [B, L]
        if hidden is not None:
            missing = logits.masked_fill(~(candidate & hidden & known), -torch.inf).logsumexp(1)
            total = torch.logaddexp(total, missing)
    named, chances = ranked.classes, (ranked.logits - total[:, None]).exp()  # [B, k] each
    if unknown is not None:
        most = popular(against, k)
        common = against.popularity[most]
        named, chances = torch.where(unknown[:, None], most, named), torch.where(unknown[:, None], common, chances)
    if mixture.copied is None:
        return Chosen(chances, named + first - 1)
    share = mixture.copied.log_catalogue.exp()  # [B, 1]
    own = (logits - total[:, None]).exp() * share * known
    if against.banned is not None:
        candidate = candidate & ~(against.banned.has(classes) & known)
    if hidden is not None:
        candidate = candidate & ~hidden
    own = torch.where(candidate, own + copies(mixture.copied), 0)
    twice = (named[:, :, None] == torch.where(candidate, classes, -1)[:, None]).any(-1)  # [B, k] listed as candidates
    merged = torch.cat((own.flip(1), (chances * share).masked_fill(twice, 0)), dim=1)  # most recent first
    merged_ids = torch.cat((ids.flip(1), named + first - 1), dim=1)
    best, where = merged.sort(dim=1, descending=True, stable=True)
    return Chosen(best[:, :k], merged_ids.gather(1, where[:, :k]))


def popular(against: Ranking, k: int) -> Tensor:
    """The k most popular classes that may be listed, [k]; 0 where there are fewer."""
    if against.banned is not None:
        return against.banned.most_popular(k)
    places = torch.arange(1, k + 1, device=against.popularity.device)
    return torch.where(places < len(against.popularity), places, 0)


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


def _named(ids: Tensor, listed: Tensor, among: Ranking, strange: Names) -> list[str]:
    """The names of identities [B, k], window after window; those without probability are never looked at."""
    first, rows = among.catalogue.first, among.catalogue.rows
    numbers = ids.numpy()
    names = among.names[np.where((numbers >= first) & (numbers < rows), numbers - first, -1)]
    there = np.arange(numbers.shape[1]) < listed.numpy()[:, None]  # those with a probability come first
    for window, place in np.argwhere((numbers >= rows) & there).tolist():
        names[window, place] = strange(window, int(numbers[window, place]))
    found: list[str] = names.ravel().tolist()
    return found


def _cut(listed: list[Any], counts: Tensor, length: int) -> list[list[Any]]:
    """What is listed for each window, the first of `length` each."""
    return [listed[window * length : window * length + count] for window, count in enumerate(counts.tolist())]


def rounded(probabilities: Tensor) -> Tensor:
    """Seven decimals: what lies beyond is the noise of float32, and a third of a prediction's bytes."""
    return probabilities.round(decimals=7).clamp(0.0, 1.0)
