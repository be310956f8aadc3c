"""A table of events in, a published model out.

Two passes. The first learns from all but the last part of the training range and finds, on that last part, when to stop
and how good the model is. The second learns again from the whole range, as long as the first one found best: what is
newest matters most for what comes next. With a time budget there is only the first pass. Progress goes to a callback;
nothing is printed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import torch

from model import artifact
from model.artifact import Artifact, ArtifactError, Golden, Manifest, TrainingRange
from model.config import BACKBONES, PRESETS, NextMoveConfig
from model.engine import GOLDEN_TOP_K, Engine, choose_device
from model.evaluation import EvaluationError, evaluate
from model.learner import DENSE, RANKED, SPARSE, Learner, Progress, Recipe
from model.material import Material, default_horizons, log_share, prepare
from model.network import NextMoveModel
from model.sequences import FrameError, Sequences, sequences, usable, window_list
from model.targets import Horizons
from model.vocabulary import VocabularyError
from model.window import WindowRule

__all__ = ["Progress", "TrainResult", "TrainingError", "train"]

GOLDEN_WINDOWS = 8
LEARNING = 0.8  # of a time budget; the rest is for validating and saving
MANIFEST_MEASURES = (
    "item NDCG@10",
    "item HR@10",
    "category HR@1",
    "behavior accuracy",
    "behavior log-loss",
    "purchase AUC",
    "time pinball (log s)",
)


class TrainingError(Exception):
    """Training cannot start or finish; the message is one line."""


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
class Order:
    """What was asked for."""

    behaviors: Sequence[str]
    goal: str
    preset: str
    backbone: str
    seed: int
    rule: WindowRule
    horizons: Horizons | None
    validation: float
    budget_s: float | None
    epochs: int | None
    recipe: Recipe | None
    device: str


def train(
    frame: pl.DataFrame,
    behaviors: Sequence[str],
    goal: str,
    out: Path,
    *,
    preset: str = "small",
    backbone: str = "nextmove",
    seed: int = 0,
    train_until: float = 0.8,
    validation: float = 0.1,
    time_budget_s: float | None = None,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    window: WindowRule | None = None,
    horizons: Horizons | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "auto",
    threads: int | None = None,
) -> TrainResult:
    """Learns from the first `train_until` of the events by time and publishes the model at `out`.

    The last `validation` share of those decides when to stop; 0 means: learn all `epochs`. `time_budget_s` bounds the
    whole training, and the result then depends on the machine's speed; without it the same seed on the same machine
    gives the same model. `threads` is half the cores by default: the matrices are small, and threads that wait for
    a core that others use cost more than they bring. The recipe is chosen by the log unless one is given.
    Raises TrainingError with one line.
    """
    begun = time.monotonic()
    report = progress or (lambda _: None)
    if preset not in PRESETS:
        raise TrainingError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if backbone not in BACKBONES:
        raise TrainingError(f"no backbone {backbone!r}; there are {', '.join(BACKBONES)}")
    if not (0 < train_until <= 1 and 0 <= validation < 1):
        raise TrainingError(f"train_until must be in (0, 1] and validation in [0, 1), got {train_until}, {validation}")
    if epochs is not None and epochs < 1:
        raise TrainingError(f"epochs must be at least 1, got {epochs}")
    try:
        order = Order(
            behaviors,
            goal,
            preset,
            backbone,
            seed,
            window or WindowRule(),
            horizons,
            validation,
            time_budget_s,
            epochs,
            recipe,
            choose_device(device),
        )
        artifact.check_place(Path(out))
        frame = usable(frame).sort("timestamp", maintain_order=True)
        frame = frame.head(max(1, int(frame.height * train_until)))
        with torch.random.fork_rng(devices=[]), _threads(threads or max(1, (os.cpu_count() or 1) // 2)):
            manifest = _train(frame, order, Path(out), report, begun)
    except (FrameError, VocabularyError, ArtifactError) as error:
        raise TrainingError(str(error)) from error
    return TrainResult(
        directory=Path(out),
        version=manifest.version,
        epochs=manifest.training.epochs,
        seconds=time.monotonic() - begun,
        events=manifest.training.events,
        users=manifest.training.users,
        metrics=dict(manifest.metrics),
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """With this many threads for torch, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(frame: pl.DataFrame, order: Order, out: Path, report: Callable[[Progress], None], begun: float) -> Manifest:
    """Both passes; frame is the training range, sorted."""
    report(Progress("prepare", 0, 1))
    data = sequences(frame)
    made = _first_material(data, order)
    budget_s = None if order.budget_s is None else max(1.0, LEARNING * order.budget_s - (time.monotonic() - begun))
    first = _learner(made, order, report, "train", budget_s)
    report(Progress("prepare", 1, 1))
    validates = made.learn_until < len(data)
    epochs, losses = first.run(stop_after=None if validates else first.recipe.epochs)
    metrics = {_title(name): value for name, value in losses.items()}
    parts = assemble(first, order, epochs, metrics)
    metrics |= measure(parts, frame, made.learn_until / len(data))
    if order.budget_s is None and validates:
        made = prepare(data, len(data), order.behaviors, order.goal, order.rule, made.horizons)
        second = _learner(made, order, report, "refit")
        parts = assemble(second, order, second.run(stop_after=epochs)[0], metrics)
    parts = msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, metrics=metrics))
    report(Progress("save", 0, 1))
    published = artifact.publish(out, with_golden(parts, made))
    report(Progress("save", 1, 1))
    return published


def _first_material(data: Sequences, order: Order) -> Material:
    """All but the last part is learned from; everything where nothing could be learned otherwise."""
    horizons = order.horizons or default_horizons(data.times_ms)
    for until in (len(data) - int(len(data) * order.validation), len(data)):
        made = prepare(data, until, order.behaviors, order.goal, order.rule, horizons)
        if made.learning().any():
            return made
    raise TrainingError("nothing to learn: no user has two events in the training part")


def _learner(
    made: Material, order: Order, report: Callable[[Progress], None], phase: str, budget_s: float | None = None
) -> Learner:
    torch.manual_seed(order.seed)
    recipe = order.recipe or (DENSE if made.is_dense() else SPARSE)
    recipe = recipe if order.epochs is None else replace(recipe, epochs=order.epochs)
    model = new_model(made, order.preset, recipe, order.backbone)
    return Learner(model, made, recipe, order.seed, report, budget_s=budget_s, device=order.device, phase=phase)


def _title(name: str) -> str:
    if name == RANKED:
        return f"validation {RANKED}"
    return "validation loss" if name == "loss" else f"validation {name} loss"


def new_model(material: Material, preset: str, recipe: Recipe = SPARSE, backbone: str = "nextmove") -> NextMoveModel:
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
        backbone=backbone,
        positions=material.rule.events,
        copy=material.repeats(),
        dropout=recipe.dropout,
        unknown_items=recipe.mask_items,
        unknown_categories=recipe.mask_categories,
        **PRESETS[preset],
    )
    model = NextMoveModel(config)
    inside = material.inside()
    with torch.no_grad():
        model.item_bias.copy_(log_share(material.item_rows[inside], config.item_first, config.item_rows))
        model.category_bias.copy_(
            log_share(material.category_rows[inside], config.category_first, config.category_rows)
        )
        model.item_categories[vocabulary.items.first :] = torch.tensor(vocabulary.item_categories, dtype=torch.int64)
        behaviors = material.columns.behavior_rows[inside]
        model.behavior_head.bias.copy_(log_share(behaviors, config.behavior_first, config.behavior_rows)[1:])
    return model


def assemble(learner: Learner, order: Order, epochs: int, metrics: dict[str, float]) -> Artifact:
    """The parts of an artefact, without golden answers; raises TrainingError where no epoch ended with a number."""
    if epochs == 0:
        raise TrainingError("training diverged: the loss is not a number")
    material = learner.material
    inside = material.inside()
    times = material.data.times_ms[inside]
    manifest = Manifest(
        schema=artifact.SCHEMA,
        version="",
        window=order.rule,
        behaviors=list(material.vocabulary.behaviors.names),
        goal=order.goal,
        goal_horizon_ms=material.horizons.goal_ms,
        churn_horizon_ms=material.horizons.churn_ms,
        training=TrainingRange(
            events=int(inside.sum()),
            users=len(np.unique(material.data.users[inside])),
            from_ms=int(times.min()),
            until_ms=int(times.max()),
            preset=order.preset,
            seed=order.seed,
            epochs=epochs,
            backbone=order.backbone,
        ),
        metrics=metrics,
        popular_items=material.vocabulary.popular_items(),
        golden=[],
    )
    return Artifact(learner.model.eval(), material.vocabulary, manifest)


def measure(parts: Artifact, frame: pl.DataFrame, split: float) -> dict[str, float]:
    """What the manifest tells of quality on the validation part; empty where there is none."""
    if split >= 1:
        return {}
    try:
        found = evaluate(Engine(parts, device=parts.model.device.type), frame, split=split, k=(1, 10)).scores["model"]
    except EvaluationError:
        return {}
    return {f"validation {name}": found[name] for name in MANIFEST_MEASURES if name in found}


def with_golden(parts: Artifact, material: Material) -> Artifact:
    """The same parts with a few windows of the training range and the answers to them."""
    places = np.linspace(0, len(material.data) - 1, GOLDEN_WINDOWS).astype(np.int64)
    windows = window_list(material.data, np.unique(places).tolist(), material.rule)
    parts = msgspec.structs.replace(parts, model=parts.model.cpu())
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    golden = [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden))
