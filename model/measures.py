"""Measures of quality over numpy columns. They know nothing of models.

A rank is 1 for the first place of a list and 0 where the list does not hold what came. E events, C classes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BINS = 15


def ranks_of(listed: list[list[str]], wanted: list[str | None]) -> Ints:
    """The rank of each wanted name in its list, 0 where it is not listed."""
    return np.array(
        [
            names.index(name) + 1 if name is not None and name in names else 0
            for names, name in zip(listed, wanted, strict=True)
        ],
        np.int64,
    )


def hit_rate(ranks: Ints, k: int) -> float:
    """Share of events with what came among the first k."""
    return _mean((ranks >= 1) & (ranks <= k))


def ndcg(ranks: Ints, k: int) -> float:
    """Mean of 1 / log2(1 + rank) for ranks up to k; one thing is relevant per event, so the ideal is 1."""
    inside = (ranks >= 1) & (ranks <= k)
    return _mean(np.where(inside, 1 / np.log2(1 + np.maximum(ranks, 1)), 0))


def reciprocal_rank(ranks: Ints) -> float:
    """Mean of 1 / rank, 0 where the list does not hold what came."""
    return _mean(np.where(ranks >= 1, 1 / np.maximum(ranks, 1), 0))


def accuracy(predicted: Ints, actual: Ints) -> float:
    """Share of equal classes."""
    return _mean(predicted == actual)


def macro_f1(predicted: Ints, actual: Ints) -> float:
    """Mean F1 over the classes that occur; a class that is never predicted scores 0."""
    scores = []
    for one in np.unique(actual):
        hits = int(((predicted == one) & (actual == one)).sum())
        scores.append(2 * hits / (int((predicted == one).sum()) + int((actual == one).sum())))
    return float(np.mean(scores)) if scores else float("nan")


def log_loss(probabilities: Floats, actual: Ints) -> float:
    """Mean of -ln p of the class that came; probabilities [E, C]."""
    return _mean(-np.log(np.maximum(probabilities[np.arange(len(actual)), actual], 1e-12)))


def binary_log_loss(probability: Floats, actual: Bools) -> float:
    """Mean of -ln p of what came."""
    return _mean(-np.log(np.maximum(np.where(actual, probability, 1 - probability), 1e-12)))


def auc(score: Floats, actual: Bools) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN without both."""
    positives = int(actual.sum())
    negatives = len(actual) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # of each distinct score, 1 is the lowest
    return float((mean_rank[place][actual].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(confidence: Floats, correct: Bools, bins: int = BINS) -> float:
    """Expected calibration error: |share correct - mean confidence| in equal bins, weighted by their size."""
    if len(confidence) == 0:
        return float("nan")
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(place, weights=correct.astype(np.float64) - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def pinball(quantiles: Floats, actual: Floats, levels: tuple[float, ...]) -> float:
    """Pinball loss, mean over levels and events; quantiles [E, levels]."""
    error = actual[:, None] - quantiles
    at = np.array(levels)
    return _mean(np.maximum(at * error, (at - 1) * error))


def _mean(values: npt.NDArray[np.float64] | Bools) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
