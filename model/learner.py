"""Steps: batches of chunks, a loss, an optimiser; validation after each epoch; the best weights are kept.

It knows nothing of files, frames or names.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from model.augmentation import crop, reorder
from model.engine import distribution, table
from model.features import Batch, Ints, pad
from model.losses import WEIGHTS, LossWeights, losses
from model.material import Bools, Material, log_share, make_labels
from model.network import Heads, NextMoveModel
from model.sequences import chunks
from model.softmax import FULL

VALIDATION_WINDOWS = 4096
RANKED_WINDOWS = 8192  # a ranking is noisier than a loss
STEPS = 128  # per epoch, within what a step can hold
MIN_POSITIONS, MAX_POSITIONS = 256, 4096
BATCH_WINDOWS = 256  # while validating
RANKED = "item NDCG@10"


@dataclass(frozen=True, slots=True)
class Progress:
    """What a command line may draw."""

    phase: str  # "prepare", "train", "validate", "refit", "save"
    step: int
    total: int
    loss: float | None = None
    found: dict[str, float] = field(default_factory=dict)  # at the end of a validation: its measures


@dataclass(frozen=True, slots=True)
class Recipe:
    """How weights are learned; the network's own sizes are in the preset."""

    learning_rate: float = 2e-3
    weight_decay: float = 1.0
    warmup: float = 0.05  # share of the schedule
    epochs: int = 6
    patience: int = 3  # epochs without improvement before the end
    positions: int | None = None  # events per step; by default so many that an epoch has about STEPS steps
    overlap: float = 0.5  # share of a stretch that only gives context; 0: all of it learns
    dropout: float = 0.3
    mask_items: float = 0.6  # share of known names shown as unknown
    mask_categories: float = 0.2
    crop: float = 0.0  # share of the stretches that lose their oldest events
    reorder: float = 0.0  # share of the stretches with a shuffled part
    hidden: float = 0.2  # share of events that a backbone that looks both ways is not shown, and learns
    bfloat16: bool = True  # products of the backbone while learning: several times faster on a CPU that has them
    best_by: str = "loss"  # on the validation part; or RANKED, where the ranking is what counts


# What a log wants: names too rare to be learned by heart, or each name seen so often that little else counts.
SPARSE = Recipe()
DENSE = Recipe(
    weight_decay=0.1,
    epochs=24,
    patience=4,
    positions=8192,
    overlap=0.0,
    dropout=0.2,
    mask_items=0.0,
    mask_categories=0.0,
    best_by=RANKED,
)


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
        self.learns = material.learning()
        wanted = int(self.learns.sum()) // STEPS
        self.positions = recipe.positions or min(MAX_POSITIONS, max(MIN_POSITIONS, wanted))
        self.clock = Clock(steps=recipe.epochs * len(list(self.batches(0))), budget_s=budget_s)
        self.model.narrow = recipe.bfloat16
        self.weights = LossWeights(material.constant()).to(self.device)
        weights = [*groups(model, recipe.weight_decay), *groups(self.weights, 0.0)]
        self.optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate)
        self.log_share = shares(material).to(self.device) if len(material.vocabulary.items.names) > FULL else None

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
            judged = -found[RANKED] if RANKED in found else found["loss"]
            if judged < best:
                best, best_epoch, metrics = judged, epoch, found
                state = copy.deepcopy(self.model.state_dict())
            if epoch - best_epoch >= self.recipe.patience or self.clock.share() >= 1:
                break
        self.model.narrow = False
        if not state:
            return 0, {}
        self.model.load_state_dict(state)
        self.model.eval()
        return best_epoch, metrics if len(checked) else {}

    def epoch(self) -> float:
        """Every chunk once, or until the budget is over; returns the last loss."""
        self.model.train()
        loss = math.inf
        for starts, lengths, begins in self.batches(int(self.random.integers(1 << 30))):
            loss = self.step(starts, lengths, begins)
            if self.clock.budget_s is not None and self.clock.share() >= 1:
                break
        return loss

    def batches(self, offset: int) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Chunks of similar length together, in random order."""
        material = self.material
        starts, lengths, begins = chunks(
            material.data, material.learn_until, material.rule, offset, self.recipe.overlap
        )
        if self.recipe.crop:
            starts, lengths = crop(starts, lengths, self.recipe.crop, self.random)
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
        if self.recipe.reorder:
            batch, learns = reorder(batch, learns, self.recipe.reorder, self.random)
        hidden = None
        if self.model.config.backbone == "bert":
            hidden, learns = self.hide(learns, lengths)
        labels = make_labels(self.material, index, learns, self.learns, self.material.learned).to(self.device)
        heads = self.model(batch, hidden=hidden)
        loss = self.weights(losses(self.model, heads, batch, labels, self.log_share))
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.clock.share(), self.recipe.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.clock.step += 1
        value = float(loss.detach())
        self.report(Progress(self.phase, int(1000 * self.clock.share()), 1000, value))
        return value

    def hide(self, learns: Bools, lengths: Ints) -> tuple[Tensor, Bools]:
        """Which events are not shown, [B, L], and what learns then: what comes before one, and the last event."""
        hidden = self.random.random(learns.shape) < self.recipe.hidden
        before = np.roll(hidden, -1, axis=1)
        before[np.arange(len(lengths)), lengths - 1] = True
        return torch.from_numpy(hidden).to(self.device), learns & before

    def positions_to_check(self) -> Ints:
        """Events that validate; a seeded sample where there are many. A ranking asks only where something came next."""
        found, most = self.material.checking(), VALIDATION_WINDOWS
        if self.recipe.best_by == RANKED:
            found = found[self.material.checked.next[found] >= 0]
            most = RANKED_WINDOWS
        if len(found) > most:
            found = np.sort(self.random.choice(found, most, replace=False))
        return found

    @torch.inference_mode()
    def validate(self, last: Ints) -> dict[str, float]:
        """Mean losses, each event predicted from its own window as in serving; "loss" is their weighted sum."""
        material, data = self.material, self.material.data
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
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
            heads: Heads = self.model(batch, last=True)
            parts = losses(self.model, heads, batch, labels.to(self.device))
            if self.recipe.best_by == RANKED:
                parts |= {RANKED: self.gain(heads, batch, labels.item_rows.to(self.device))}
            for name, (total, count) in parts.items():
                sums[name][0] += float(total)
                sums[name][1] += count
            self.report(Progress("validate", begin + len(some), len(last)))
        means = {name: total / count for name, (total, count) in sums.items() if count}
        found = {"loss": sum(weight * means[name] for name, weight in WEIGHTS.items() if name in means), **means}
        self.report(Progress("validate", len(last), len(last), found["loss"], found))
        return found

    def gain(self, heads: Heads, batch: Batch, wanted: Tensor) -> tuple[Tensor, int]:
        """Sum of NDCG@10 of the next items' ranks among the known ones, ties to the others; wanted [B, 1] rows."""
        names = self.material.vocabulary.items
        against = table(self.model.item_table(), names, self.material.vocabulary.item_counts)
        scores = distribution(heads.items, batch.item_ids, against, None)  # [B, N + 1]
        scores[:, 0] = -1  # "none of these"
        asked = wanted[:, 0] >= 0
        classes = (wanted - names.first + 1).clamp(min=0)  # [B, 1]
        rank = (scores >= scores.gather(1, classes)).sum(-1)
        good = asked & (classes[:, 0] > 0) & (rank <= 10)
        return torch.where(good, 1 / torch.log2(1.0 + rank), 0.0).sum(), int(asked.sum())


def shares(material: Material) -> Tensor:
    """Log frequency of each item of the learning part, and of "none of these", [N + 1]."""
    names = material.vocabulary.items
    return log_share(material.item_rows[material.inside()], names.first, names.rows)


def schedule(share: float, warmup: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine down to 2 %."""
    if share < warmup:
        return max(0.01, share / warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Matrices decay, vectors do not."""
    weights: list[Tensor] = list(model.parameters())
    return [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": weight_decay},
        {"params": [weight for weight in weights if weight.ndim <= 1], "weight_decay": 0.0},
    ]
