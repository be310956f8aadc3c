"""Probabilities that mean what they say: one temperature for the behaviours, a line for each yes-or-no question and each quantile.

Fitted on events that the weights did not learn from, after the last epoch. A temperature changes no ranking (Guo, Pleiss,
Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017). A question has a scale and a bias on its logit,
since its rate can be off as well (Platt, "Probabilistic Outputs for Support Vector Machines", 1999). A quantile has them on its
log seconds, since waits can be shorter or longer than where the network learned. Where lines cross, the quantiles are put in order (Chernozhukov, Fernández-Val and Galichon, "Quantile and Probability Curves
Without Crossing", Econometrica 2010). E events, C classes, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import measures
from model.config import QUANTILES
from model.measures import Bools, Floats, Ints, Measure

LEAST = 1e-3  # of a scale and of a temperature, so that they can be undone
STEPS = 100
SLOPES = tuple(step / 20 for step in range(31))  # that the line of a quantile may have
WAITS = 200  # events at least that lines of quantiles are fitted on


class Line(msgspec.Struct, frozen=True):
    """Calibrated logit = scale · logit + bias."""

    scale: float = 1.0
    bias: float = 0.0

    def apply(self, logit: Tensor) -> Tensor:
        """Any shape."""
        return logit * self.scale + self.bias

    def applied(self, probability: Floats) -> Floats:
        """The calibrated probability, [E]."""
        return _sigmoid(_logit(probability) * self.scale + self.bias)

    def undone(self, probability: Floats) -> Floats:
        """What the probability was before, [E]."""
        return _sigmoid((_logit(probability) - self.bias) / self.scale)


class Effect(msgspec.Struct, frozen=True):
    """What calibration does to one head on some events."""

    events: int
    log_loss: tuple[float, float]  # before, after
    ece: tuple[float, float]  # before, after


class WaitingEffect(msgspec.Struct, frozen=True):
    """What calibration does to the times to the next event, on the events that it was fitted on."""

    events: int
    pinball: tuple[float, float]  # before, after; log seconds
    inside: tuple[float, float]  # share between the outer quantiles


class Calibration(msgspec.Struct, frozen=True):
    """What the engine does to the answers of a network; as it is here, nothing."""

    behavior_temperature: float = 1.0
    purchase: Line = Line()
    churn: Line = Line()
    effects: dict[str, Effect] = {}  # head → effect on the events that it was fitted on
    times: tuple[Line, ...] = ()  # of the log seconds, one for each quantile
    waiting: WaitingEffect | None = None

    def of_waits(self, device: torch.device | str = "cpu") -> Tensor | None:
        """Scales and biases of `times` as `awaited` wants them, float64 [2, Q]; None where there are none."""
        rows = [[line.scale for line in self.times], [line.bias for line in self.times]]
        return torch.tensor(rows, dtype=torch.float64, device=device) if self.times else None


def awaited(log_seconds: Tensor, lines: Tensor | None) -> Tensor:
    """Calibrated quantiles of the time to the next event, float64 [..., Q]; lines as of `Calibration.of_waits`."""
    return log_seconds if lines is None else (log_seconds * lines[0] + lines[1]).sort(dim=-1).values


def temperature(probabilities: Floats, actual: Ints) -> float:
    """The temperature with the lowest log-loss; probabilities [E, C] before, actual [E]. 1 where nothing can be fitted."""
    if len(actual) == 0:
        return 1.0
    logits, classes = torch.from_numpy(_log(probabilities)), torch.from_numpy(actual)
    (coldness,) = _fit(lambda raw: F.cross_entropy(logits * raw[0], classes), [1.0])
    return 1 / min(max(coldness, LEAST), 1 / LEAST)


def heated(probabilities: Floats, by: float) -> Floats:
    """Probabilities at another temperature: `softmax(ln p / by)`, [E, C]; 1 / T undoes T."""
    return np.asarray(torch.from_numpy(_log(probabilities) / by).softmax(-1).numpy())


def line(probability: Floats, happened: Bools) -> Line:
    """The line with the lowest log-loss against Platt's smoothed answers, its scale positive; probability [E] before.

    On these events it is no worse than their plain rate, which is the line of a scale near 0.
    """
    yes, no = int(happened.sum()), int((~happened).sum())
    if yes + no == 0:
        return Line()
    smoothed = np.where(happened, (yes + 1) / (yes + 2), 1 / (no + 2))
    logit, wanted = torch.from_numpy(_logit(probability)), torch.from_numpy(smoothed)

    def loss(scale: Tensor | float, bias: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logit * scale + bias, wanted)

    scale, bias = _fit(lambda raw: loss(raw[0], raw[1]), [1.0, 0.0])
    if scale < LEAST:
        scale, (bias,) = LEAST, _fit(lambda raw: loss(LEAST, raw[0]), [0.0])
    return Line(scale, bias)


def quantile_line(told: Floats, actual: Floats, level: float) -> Line:
    """The line with the lowest pinball loss for one quantile, of the `SLOPES`; told, actual [E] in log seconds, E > 0.

    On these events it is no worse than the same number for all, which is the line of slope 0.
    """
    found = [(slope, float(np.quantile(actual - slope * told, level, method="inverted_cdf"))) for slope in SLOPES]
    losses = [
        np.maximum(level * error, (level - 1) * error).mean() for error in (actual - s * told - b for s, b in found)
    ]
    return Line(*found[int(np.argmin(losses))])


def fit_times(told: Floats, actual: Floats) -> tuple[tuple[Line, ...], WaitingEffect | None]:
    """A line for each quantile and what they do; told [E, Q] and actual [E] in log seconds. None where events are too few."""
    if len(actual) < WAITS:
        return (), None
    lines = tuple(quantile_line(column, actual, level) for column, level in zip(told.T, QUANTILES, strict=True))
    pair = (told, awaited(torch.from_numpy(told), Calibration(times=lines).of_waits()).numpy())
    losses = [measures.value(measures.pinball(each, actual, QUANTILES), len(actual)) for each in pair]
    inside = [float(((actual >= each[:, 0]) & (actual <= each[:, -1])).mean()) for each in pair]
    return lines, WaitingEffect(len(actual), (losses[0], losses[1]), (inside[0], inside[1]))


def fit_behaviors(probabilities: Floats, actual: Ints) -> tuple[float, Effect]:
    """A temperature and what it does; probabilities [E, C], actual [E], E > 0."""
    found = temperature(probabilities, actual)
    return found, effect_on_choice((probabilities, heated(probabilities, found)), actual)


def fit_question(probability: Floats, happened: Bools) -> tuple[Line, Effect]:
    """A line and what it does; probability [E], happened [E], E > 0."""
    found = line(probability, happened)
    return found, effect_on_question((probability, found.applied(probability)), happened)


def effect_on_choice(told: tuple[Floats, Floats], actual: Ints) -> Effect:
    """Of probabilities [E, C] before and after."""
    losses = [measures.log_loss(each, actual) for each in told]
    errors = [measures.calibration_error(each.max(1), each.argmax(1) == actual) for each in told]
    return _effect(len(actual), losses, errors)


def effect_on_question(told: tuple[Floats, Floats], happened: Bools) -> Effect:
    """Of probabilities [E] before and after."""
    losses = [measures.binary_log_loss(each, happened) for each in told]
    return _effect(len(happened), losses, [measures.calibration_error(each, happened) for each in told])


def _effect(events: int, losses: Sequence[Measure], errors: Sequence[Measure]) -> Effect:
    log_loss, ece = ([measures.value(each, events) for each in pair] for pair in (losses, errors))
    return Effect(events, (log_loss[0], log_loss[1]), (ece[0], ece[1]))


def _fit(loss: Callable[[Tensor], Tensor], start: list[float]) -> list[float]:
    """Where a smooth convex loss of a few numbers is lowest."""
    raw = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        value = loss(raw)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return value

    optimizer.step(step)  # type: ignore[no-untyped-call]  # likewise
    found: list[float] = raw.detach().tolist()
    return found


def _log(probabilities: Floats) -> Floats:
    return np.asarray(np.log(np.clip(probabilities, 1e-12, 1)))


def _logit(probability: Floats) -> Floats:
    p = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.asarray(np.log(p) - np.log1p(-p))


def _sigmoid(logit: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logit)))
