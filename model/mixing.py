"""What a network's mixtures over catalogue and window come to: the best of both as a list, or the whole distribution.

Catalogues are scored by `model.scorer`; what follows from its numbers is here, as functions of tensors alone. B windows, L events of
a window, D width, N catalogue, k names listed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.hiding import Banned
from model.network import Copied, Mixture
from model.pointer import FAR
from model.scorer import Scorer
from model.stages import Catalogued, Ranked
from model.topk import first_k
from model.vocabulary import Catalogue


class Chosen(NamedTuple):
    """Top-k of one mixture for B windows."""

    probability: Tensor  # [B, k]
    ids: Tensor  # [B, k] identities as in `Columns`


class Table(NamedTuple):
    """Output vectors of a catalogue, ready for a whole distribution."""

    vectors: Tensor  # [D, N + 1]
    bias: Tensor  # [N + 1]
    popularity: Tensor  # [N + 1] sums to 1
    catalogue: Catalogue


class Ranking(NamedTuple):
    """A catalogue that answers with its best."""

    scorer: Scorer
    popularity: Tensor  # [N + 1] of classes, falling but for class 0, which is 0; sums to 1
    catalogue: Catalogue
    banned: Banned | None = None  # what the scorer was told to ban


class Listing(NamedTuple):
    """What the lists of a catalogue depend on besides the windows."""

    bounds: Tensor  # int64 [2] identity of the first known name, and one beyond that of the last
    common: Tensor  # int64 [k] the most popular classes that may be listed; 0 where there are fewer
    chances: Tensor  # [k] how popular they are
    barred: Tensor | None  # bool [N + 1] classes that are banned; without a copy path nobody asks


class Scored(NamedTuple):
    """What a catalogue's scorer says about B queries."""

    ranked: Ranked
    missing: Tensor | None  # [B] log Σ exp over banned classes, which the ranking leaves out
    own: Tensor | None  # [B, L] logits of what is in the window; without a copy path nobody asks


def table(scoring: tuple[Tensor, Tensor], catalogue: Catalogue, counts: Sequence[int]) -> Table:
    """A catalogue's output vectors [N + 1, D] and biases [N + 1], laid out for a whole distribution."""
    vectors, bias = scoring
    return Table(
        vectors.detach().t().contiguous(), bias.detach().clone(), popularity(counts, vectors.device), catalogue
    )


def ranking(scorer: Scorer, catalogue: Catalogue, counts: Sequence[int]) -> Ranking:
    """A catalogue of names by falling counts."""
    return Ranking(scorer, popularity(counts, scorer.device), catalogue)


def popularity(counts: Sequence[int], device: torch.device) -> Tensor:
    """Shares of counts, float32 [N + 1]; class 0 has none."""
    seen = torch.tensor([0, *counts], dtype=torch.float32, device=device)
    return seen / seen.sum().clamp(min=1)


def listing(against: Ranking, k: int) -> Listing:
    """What lists of k need to know of a catalogue."""
    banned, bounds = against.banned, (against.catalogue.first, against.catalogue.rows)
    if banned is None:
        places = torch.arange(1, k + 1, device=against.popularity.device)
        common = torch.where(places < len(against.popularity), places, 0)
        barred = torch.zeros_like(against.popularity, dtype=torch.bool)
    else:
        common, barred = banned.most_popular(k), banned.places < len(banned.classes)
    return Listing(
        bounds=torch.tensor(bounds, device=against.popularity.device),
        common=common,
        chances=against.popularity[common],
        barred=barred,
    )


def choose(
    mixture: Mixture, ids: Tensor, against: Ranking, unknown: Tensor | None, k: int, hidden: Tensor | None = None
) -> Chosen:
    """The k most likely of (catalogue ∪ window); where `unknown` [B], popularity stands in for the softmax.

    Without a copy path users repeat nothing: what is in the window is not listed, and the others are the likelier. What is banned,
    or in the window and `hidden` (bool [B, L]), is not listed either, and the others are as likely as they were.
    """
    found = scored(mixture, ids, against, k, hidden)
    return mixed(mixture, ids, found, listing(against, k), unknown, k, hidden)


def scored(mixture: Mixture, ids: Tensor, against: Ranking, k: int, hidden: Tensor | None) -> Scored:
    """What `mixed` needs of the scorer."""
    names, banned = against.catalogue, against.banned
    found, apart = scored_by(against.scorer, mixture, ids, (names.first, names.rows), k, hidden)
    if banned is None:
        return found
    missing = against.scorer.banned_mass(mixture.query[:, 0], None if apart is None else banned.places[apart])
    return found._replace(missing=missing)


def scored_by(
    scorer: Scorer | Catalogued,
    mixture: Mixture,
    ids: Tensor,
    bounds: Sequence[int | Tensor],
    k: int,
    hidden: Tensor | None,
) -> tuple[Scored, Tensor | None]:
    """The same where nothing is banned, and which classes [B, L] are not to be listed; bounds as `Listing.bounds`."""
    first, rows = bounds
    query = mixture.query[:, 0]  # [B, D]
    classes = torch.where((ids >= first) & (ids < rows), ids - first + 1, 0)  # [B, L]
    apart = classes if mixture.copied is None else None if hidden is None else torch.where(hidden, classes, 0)
    ranked = scorer.top(query, k, apart)
    return Scored(ranked, None, None if mixture.copied is None else scorer.logits(query, classes)), apart


def mixed(
    mixture: Mixture,
    ids: Tensor,
    found: Scored,
    names: Listing,
    unknown: Tensor | None,
    k: int,
    hidden: Tensor | None,
) -> Chosen:
    """As `choose`, of what is scored."""
    first, rows = names.bounds[0], names.bounds[1]
    known = (ids >= first) & (ids < rows)
    classes = torch.where(known, ids - first + 1, 0)  # [B, L]
    ranked, total = found.ranked, found.ranked.log_total  # [B]
    if found.missing is not None:
        total = torch.logaddexp(total, found.missing)
    candidate = None
    if mixture.copied is not None:
        candidate = mixture.copied.pointer[:, 0] > FAR / 2  # [B, L] each distinct thing of the window once
        if hidden is not None and found.own is not None:
            missing = found.own.masked_fill(~(candidate & hidden & known), -torch.inf).logsumexp(1)
            total = torch.logaddexp(total, missing)
    named, chances = ranked.classes, (ranked.logits - total[:, None]).exp()  # [B, k] each
    if unknown is not None:
        cold = unknown[:, None]
        named, chances = torch.where(cold, names.common, named), torch.where(cold, names.chances, chances)
    if mixture.copied is None or candidate is None or found.own is None:
        return Chosen(chances, named + first - 1)
    share = mixture.copied.log_catalogue.exp()  # [B, 1]
    own = (found.own - total[:, None]).exp() * share * known
    if names.barred is not None:
        candidate = candidate & ~(names.barred[classes] & known)
    if hidden is not None:
        candidate = candidate & ~hidden
    own = torch.where(candidate, own + copies(mixture.copied), 0)
    twice = (named[:, :, None] == torch.where(candidate, classes, -1)[:, None]).any(-1)  # [B, k] listed as candidates
    merged = torch.cat((own, (chances * share).masked_fill(twice, 0)), dim=1)  # [B, L + k]
    places, length = torch.arange(merged.shape[1], device=ids.device), ids.shape[1]
    turns = torch.where(places < length, length - 1 - places, places)  # among equals the window's most recent first
    best, where = first_k(merged, k, turns.expand_as(merged))
    return Chosen(best, torch.cat((ids, named + first - 1), dim=1).gather(1, where))


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
