"""Steps: batches of chunks, a loss, an optimiser; validation after each epoch; the best weights are kept.

A run can be taken down at any step and taken up again: the same weights come out, to the bit. Several processes share
every batch; up to rounding and to what dropout drops they learn what one would. It knows nothing of files, frames or names.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.artifact import Epoch
from model.augmentation import crop, reorder
from model.average import Average
from model.callbacks import Callback, Progress
from model.checkpoint import Checkpoint
from model.course import Clock, Course, schedule
from model.features import Ints, pad
from model.group import ALONE, Group
from model.losses import LossWeights, losses
from model.material import Bools, Material, log_share, make_labels
from model.network import COUNTED, NextMoveModel
from model.recipe import RANKED, Recipe
from model.sequences import chunks
from model.snapshot import snapshot
from model.softmax import FULL
from model.validation import JUDGED, Validation, means, sums_of

STEPS = 128  # per epoch, within what a step can hold
MIN_POSITIONS, MAX_POSITIONS = 256, 4096

Keep = Callable[[Checkpoint], None]


class Learner:
    """One network on one material; `keep` is handed a checkpoint after each epoch, and every `keep_every_s` within one."""

    def __init__(
        self,
        model: NextMoveModel,
        material: Material,
        recipe: Recipe,
        seed: int,
        callback: Callback,
        *,
        budget_s: float | None = None,
        device: str = "cpu",
        phase: str = "train",
        group: Group = ALONE,
        keep: Keep | None = None,
        keep_every_s: float = 60.0,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)  # type: ignore[arg-type]  # transformers narrows the type of torch's method
        self.material = material
        self.recipe = recipe
        self.callback = callback
        self.phase = phase
        self.group = group
        self.keep = keep
        self.keep_every_s, self.kept = keep_every_s, time.monotonic()
        self.random = np.random.default_rng(seed)
        self.curve: list[tuple[dict[str, float], dict[str, float]]] = []  # per epoch: training and validation losses
        self.sums = torch.zeros(len(JUDGED), 2, dtype=torch.float64)  # of this process and epoch so far
        self.learns = material.learning()
        wanted = int(self.learns.sum()) // STEPS
        self.positions = recipe.positions or min(MAX_POSITIONS, max(MIN_POSITIONS, wanted))
        self.clock = Clock(steps=recipe.epochs * len(list(self.batches(0))), budget_s=budget_s)
        if recipe.bfloat16 == "auto":
            raise ValueError("a learner wants to be told what to compute in bfloat16: see `model.order.decided`")
        self.model.narrow = recipe.bfloat16 != "off"
        self.weights = LossWeights(material.constant()).to(self.device)
        weights = [*groups(model, recipe.weight_decay), *groups(self.weights, 0.0)]
        self.optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate)
        self.average = Average(self.model.parameters(), recipe.average)
        self.log_share = shares(material).to(self.device) if len(material.vocabulary.items.names) > FULL else None
        ranks = recipe.best_by == RANKED
        self.validation = Validation(self.model, material, ranks, self.device, group, callback)
        self.to_check = self.validation.positions(self.random)
        self.course = Course()
        self.best: dict[str, Tensor] = {}  # weights
        self.epoch_begun = self.random.bit_generator.state  # from which the batches of the epoch under way follow
        self.seed = seed
        self.within = np.random.default_rng(seed)  # what is drawn within a step, by each process for itself

    def run(self, stop_after: int | None = None) -> tuple[int, dict[str, float]]:
        """Learns; returns how many epochs the kept weights have seen, and their validation losses.

        Without validation events, or with `stop_after`, the last weights are kept.
        """
        checked = self.to_check if stop_after is None else np.zeros(0, np.int64)
        course = self.course
        while course.epoch < (stop_after or self.recipe.epochs) and not course.ended:
            if not math.isfinite(self.epoch()):
                break
            with self.average.shown():
                found = self.validate(checked) if len(checked) else {"loss": -float(course.epoch + 1)}
                self.curve.append((means(self.group.add(self.sums.clone())), found if len(checked) else {}))
                self.callback.on_epoch(Epoch(self.phase, len(self.curve), *self.curve[-1]))
                self._judge(found)
            self.snapshot()
        self.model.narrow = False
        if not self.best:
            return 0, {}
        self.model.load_state_dict(self.best)
        self.model.eval()
        return course.best_epoch, course.metrics if len(checked) else {}

    def _judge(self, found: dict[str, float]) -> None:
        """The end of an epoch: keeps its weights where they are the best so far, and says whether to go on."""
        course = self.course
        course.epoch, course.batch = course.epoch + 1, 0
        self.epoch_begun = self.random.bit_generator.state
        judged = -found[RANKED] if RANKED in found else found["loss"]
        if judged < course.best_loss:
            course.best_loss, course.best_epoch, course.metrics = judged, course.epoch, found
            self.best = copy.deepcopy(self.model.state_dict())
        course.ended = course.epoch - course.best_epoch >= self.recipe.patience or self.share() >= 1

    def epoch(self) -> float:
        """Every chunk once, or until the budget is over; returns the last loss. Batches that are over are left out."""
        self.model.train()
        if self.course.batch == 0:
            self.sums.zero_()
        batches = self.batches(int(self.random.integers(1 << 30)))
        for starts, lengths, begins in islice(batches, self.course.batch, None):
            self.course.loss = self.step(starts, lengths, begins)
            self.course.batch += 1
            if self.clock.budget_s is not None and self.share() >= 1:
                break
            if self.keep is not None and self.group.agree(time.monotonic() - self.kept) >= self.keep_every_s:
                self.snapshot()
        return self.course.loss

    def share(self) -> float:
        """How much of the schedule is over, the same for all processes, 0 … 1."""
        share = self.clock.share()
        return share if self.clock.budget_s is None else self.group.agree(share)

    def snapshot(self) -> None:
        """Hands over a copy of all that is needed to go on from here."""
        if self.keep is not None:
            self.keep(snapshot(self))
            self.kept = time.monotonic()

    def batches(self, offset: int) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Chunks of similar length together, in random order."""
        material = self.material
        starts, lengths, begins = chunks(
            material.data, material.learn_until, material.rule, offset, self.recipe.overlap
        )
        if material.since:
            new = material.data.order[starts + lengths - 1] >= material.since
            kept = np.flatnonzero(new | (self.random.random(len(starts)) < self.recipe.replay))
            starts, lengths, begins = starts[kept], lengths[kept], begins[kept]
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
        loss = self.loss(*self._own(starts, lengths, begins))
        share = self.share()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(share, self.recipe.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.group.add_gradients([*self.model.parameters(), *self.weights.parameters()])
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.clock.step += 1
        self.average.update(self.clock.step)
        value = float(self.group.add(loss.detach()))
        share_done = int(1000 * self.clock.share())
        self.callback.on_step(Progress(self.phase, share_done, 1000, value, batches=self.clock.step))
        return value

    def _own(self, starts: Ints, lengths: Ints, begins: Ints) -> tuple[Ints, Ints, Ints]:
        """The share of a batch that is this process's; a chunk from which nothing learns where there are too few."""
        own = slice(self.group.rank, None, self.group.size)
        if self.group.rank < len(starts):
            return starts[own], lengths[own], begins[own]
        return starts[:1], lengths[:1], (starts + lengths)[:1]

    def loss(self, starts: Ints, lengths: Ints, begins: Ints) -> Tensor:
        """What this process adds to the weighted mean losses of a batch: sums of its own over the counts of all."""
        width = int(lengths.max())
        batch = pad(self.material.columns, starts, lengths, width).to(self.device)
        index = starts[:, None] + np.arange(width)  # [B, L]
        learns: Bools = (index >= begins[:, None]) & (index < (starts + lengths)[:, None])
        self.within = np.random.default_rng((self.seed, self.clock.step, self.group.rank))
        if self.recipe.reorder:
            batch, learns = reorder(batch, learns, self.recipe.reorder, self.within)
        hidden = None
        if self.model.config.backbone == "bert":
            hidden, learns = self.hide(learns, lengths)
        labels = make_labels(self.material, index, learns, self.learns, self.material.learned).to(self.device)
        everything = self.recipe.bfloat16 == "all"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=everything):
            heads = self.model(batch, hidden=hidden)
        parts = losses(self.model, widened(heads) if everything else heads, batch, labels, self.log_share)
        self.sums += sums_of(parts)
        counts = self.group.add(torch.tensor([count for _, count in parts.values()])).tolist()
        weighted: Tensor = self.weights(parts, counts, 1 / self.group.size)
        return weighted

    def hide(self, learns: Bools, lengths: Ints) -> tuple[Tensor, Bools]:
        """Which events are not shown, [B, L], and what learns then: what comes before one, and the last event."""
        hidden = self.within.random(learns.shape) < self.recipe.hidden
        before = np.roll(hidden, -1, axis=1)
        before[np.arange(len(lengths)), lengths - 1] = True
        return torch.from_numpy(hidden).to(self.device), learns & before

    def validate(self, last: Ints) -> dict[str, float]:
        """Mean losses on the validation part, as `Validation.measure`."""
        return self.validation.measure(last)


def shares(material: Material) -> Tensor:
    """Log frequency of each item of the learning part, and of "none of these", [N + 1]."""
    names = material.vocabulary.items
    return log_share(material.item_rows[material.inside()], names.first, names.rows)


def widened(part: Any) -> Any:
    """The same heads, mixture or tensor in float32, which sums of losses need."""
    if isinstance(part, Tensor):
        return part.float()
    return None if part is None else type(part)(*map(widened, part))


def groups(model: nn.Module, weight_decay: float) -> list[dict[str, list[Tensor] | float]]:
    """Matrices decay; vectors do not, nor does what begins as counts of the log and would lose them."""
    decaying, lasting = list[Tensor](), list[Tensor]()
    for name, weight in model.named_parameters():
        (decaying if weight.ndim > 1 and name not in COUNTED else lasting).append(weight)
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": lasting, "weight_decay": 0.0}]
