"""Measures of quality over numpy columns. They know nothing of models.

A measure keeps what each event adds to it, and is computed over any weights of the users at once: with equal weights it is
the figure, with those of resampled users its scatter (`model.intervals`). Libraries measure one sample at a time; the
tests compare with torchmetrics. A rank is 1 for the first place of a list and 0 where the list does not hold what came;
one thing comes per event, so recall@k is HR@k. E events, U users, R rows of weights, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BINS = 15
CELLS = 1 << 20  # numbers held at once: 8 MB, which stay in cache


class Measure(Protocol):
    """A figure over the events of weighted users."""

    def over(self, weights: npt.NDArray[np.uint8], users: Ints) -> Floats:
        """The figure for each row of weights [R, U], [R]; users [E] are columns of the weights. NaN where undefined."""


def value(measure: Measure, events: int) -> float:
    """The figure with equal weights; NaN where undefined."""
    return float(measure.over(np.ones((1, 1), np.uint8), np.zeros(events, np.int64))[0])


@dataclass(frozen=True, slots=True)
class Tally:
    """A figure that follows from sums over events."""

    columns: Floats  # [E, S] what each event adds
    figure: Callable[[Floats], Floats]  # sums [R, S] → [R]

    def over(self, weights: npt.NDArray[np.uint8], users: Ints) -> Floats:
        """See `Measure`; one sum per user, then a matrix product."""
        width = weights.shape[1]
        sums = np.stack([np.bincount(users, column, width) for column in self.columns.T], axis=1)  # [U, S]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.concatenate([self.figure(part @ sums) for part in _parts(weights, width)])


@dataclass(frozen=True, slots=True)
class Auc:
    """Chance that a positive scores above a negative, ties counting half (Mann and Whitney 1947)."""

    score: Floats  # [E]
    actual: Bools  # [E]

    def over(self, weights: npt.NDArray[np.uint8], users: Ints) -> Floats:
        """See `Measure`; NaN for rows that lack positives or negatives."""
        order = np.argsort(self.score, kind="stable")
        begins = np.flatnonzero(np.diff(self.score[order], prepend=np.nan) != 0)  # of equal scores
        if len(begins) == 0:
            return np.full(len(weights), np.nan)
        yes, who = self.actual[order], users[order]
        figures = []
        for part in _parts(weights, max(len(order), weights.shape[1])):
            each = part[:, who]  # [r, E]
            positive = np.add.reduceat(each * yes, begins, axis=1)  # [r, distinct scores]
            negative = np.add.reduceat(each * ~yes, begins, axis=1)
            below = negative.cumsum(1) - negative / 2
            with np.errstate(invalid="ignore"):
                figures.append((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))
        return np.concatenate(figures)


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of several measures, those that are undefined left out."""

    parts: list[Measure]

    def over(self, weights: npt.NDArray[np.uint8], users: Ints) -> Floats:
        """See `Measure`."""
        return _mean_of_defined(np.stack([part.over(weights, users) for part in self.parts], axis=1))


def ranks_of(listed: list[list[str]], wanted: list[str | None]) -> Ints:
    """The rank of each wanted name in its list, 0 where it is not listed."""
    return np.array(
        [
            names.index(name) + 1 if name is not None and name in names else 0
            for names, name in zip(listed, wanted, strict=True)
        ],
        np.int64,
    )


def mean(values: Floats | Bools) -> Tally:
    """The plain mean of what each event gives, [E]."""
    return Tally(np.stack((values, np.ones(len(values))), axis=1), lambda sums: sums[:, 0] / sums[:, 1])


def root_mean_square(errors: Floats) -> Tally:
    """Root of the mean square, [E]."""
    squares = mean(errors**2)
    return Tally(squares.columns, lambda sums: np.sqrt(squares.figure(sums)))


def hit_rate(ranks: Ints, k: int) -> Tally:
    """HR@k: share of events with what came among the first k."""
    return mean((ranks >= 1) & (ranks <= k))


def ndcg(ranks: Ints, k: int) -> Tally:
    """NDCG@k: mean of 1 / log2(1 + rank) for ranks up to k; one thing is relevant per event, so the ideal is 1."""
    inside = (ranks >= 1) & (ranks <= k)
    return mean(np.where(inside, 1 / np.log2(1 + np.maximum(ranks, 1)), 0))


def reciprocal_rank(ranks: Ints) -> Tally:
    """MRR: mean of 1 / rank, 0 where the list does not hold what came."""
    return mean(np.where(ranks >= 1, 1 / np.maximum(ranks, 1), 0))


def accuracy(predicted: Ints, actual: Ints) -> Tally:
    """Share of equal classes."""
    return mean(predicted == actual)


def precision(predicted: Ints, actual: Ints, one: int) -> Tally:
    """Share of class `one` among what was said to be it; 0 where it is never said, NaN where it does not occur."""
    return Tally(
        _hits(predicted, actual, one), lambda sums: _if_it_occurs(sums[:, 0] / np.maximum(sums[:, 1], 1), sums)
    )


def recall(predicted: Ints, actual: Ints, one: int) -> Tally:
    """Share of class `one` that was said to be it; NaN where it does not occur."""
    return Tally(_hits(predicted, actual, one), lambda sums: sums[:, 0] / sums[:, 2])


def f1(predicted: Ints, actual: Ints, one: int) -> Tally:
    """Harmonic mean of precision and recall of class `one`; NaN where it does not occur."""
    return Tally(
        _hits(predicted, actual, one), lambda sums: _if_it_occurs(2 * sums[:, 0] / (sums[:, 1] + sums[:, 2]), sums)
    )


def log_loss(probabilities: Floats, actual: Ints) -> Tally:
    """Mean of -ln p of the class that came; probabilities [E, C]."""
    return mean(-np.log(np.maximum(probabilities[np.arange(len(actual)), actual], 1e-12)))


def binary_log_loss(probability: Floats, actual: Bools) -> Tally:
    """Mean of -ln p of what came."""
    return mean(-np.log(np.maximum(np.where(actual, probability, 1 - probability), 1e-12)))


def calibration_error(confidence: Floats, correct: Bools, bins: int = BINS) -> Tally:
    """Expected calibration error: |share correct - mean confidence| in equal bins, weighted by their size.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.
    """
    columns = np.zeros((len(confidence), bins + 1))
    columns[np.arange(len(confidence)), bin_of(confidence, bins)] = correct - confidence
    columns[:, bins] = 1
    return Tally(columns, lambda sums: np.abs(sums[:, :bins]).sum(1) / sums[:, bins])


def bin_of(confidence: Floats, bins: int = BINS) -> Ints:
    """Which of the equal bins of [0, 1] a probability is in, [E]."""
    return np.minimum((confidence * bins).astype(np.int64), bins - 1)


def pinball(quantiles: Floats, actual: Floats, levels: tuple[float, ...]) -> Tally:
    """Pinball loss, mean over levels and events; quantiles [E, levels]. Koenker and Bassett 1978."""
    error = actual[:, None] - quantiles
    at = np.array(levels)
    return mean(np.maximum(at * error, (at - 1) * error).mean(1))


def _hits(predicted: Ints, actual: Ints, one: int) -> Floats:
    """[E, 3]: said and so, said, so."""
    said, is_so = predicted == one, actual == one
    return np.stack((said & is_so, said, is_so), axis=1).astype(np.float64)


def _if_it_occurs(figures: Floats, sums: Floats) -> Floats:
    return np.where(sums[:, 2] > 0, figures, np.nan)


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the last axis without NaN, NaN where there is nothing else; [R, P] → [R]."""
    defined = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(defined, values, 0).sum(-1) / defined.sum(-1))


def _parts(weights: npt.NDArray[np.uint8], width: int) -> Iterator[Floats]:
    """The weights as floats, a few rows at a time, so that `width` numbers per row stay in cache."""
    rows = max(1, CELLS // max(1, width))
    for begin in range(0, len(weights), rows):
        yield weights[begin : begin + rows].astype(np.float64)
