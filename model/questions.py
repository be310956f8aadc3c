"""What is asked of every contender at the same events, and how the answers are measured.

A contender is the model or a baseline, by name. It knows nothing of where answers come from. E events, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model import measures
from model.config import QUANTILES
from model.measures import Auc, Bools, Floats, Ints, Measure

Measured = Iterator[tuple[str, str, Measure]]  # contender, name of the measure, measure
HOUR_S = 3600
LOWER_IS_BETTER = ("log-loss", "ECE", "pinball", "MAE", "RMSE")
NEITHER_IS_BETTER = ("in 10–90 %",)


class Question(Protocol):
    """One question at E events."""

    @property
    def at(self) -> Ints:
        """The events, [E]."""

    def measured(self) -> Measured:
        """Every measure of every contender."""


def higher_is_better(measure: str) -> bool | None:
    """The direction of a measure by its name; None where neither is better."""
    if any(word in measure for word in NEITHER_IS_BETTER):
        return None
    return not any(word in measure for word in LOWER_IS_BETTER)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Which item or category comes next."""

    name: str  # "item" or "category"
    at: Ints
    ranks: dict[str, Ints]  # contender → rank of what came [E]
    confidence: Floats  # [E] the model's probability of its first place, NaN where it had no window
    k: Sequence[int]

    def measured(self) -> Measured:
        """HR@k, NDCG@k and MRR of all; the calibration of the model's first place."""
        for who, ranks in self.ranks.items():
            for one in self.k:
                yield who, f"{self.name} HR@{one}", measures.hit_rate(ranks, one)
                if one > 1:
                    yield who, f"{self.name} NDCG@{one}", measures.ndcg(ranks, one)
            yield who, f"{self.name} MRR@{max(self.k)}", measures.reciprocal_rank(ranks)
        confidence, correct = self.first_place()
        yield "model", f"{self.name} ECE", measures.calibration_error(confidence, correct)

    def first_place(self) -> tuple[Floats, Bools]:
        """How sure the model was of its first place, and whether it was right; without a window it was not sure at all."""
        return np.nan_to_num(self.confidence), self.ranks["model"] == 1


@dataclass(frozen=True, slots=True)
class Confusion:
    """Events by what came (rows) and what was said (columns)."""

    classes: list[str]
    events: list[list[int]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which behaviour comes next."""

    at: Ints
    actual: Ints  # [E]
    given: dict[str, Floats]  # contender → probabilities [E, C]
    classes: Sequence[str]

    def measured(self) -> Measured:
        """Accuracy; precision, recall, F1 and AUC one against the rest, as means over the classes that occur; log-loss."""
        actual, count = self.actual, len(self.classes)
        for who, given in self.given.items():
            said = given.argmax(1)
            yield who, "behavior accuracy", measures.accuracy(said, actual)
            for name, of in (("precision", measures.precision), ("recall", measures.recall), ("F1", measures.f1)):
                parts: list[Measure] = [of(said, actual, one) for one in range(count)]
                yield who, f"behavior macro-{name}", measures.Mean(parts)
            against_rest: list[Measure] = [Auc(given[:, one], actual == one) for one in range(count)]
            yield who, "behavior macro-AUC", measures.Mean(against_rest)
            yield who, "behavior log-loss", measures.log_loss(given, actual)
            yield who, "behavior ECE", measures.calibration_error(given.max(1), said == actual)

    def by_class(self) -> Iterator[tuple[str, str, Measure]]:
        """Precision, recall, F1 and AUC of the model for each class: (class, name, measure)."""
        given = self.given["model"]
        said = given.argmax(1)
        for number, name in enumerate(self.classes):
            yield name, "precision", measures.precision(said, self.actual, number)
            yield name, "recall", measures.recall(said, self.actual, number)
            yield name, "F1", measures.f1(said, self.actual, number)
            yield name, "AUC", Auc(given[:, number], self.actual == number)

    def confusion(self) -> Confusion:
        """Of the model."""
        count = len(self.classes)
        cells = self.actual * count + self.given["model"].argmax(1)
        table: list[list[int]] = np.bincount(cells, minlength=count * count).reshape(count, count).tolist()
        return Confusion(list(self.classes), table)


@dataclass(frozen=True, slots=True)
class Waiting:
    """When the next event comes."""

    at: Ints
    actual: Floats  # [E] seconds
    given: dict[str, Floats]  # contender → quantiles [E, Q] in seconds

    def measured(self) -> Measured:
        """Pinball loss in log seconds; errors of the median; how often the outer quantiles hold what came."""
        actual = self.actual
        for who, seconds in self.given.items():
            in_logs = np.log1p(seconds[:, 1]) - np.log1p(actual)
            in_hours = (seconds[:, 1] - actual) / HOUR_S
            yield who, "time pinball (log s)", measures.pinball(np.log1p(seconds), np.log1p(actual), QUANTILES)
            yield who, "time MAE (log s)", measures.mean(np.abs(in_logs))
            yield who, "time RMSE (log s)", measures.root_mean_square(in_logs)
            yield who, "time MAE (h)", measures.mean(np.abs(in_hours))
            yield who, "time RMSE (h)", measures.root_mean_square(in_hours)
            yield who, "time in 10–90 %", measures.mean((actual >= seconds[:, 0]) & (actual <= seconds[:, 2]))


@dataclass(frozen=True, slots=True)
class YesNo:
    """Whether something happens within a horizon."""

    name: str  # "purchase" or "churn"
    at: Ints
    happened: Bools  # [E]
    given: dict[str, Floats]  # contender → probability [E]

    def measured(self) -> Measured:
        """AUC, log-loss and calibration."""
        for who, probability in self.given.items():
            yield who, f"{self.name} AUC", Auc(probability, self.happened)
            yield who, f"{self.name} log-loss", measures.binary_log_loss(probability, self.happened)
            yield who, f"{self.name} ECE", measures.calibration_error(probability, self.happened)
