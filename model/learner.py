"""Steps: batches of chunks, a loss, an optimiser; validation after each epoch; the best weights are kept.

It knows nothing of files, frames or names.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.features import Ints, pad
from model.losses import WEIGHTS, losses
from model.material import Bools, Material, make_labels
from model.network import NextMoveModel
from model.sequences import chunks

VALIDATION_WINDOWS = 4096
STEPS = 128  # per epoch, within what a step can hold
MIN_POSITIONS, MAX_POSITIONS = 256, 4096
BATCH_WINDOWS = 256  # while validating


@dataclass(frozen=True, slots=True)
class Progress:
    """What a command line may draw."""

    phase: str  # "prepare", "train", "validate", "refit", "save"
    step: int
    total: int
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are learned; the network's own sizes are in the preset."""

    learning_rate: float = 2e-3
    weight_decay: float = 1.0
    warmup: float = 0.05  # share of the schedule
    epochs: int = 6
    patience: int = 3  # epochs without improvement before the end
    positions: int | None = None  # events per step; by default so many that an epoch has about STEPS steps


@dataclass(slots=True)
class Clock:
    """How much of the schedule is over: by steps, or by time where there is a budget."""

    steps: int
    budget_s: float | None = None
    step: int = 0
    begun: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """0 … 1."""
        done = self.step / max(1, self.steps)
        if self.budget_s is not None:
            done = max(done, (time.monotonic() - self.begun) / self.budget_s)
        return min(done, 1.0)


class Learner:
    """One network on one material."""

    def __init__(
        self,
        model: NextMoveModel,
        material: Material,
        recipe: Recipe,
        seed: int,
        report: Callable[[Progress], None],
        *,
        budget_s: float | None = None,
        device: str = "cpu",
        phase: str = "train",
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)  # type: ignore[arg-type]  # transformers narrows the type of torch's method
        self.material = material
        self.recipe = recipe
        self.report = report
        self.phase = phase
        self.random = np.random.default_rng(seed)
        self.curve: list[tuple[dict[str, float], dict[str, float]]] = []  # per epoch: training and validation losses
        self.sums = torch.zeros(len(WEIGHTS), 2, dtype=torch.float64)  # of the epoch so far: loss and positions by head
        self.learns = material.learning()
        wanted = int(self.learns.sum()) // STEPS
        self.positions = recipe.positions or min(MAX_POSITIONS, max(MIN_POSITIONS, wanted))
        self.clock = Clock(steps=recipe.epochs * len(list(self.batches(0))), budget_s=budget_s)
        self.optimizer = torch.optim.AdamW(groups(model, recipe.weight_decay), lr=recipe.learning_rate)

    def run(self, stop_after: int | None = None) -> tuple[int, dict[str, float]]:
        """Learns; returns how many epochs the kept weights have seen, and their validation losses.

        Without validation events, or with `stop_after`, the last weights are kept.
        """
        checked = self.positions_to_check() if stop_after is None else np.zeros(0, np.int64)
        best, best_epoch, metrics, state = math.inf, 0, {"loss": math.nan}, {}
        for epoch in range(1, (stop_after or self.recipe.epochs) + 1):
            loss = self.epoch()
            if not math.isfinite(loss):
                break
            found = self.validate(checked) if len(checked) else {"loss": -float(epoch)}
            self.curve.append((means(self.sums), found if len(checked) else {}))
            if found["loss"] < best:
                best, best_epoch, metrics = found["loss"], epoch, found
                state = copy.deepcopy(self.model.state_dict())
            if epoch - best_epoch >= self.recipe.patience or self.clock.share() >= 1:
                break
        if not state:
            return 0, {}
        self.model.load_state_dict(state)
        self.model.eval()
        return best_epoch, metrics if len(checked) else {}

    def epoch(self) -> float:
        """Every chunk once, or until the budget is over; returns the last loss."""
        self.model.train()
        self.sums.zero_()
        loss = math.inf
        for starts, lengths, begins in self.batches(int(self.random.integers(1 << 30))):
            loss = self.step(starts, lengths, begins)
            if self.clock.budget_s is not None and self.clock.share() >= 1:
                break
        return loss

    def batches(self, offset: int) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Chunks of similar length together, in random order."""
        material = self.material
        starts, lengths, begins = chunks(material.data, material.learn_until, material.rule, offset)
        order = np.argsort(lengths + self.random.random(len(lengths)) * 4, kind="stable")
        ends = np.cumsum(lengths[order]) // self.positions
        parts = np.split(order, np.flatnonzero(np.diff(ends)) + 1)
        for number in self.random.permutation(len(parts)).tolist():
            part = parts[number]
            yield starts[part], lengths[part], begins[part]

    def step(self, starts: Ints, lengths: Ints, begins: Ints) -> float:
        """One batch: loss, gradient, weights; returns the loss."""
        width = int(lengths.max())
        batch = pad(self.material.columns, starts, lengths, width).to(self.device)
        index = starts[:, None] + np.arange(width)  # [B, L]
        learns: Bools = (index >= begins[:, None]) & (index < (starts + lengths)[:, None])
        labels = make_labels(self.material, index, learns, self.learns, self.material.learned).to(self.device)
        parts = losses(self.model, self.model(batch), batch, labels)
        loss = torch.stack([WEIGHTS[name] * total / max(count, 1) for name, (total, count) in parts.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.clock.share(), self.recipe.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.clock.step += 1
        self.sums += sums_of(parts)
        value = float(loss.detach())
        self.report(Progress(self.phase, int(1000 * self.clock.share()), 1000, value))
        return value

    def positions_to_check(self) -> Ints:
        """Events that validate; a seeded sample where there are many."""
        found = self.material.checking()
        if len(found) > VALIDATION_WINDOWS:
            found = np.sort(self.random.choice(found, VALIDATION_WINDOWS, replace=False))
        return found

    @torch.inference_mode()
    def validate(self, last: Ints) -> dict[str, float]:
        """Mean losses, each event predicted from its own window as in serving; "loss" is their weighted sum."""
        material, data = self.material, self.material.data
        sums = torch.zeros(len(WEIGHTS), 2, dtype=torch.float64)
        everything = np.ones(len(data), np.bool_)
        self.model.eval()
        for begin in range(0, len(last), BATCH_WINDOWS):
            some = last[begin : begin + BATCH_WINDOWS]
            starts = data.window_starts(some, material.rule)
            lengths = some - starts + 1
            batch = pad(material.columns, starts, lengths, int(lengths.max())).to(self.device)
            index = some[:, None]  # [B, 1]
            labels = make_labels(material, index, index >= 0, everything, material.checked)
            early = torch.from_numpy(data.order[index] < material.learn_until)  # chosen for having a late next event
            labels.goal[early], labels.churn[early] = -1, -1
            parts = losses(self.model, self.model(batch, last=True), batch, labels.to(self.device))
            sums += sums_of(parts)
            self.report(Progress("validate", begin + len(some), len(last)))
        return means(sums)


def sums_of(parts: dict[str, tuple[Tensor, int]]) -> Tensor:
    """Loss and number of positions of each head in the order of `WEIGHTS`, [heads, 2] on the CPU."""
    totals = torch.stack([parts[name][0].detach().double() for name in WEIGHTS]).cpu()
    return torch.stack((totals, torch.tensor([parts[name][1] for name in WEIGHTS])), dim=1)


def means(sums: Tensor) -> dict[str, float]:
    """Mean losses of the heads that had a position; "loss" is their weighted sum."""
    found = {name: total / count for name, (total, count) in zip(WEIGHTS, sums.tolist(), strict=True) if count}
    return {"loss": sum(WEIGHTS[name] * mean for name, mean in found.items()), **found}


def schedule(share: float, warmup: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine down to 2 %."""
    if share < warmup:
        return max(0.01, share / warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def groups(model: NextMoveModel, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Matrices decay, vectors do not."""
    weights: list[Tensor] = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
