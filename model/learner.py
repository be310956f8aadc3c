"""Steps: batches of chunks, a loss, an optimiser; validation after each epoch; the best weights are kept.

A run can be taken down at any step and taken up again: the same weights come out, to the bit. Several processes share
every batch; up to rounding and to what dropout drops they learn what one would. It knows nothing of files, frames or names.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.answers import distribution, table
from model.augmentation import crop, reorder
from model.checkpoint import Checkpoint
from model.features import Batch, Ints, pad
from model.group import ALONE, Group
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
JUDGED = (*WEIGHTS, RANKED)  # what is summed over positions


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
    bf16: bool = False  # forward pass under autocast to bfloat16: faster on GPUs that have it
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


@dataclass(slots=True)
class Course:
    """How far a run has come."""

    epoch: int = 0  # epochs that are over
    batch: int = 0  # batches of the next one that are over
    loss: float = math.inf  # of the last batch
    best_loss: float = math.inf
    best_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=lambda: {"loss": math.nan})
    ended: bool = False


Keep = Callable[[Checkpoint], None]


class Learner:
    """One network on one material; `keep` is handed a checkpoint after each epoch, and every `keep_every_s` within one."""

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
        group: Group = ALONE,
        keep: Keep | None = None,
        keep_every_s: float = 60.0,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)  # type: ignore[arg-type]  # transformers narrows the type of torch's method
        self.material = material
        self.recipe = recipe
        self.report = report
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
        self.model.narrow = recipe.bfloat16
        self.weights = LossWeights(material.constant()).to(self.device)
        weights = [*groups(model, recipe.weight_decay), *groups(self.weights, 0.0)]
        self.optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate)
        self.log_share = shares(material).to(self.device) if len(material.vocabulary.items.names) > FULL else None
        self.to_check = self.positions_to_check()
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
            found = self.validate(checked) if len(checked) else {"loss": -float(course.epoch + 1)}
            self.curve.append((means(self.group.add(self.sums.clone())), found if len(checked) else {}))
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
        """Hands over a copy of all that `restore` needs to go on from here."""
        if self.keep is None:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"weights.{name}": value for name, value in self.weights.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in values.items()}
        generators = self.group.collect(_generators(self.device))
        tensors |= {f"generators.{rank}": value for rank, value in enumerate(generators)}
        tensors |= {f"sums.{rank}": value for rank, value in enumerate(self.group.collect(self.sums))}
        elapsed = time.monotonic() - self.clock.begun
        state = {
            "course": asdict(self.course),
            "step": self.clock.step,
            "elapsed_s": elapsed,
            "random": self.epoch_begun,
            "curve": list(self.curve),
        }
        self.keep(Checkpoint({name: value.cpu().clone() for name, value in tensors.items()}, state))
        self.kept = time.monotonic()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes on from a checkpoint of an equal learner."""
        tensors, state = checkpoint.tensors, checkpoint.state
        self.model.load_state_dict(_under("model.", tensors))
        self.weights.load_state_dict(_under("weights.", tensors))
        self.best = {name: value.to(self.device) for name, value in _under("best.", tensors).items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            number, _, moment = name.partition(".")
            moments.setdefault(int(number), {})[moment] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.course = Course(**state["course"])
        self.curve = [(training, validation) for training, validation in state["curve"]]
        self.sums = tensors[f"sums.{self.group.rank}"].clone()
        self.clock.step, self.clock.begun = state["step"], time.monotonic() - state["elapsed_s"]
        self.random.bit_generator.state = self.epoch_begun = state["random"]
        _set_generators(tensors[f"generators.{self.group.rank}"], self.device)

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
        value = float(self.group.add(loss.detach()))
        self.report(Progress(self.phase, int(1000 * self.clock.share()), 1000, value))
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
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            heads = self.model(batch, hidden=hidden)
        parts = losses(self.model, widened(heads) if self.recipe.bf16 else heads, batch, labels, self.log_share)
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
        last = last[self.group.rank :: self.group.size]
        sums = torch.zeros(len(JUDGED), 2, dtype=torch.float64)
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
            sums += sums_of(parts)
            self.report(Progress("validate", begin + len(some), len(last)))
        found = means(self.group.add(sums))
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


def sums_of(parts: dict[str, tuple[Tensor, int]]) -> Tensor:
    """Sum and number of positions of each of `JUDGED`, 0 and 0 where it is not among the parts, [J, 2] on the CPU."""
    sums = torch.zeros(len(JUDGED), 2, dtype=torch.float64)
    totals = torch.stack([total.detach().double() for total, _ in parts.values()]).cpu()
    for (name, (_, count)), total in zip(parts.items(), totals, strict=True):
        place = JUDGED.index(name)
        sums[place, 0], sums[place, 1] = total, count
    return sums


def means(sums: Tensor) -> dict[str, float]:
    """Means of those that had a position; "loss" is the weighted sum of the heads' losses, by the weights not learned."""
    found = {name: total / count for name, (total, count) in zip(JUDGED, sums.tolist(), strict=True) if count}
    return {"loss": sum(weight * found[name] for name, weight in WEIGHTS.items() if name in found), **found}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _generators(device: torch.device) -> Tensor:
    """The states of torch's random generators, end to end: the CPU's, then the GPU's where that learns, uint8 [S]."""
    states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]
    return torch.cat(states)


def _set_generators(states: Tensor, device: torch.device) -> None:
    length = len(torch.get_rng_state())
    torch.set_rng_state(states[:length])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[length:], device)


def widened(part: Any) -> Any:
    """The same heads, mixture or tensor in float32, which sums of losses need."""
    if part is None:
        return None
    if isinstance(part, Tensor):
        return part.float()
    return replace(part, **{one.name: widened(getattr(part, one.name)) for one in fields(part)})


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
