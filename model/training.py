"""A table of events in, a published model out.

The split is by global time: the last part of the training range is held back, training stops when that part is no
longer predicted better, and the best weights are kept. Progress goes to a callback; nothing is printed.
"""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from model import artifact
from model.artifact import Artifact, ArtifactError, Golden, Manifest, TrainingRange
from model.config import PRESETS, NextMoveConfig
from model.engine import GOLDEN_TOP_K, Engine
from model.features import NO_IDENTITY, Batch, Columns, Ints, encode, pad
from model.losses import WEIGHTS, Labels, losses
from model.network import NextMoveModel
from model.sequences import FrameError, Sequences, chunks, sequences, window_list
from model.targets import Horizons, Targets, targets
from model.vocabulary import Vocabulary, VocabularyError, build
from model.window import DAY_MS, WindowRule

GOLDEN_WINDOWS = 8
BATCH_POSITIONS = 2048  # events per step
VALIDATION_WINDOWS = 4096
PATIENCE = 3  # epochs without improvement


class TrainingError(Exception):
    """Training cannot start or finish; the message is one line."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a command line may draw."""

    phase: str  # "prepare", "train", "validate", "save"
    step: int
    total: int
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came of a training."""

    directory: Path
    version: str
    epochs: int
    seconds: float
    events: int
    users: int
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the weights are learned, beside the preset."""

    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the training
    epochs: int = 20


@dataclass(slots=True)
class Material:
    """Everything the steps need, computed once."""

    data: Sequences
    columns: Columns
    vocabulary: Vocabulary
    labels: Targets
    validation_labels: Targets
    learn_until: int  # place in the log
    train_until: int  # place in the log
    rule: WindowRule
    horizons: Horizons


@dataclass(slots=True)
class Clock:
    """How far a training is: by steps, or by time where there is a budget."""

    steps: int
    budget_s: float | None
    begun: float = field(default_factory=time.monotonic)
    step: int = 0

    def share(self) -> float:
        """0 … 1 of the training is over."""
        done = self.step / max(1, self.steps)
        if self.budget_s is not None:
            done = max(done, self.seconds() / self.budget_s)
        return min(done, 1.0)

    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.begun


def train(
    frame: pl.DataFrame,
    behaviors: Sequence[str],
    goal: str,
    out: Path,
    *,
    preset: str = "small",
    seed: int = 0,
    train_until: float = 0.8,
    validation: float = 0.1,
    time_budget_s: float | None = None,
    epochs: int | None = None,
    window: WindowRule | None = None,
    horizons: Horizons | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "auto",
) -> TrainResult:
    """Learns from the first `train_until` of the events by time and publishes the model at `out`.

    The last `validation` share of those decides when to stop. `time_budget_s` bounds preparing and learning; with it
    the result depends on the machine's speed, without it the same seed gives the same model.
    Raises TrainingError with one line.
    """
    begun = time.monotonic()
    report = progress or (lambda _: None)
    if preset not in PRESETS:
        raise TrainingError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if not (0 < train_until <= 1 and 0 <= validation < 1):
        raise TrainingError(f"train_until must be in (0, 1] and validation in [0, 1), got {train_until}, {validation}")
    report(Progress("prepare", 0, 1))
    try:
        artifact.check_place(Path(out))
        material = prepare(frame, behaviors, goal, train_until, validation, window or WindowRule(), horizons)
    except (FrameError, VocabularyError, ArtifactError) as error:
        raise TrainingError(str(error)) from error
    report(Progress("prepare", 1, 1))
    remaining = None if time_budget_s is None else max(1.0, time_budget_s - (time.monotonic() - begun))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(material, preset)
        learner = Learner(model, material, seed, Recipe(), remaining, epochs, report, device)
        learner.run()
    report(Progress("save", 0, 1))
    manifest = save(Path(out), learner, preset, seed)
    report(Progress("save", 1, 1))
    return TrainResult(
        directory=Path(out),
        version=manifest.version,
        epochs=learner.best_epoch,
        seconds=time.monotonic() - begun,
        events=manifest.training.events,
        users=manifest.training.users,
        metrics=dict(manifest.metrics),
    )


def prepare(
    frame: pl.DataFrame, behaviors: Sequence[str], goal: str, train_until: float, validation: float, rule: WindowRule,
    horizons: Horizons | None,
) -> Material:
    """Groups, counts, encodes and labels; raises TrainingError, FrameError or VocabularyError."""
    data = sequences(frame)
    until = max(1, int(len(data) * train_until))
    learn_until = until - int(until * validation)
    inside = data.order < until
    vocabulary = build_vocabulary(data, inside, behaviors, goal)
    times = np.sort(data.times_ms[inside])
    if horizons is None:
        horizons = default_horizons(int(times[len(times) // 100]), int(times[-1]))
    is_goal = np.fromiter((name == goal for name in data.behaviors), np.bool_, len(data))
    learn_end = int(data.times_ms[data.order < learn_until].max(initial=int(times[0])))
    material = Material(
        data=data,
        columns=encode(data.whole(), vocabulary),
        vocabulary=vocabulary,
        labels=targets(data.users, data.times_ms, is_goal, horizons, learn_end),
        validation_labels=targets(data.users, data.times_ms, is_goal, horizons, int(times[-1])),
        learn_until=learn_until,
        train_until=until,
        rule=rule,
        horizons=horizons,
    )
    if not learning(material).any():
        raise TrainingError("nothing to learn: no user has two events in the training part")
    return material


def default_horizons(from_ms: int, until_ms: int) -> Horizons:
    """A day for the goal and three days for churn, less where the log is too short to show enough of both answers."""
    span = max(1, until_ms - from_ms)
    return Horizons(goal_ms=min(DAY_MS, max(1000, span // 5)), churn_ms=min(3 * DAY_MS, max(1000, span // 5)))


def build_vocabulary(data: Sequences, inside: np.ndarray, behaviors: Sequence[str], goal: str) -> Vocabulary:
    """Names of the training part only."""
    kept = np.flatnonzero(inside).tolist()
    items = Counter(item for item in map(data.items.__getitem__, kept) if item is not None)
    categories = Counter(name for name in map(data.categories.__getitem__, kept) if name is not None)
    item_category = {
        item: category
        for item, category in ((data.items[k], data.categories[k]) for k in kept)
        if item is not None and category is not None
    }
    return build(items, categories, item_category, behaviors, goal)


def learning(material: Material) -> np.ndarray:
    """Which events have a next event to learn from, [N]."""
    following = material.labels.next
    return (following >= 0) & (material.data.order[following] < material.learn_until)  # type: ignore[no-any-return]


def new_model(material: Material, preset: str) -> NextMoveModel:
    """A network that begins with the frequencies of the log as its biases."""
    vocabulary = material.vocabulary
    config = NextMoveConfig(
        item_rows=vocabulary.items.rows,
        item_first=vocabulary.items.first,
        category_rows=vocabulary.categories.rows,
        category_first=vocabulary.categories.first,
        behavior_rows=vocabulary.behaviors.rows,
        behavior_first=vocabulary.behaviors.first,
        session_gap_ms=material.rule.session_gap_ms,
        **PRESETS[preset],
    )
    model = NextMoveModel(config)
    with torch.no_grad():
        model.item_bias.copy_(_log_share(vocabulary.item_counts))
        model.category_bias.copy_(_log_share(vocabulary.category_counts))
        model.item_categories[vocabulary.items.first :] = torch.tensor(vocabulary.item_categories, dtype=torch.int64)
        seen = np.bincount(material.columns.behavior_rows, minlength=config.behavior_rows)[config.behavior_first :]
        model.behavior_head.bias.copy_(torch.log(torch.tensor(seen + 1.0) / (seen + 1.0).sum()))
    return model


def _log_share(counts: Sequence[int]) -> Tensor:
    seen = torch.tensor([1, *counts], dtype=torch.float32)
    return torch.log(seen / seen.sum())


class Learner:
    """Learns until the validation part is no longer predicted better, and keeps the best weights."""

    def __init__(
        self, model: NextMoveModel, material: Material, seed: int, recipe: Recipe, budget_s: float | None,
        epochs: int | None, report: Callable[[Progress], None], device: str,
    ) -> None:
        self.device = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else
                                   "cpu" if device == "auto" else device)
        self.model = model.to(self.device)
        self.material = material
        self.recipe = recipe
        self.report = report
        self.random = np.random.default_rng(seed)
        self.epochs = recipe.epochs if epochs is None else epochs
        self.learns = learning(material)
        positions = int(self.learns.sum())
        self.clock = Clock(steps=self.epochs * max(1, math.ceil(positions * 1.6 / BATCH_POSITIONS)), budget_s=budget_s)
        self.optimizer = torch.optim.AdamW(_groups(model, recipe.weight_decay), lr=recipe.learning_rate)
        self.validation = self._validation_positions()
        self.best_loss = math.inf
        self.best_epoch = 0
        self.best_state: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}

    def run(self) -> None:
        """Epochs until the clock or the validation part says stop."""
        epoch, since_best = 0, 0
        while epoch < self.epochs and since_best < PATIENCE and self.clock.share() < 1:
            epoch += 1
            self.model.train()
            for starts, lengths, begins in self.batches():
                self.step(starts, lengths, begins)
                if self.clock.share() >= 1 and self.clock.budget_s is not None:
                    break
            loss = self.validate()
            since_best += 1
            if loss < self.best_loss:
                self.best_loss, self.best_epoch, since_best = loss, epoch, 0
                self.best_state = copy.deepcopy(self.model.state_dict())
        if not self.best_state:
            raise TrainingError("training diverged: the loss is not a number")
        self.model.load_state_dict(self.best_state)
        self.model.eval()

    def batches(self) -> Iterator[tuple[Ints, Ints, Ints]]:
        """Chunks of similar length together, in random order."""
        rule, data = self.material.rule, self.material.data
        offset = int(self.random.integers(1 << 30))
        starts, lengths, begins = chunks(data, self.material.learn_until, rule, offset)
        order = np.argsort(lengths + self.random.random(len(lengths)) * 4, kind="stable")
        ends = np.cumsum(lengths[order]) // BATCH_POSITIONS
        parts = np.split(order, np.flatnonzero(np.diff(ends)) + 1)
        for number in self.random.permutation(len(parts)).tolist():
            part = parts[number]
            yield starts[part], lengths[part], begins[part]

    def step(self, starts: Ints, lengths: Ints, begins: Ints) -> None:
        """One batch."""
        width = int(lengths.max())
        batch = pad(self.material.columns, starts, lengths, width).to(self.device)
        index = starts[:, None] + np.arange(width)  # [B, L]
        learns = (index >= begins[:, None]) & (index < (starts + lengths)[:, None])
        labels = make_labels(self.material, self.material.labels, index, learns, self.learns, self.device)
        parts = losses(self.model, self.model(batch), batch, labels)
        loss = torch.stack([WEIGHTS[name] * total / max(count, 1) for name, (total, count) in parts.items()]).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.learning_rate * schedule(self.clock.share(), self.recipe.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.clock.step += 1
        self.report(Progress("train", int(1000 * self.clock.share()), 1000, float(loss.detach())))

    def validate(self) -> float:
        """Weighted loss on the validation part, each event predicted from its own window as in serving."""
        last = self.validation
        sums: dict[str, list[float]] = {name: [0.0, 0.0] for name in WEIGHTS}
        self.model.eval()
        material = self.material
        everything = np.ones(len(material.data), np.bool_)
        with torch.inference_mode():
            for begin in range(0, len(last), 256):
                some = last[begin : begin + 256]
                starts = material.data.window_starts(some, material.rule)
                lengths = some - starts + 1
                batch = pad(material.columns, starts, lengths, int(lengths.max())).to(self.device)
                index = some[:, None]  # [B, 1]
                labels = make_labels(
                    material, material.validation_labels, index, index >= 0, everything, self.device
                )
                for name, (total, count) in losses(self.model, self.model(batch, last=True), batch, labels).items():
                    sums[name][0] += float(total)
                    sums[name][1] += count
                self.report(Progress("validate", begin + len(some), len(last)))
        self.metrics = {f"{name}_loss": total / count for name, (total, count) in sums.items() if count}
        return sum(WEIGHTS[name] * total / count for name, (total, count) in sums.items() if count)

    def _validation_positions(self) -> Ints:
        """Events whose next event lies in the validation part; without one, some of those learned from."""
        following = self.material.labels.next
        place = self.material.data.order[following]
        held_back = (following >= 0) & (place >= self.material.learn_until) & (place < self.material.train_until)
        found = np.flatnonzero(held_back if held_back.any() else self.learns)
        if len(found) > VALIDATION_WINDOWS:
            found = np.sort(self.random.choice(found, VALIDATION_WINDOWS, replace=False))
        return found


def make_labels(
    material: Material, labels: Targets, index: Ints, learns: np.ndarray, next_counts: np.ndarray, device: torch.device
) -> Labels:
    """Labels of the events at `index` [B, T] where `learns`; the next event only where it is in the learning part."""
    index = np.minimum(index, len(material.data) - 1)
    following = labels.next[index]
    counts = learns & (following >= 0) & next_counts[index]
    columns = material.columns

    def of_next(column: Ints) -> Tensor:
        return torch.from_numpy(np.where(counts, column[following], NO_IDENTITY))

    def answer(value: np.ndarray, known: np.ndarray) -> Tensor:
        return torch.from_numpy(np.where(learns & known[index], value[index], -1).astype(np.float32))

    seconds = np.log1p(labels.gap_ms[index] / 1000).astype(np.float32)
    return Labels(
        item_ids=of_next(columns.item_ids),
        item_rows=of_next(columns.item_rows),
        category_ids=of_next(columns.category_ids),
        category_rows=of_next(columns.category_rows),
        behavior_rows=of_next(columns.behavior_rows),
        log_seconds=torch.from_numpy(np.where(counts, seconds, np.float32(-1))),
        goal=answer(labels.goal, labels.goal_known),
        churn=answer(labels.churn, labels.churn_known),
    ).to(device)


def schedule(share: float, warmup: float) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine down to 2 %."""
    if share < warmup:
        return max(0.01, share / warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def _groups(model: NextMoveModel, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay, vectors do not."""
    weights = list(model.parameters())
    return [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]


def save(out: Path, learner: Learner, preset: str, seed: int) -> Manifest:
    """Publishes the model with golden answers of its own."""
    material = learner.material
    data = material.data
    inside = data.order < material.train_until
    times = data.times_ms[inside]
    manifest = Manifest(
        schema=artifact.SCHEMA,
        version="",
        window=material.rule,
        behaviors=list(material.vocabulary.behaviors.names),
        goal=material.vocabulary.goal,
        goal_horizon_ms=material.horizons.goal_ms,
        churn_horizon_ms=material.horizons.churn_ms,
        training=TrainingRange(
            events=int(inside.sum()),
            users=len(np.unique(data.users[inside])),
            from_ms=int(times.min()),
            until_ms=int(times.max()),
            preset=preset,
            seed=seed,
            epochs=learner.best_epoch,
        ),
        metrics={"loss": learner.best_loss, **learner.metrics},
        popular_items=material.vocabulary.popular_items(),
        golden=[],
    )
    parts = Artifact(learner.model.to("cpu").eval(), material.vocabulary, manifest)
    kept = np.flatnonzero(inside)
    some = kept[np.linspace(0, len(kept) - 1, GOLDEN_WINDOWS).astype(np.int64)]
    windows = window_list(data, some.tolist(), material.rule)
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    golden = [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]
    import msgspec

    manifest = msgspec.structs.replace(manifest, golden=golden)
    try:
        return artifact.publish(out, Artifact(parts.model, parts.vocabulary, manifest))
    except ArtifactError as error:
        raise TrainingError(str(error)) from error
