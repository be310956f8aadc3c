"""A table of events in, a published model out.

Two passes. The first learns from all but the last part of the training range and finds, on that last part, when to stop
and how good the model is, and how its probabilities are to be calibrated. The second learns again from the whole range, as long as the first one found best: what is
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
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch
from torch import Tensor

from model import artifact
from model.artifact import Artifact, ArtifactError, Compared, Epoch, Golden, Manifest, TrainingRange
from model.calibration import Calibration, fit_behaviors, fit_question
from model.config import PRESETS, NextMoveConfig
from model.engine import GOLDEN_TOP_K, Engine, choose_device
from model.evaluation import EvaluationError, evaluate
from model.learner import VALIDATION_WINDOWS, Learner, Progress, Recipe
from model.material import Material, default_horizons, prepare
from model.network import NextMoveModel
from model.sequences import FrameError, Sequences, sequences, usable, window_list
from model.targets import Horizons, Ints
from model.vocabulary import VocabularyError
from model.window import WindowRule

__all__ = ["Progress", "TrainResult", "TrainingError", "train"]

GOLDEN_WINDOWS = 8
LEARNING = 0.8  # of a time budget; the rest is for validating and saving
CALIBRATED = {"behavior": "next_behaviors", "purchase": "purchase_probability", "churn": "churn_probability"}
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
    seed: int
    rule: WindowRule
    horizons: Horizons | None
    validation: float
    budget_s: float | None
    recipe: Recipe
    device: str


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
    threads: int | None = None,
) -> TrainResult:
    """Learns from the first `train_until` of the events by time and publishes the model at `out`.

    The last `validation` share of those decides when to stop; 0 means: learn all `epochs`. `time_budget_s` bounds the
    whole training, and the result then depends on the machine's speed; without it the same seed on the same machine
    gives the same model. `threads` is half the cores by default: the matrices are small, and threads that wait for
    a core that others use cost more than they bring.
    Raises TrainingError with one line.
    """
    begun = time.monotonic()
    report = progress or (lambda _: None)
    if preset not in PRESETS:
        raise TrainingError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if not (0 < train_until <= 1 and 0 <= validation < 1):
        raise TrainingError(f"train_until must be in (0, 1] and validation in [0, 1), got {train_until}, {validation}")
    if epochs is not None and epochs < 1:
        raise TrainingError(f"epochs must be at least 1, got {epochs}")
    recipe = Recipe() if epochs is None else replace(Recipe(), epochs=epochs)
    try:
        order = Order(
            behaviors,
            goal,
            preset,
            seed,
            window or WindowRule(),
            horizons,
            validation,
            time_budget_s,
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
    epochs, losses = first.run(stop_after=None if validates else order.recipe.epochs)
    metrics = {_title(name): value for name, value in losses.items()}
    parts = assemble(first, order, epochs)
    parts = _noted(parts, calibration=calibrate(parts, made) if validates else None)
    compared = measure(parts, frame, made.learn_until / len(data))
    metrics |= {f"validation {name}": compared[name].value for name in MANIFEST_MEASURES if name in compared}
    noted = {"calibration": parts.manifest.calibration, "compared": compared, "metrics": metrics}
    curve = _curve(first)
    if order.budget_s is None and validates:
        made = prepare(data, len(data), order.behaviors, order.goal, order.rule, made.horizons)
        second = _learner(made, order, report, "refit")
        parts = assemble(second, order, second.run(stop_after=epochs)[0])
        curve += _curve(second)
    parts = _noted(parts, **noted, curve=curve)
    report(Progress("save", 0, 1))
    published = artifact.publish(out, with_golden(parts, made))
    report(Progress("save", 1, 1))
    return published


def _noted(parts: Artifact, **fields: Any) -> Artifact:
    """The same parts with more in the manifest."""
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, **fields))


def _curve(learner: Learner) -> list[Epoch]:
    return [Epoch(learner.phase, number, *found) for number, found in enumerate(learner.curve, start=1)]


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
    model = new_model(made, order.preset)
    return Learner(model, made, order.recipe, order.seed, report, budget_s=budget_s, device=order.device, phase=phase)


def _title(name: str) -> str:
    return "validation loss" if name == "loss" else f"validation {name} loss"


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
    inside = material.data.order < material.learn_until
    with torch.no_grad():
        model.item_bias.copy_(log_share(material.item_rows[inside], config.item_first, config.item_rows))
        model.category_bias.copy_(
            log_share(material.category_rows[inside], config.category_first, config.category_rows)
        )
        model.item_categories[vocabulary.items.first :] = torch.tensor(vocabulary.item_categories, dtype=torch.int64)
        behaviors = material.columns.behavior_rows[inside]
        model.behavior_head.bias.copy_(log_share(behaviors, config.behavior_first, config.behavior_rows)[1:])
    return model


def log_share(rows: np.ndarray, first: int, total: int) -> Tensor:
    """Log frequency of class 0, "none of these", and of each known row, one half added to each count."""
    counts = np.bincount(np.maximum(rows - first + 1, 0), minlength=total - first + 1) + 0.5
    return torch.log(torch.from_numpy(counts / counts.sum())).float()


def assemble(learner: Learner, order: Order, epochs: int) -> Artifact:
    """The parts of an artefact, without golden answers and figures; raises TrainingError where no epoch ended with a number."""
    if epochs == 0:
        raise TrainingError("training diverged: the loss is not a number")
    material = learner.material
    inside = material.data.order < material.learn_until
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
        ),
        metrics={},
        popular_items=material.vocabulary.popular_items(),
        golden=[],
    )
    return Artifact(learner.model.eval(), material.vocabulary, manifest)


def calibrate(parts: Artifact, material: Material) -> Calibration:
    """Fitted on what the weights did not learn, a sample of it where there is much."""
    engine = Engine(parts, device=parts.model.device.type, top_k=1)
    fitted: dict[str, Any] = {}
    effects = {}
    for name, (places, answers) in held_out(material).items():
        if len(places):
            sample = np.linspace(0, len(places) - 1, min(len(places), VALIDATION_WINDOWS), dtype=np.int64)
            at = places[sample]
            said = engine.predict(window_list(material.data, at.tolist(), material.rule))
            told = np.array([getattr(one, CALIBRATED[name]) for one in said])
            if name == "behavior":
                fitted["behavior_temperature"], effects[name] = fit_behaviors(told, answers[at])
            else:
                fitted[name], effects[name] = fit_question(told, answers[at])
    return Calibration(**fitted, effects=effects)


def held_out(material: Material) -> dict[str, tuple[Ints, Any]]:
    """By head the events, and the answers [N]: next behaviours of the validation part, and horizons that end in it.

    Events with such a horizon may themselves lie in the learning part, at whose end their answers were not known.
    """
    learned, checked, data = material.learned, material.checked, material.data
    classes = material.columns.behavior_rows[checked.next] - material.vocabulary.behaviors.first
    late = (checked.next >= 0) & (data.order[checked.next] >= material.learn_until) & (classes >= 0)
    return {
        "behavior": (np.flatnonzero(late), classes),
        "purchase": (np.flatnonzero(checked.goal_known & ~learned.goal_known), checked.goal),
        "churn": (np.flatnonzero(checked.churn_known & ~learned.churn_known), checked.churn),
    }


def measure(parts: Artifact, frame: pl.DataFrame, split: float) -> dict[str, Compared]:
    """How good the model is on the validation part; empty where there is none."""
    if split >= 1:
        return {}
    try:
        found = evaluate(Engine(parts, device=parts.model.device.type), frame, split=split, k=(1, 10))
    except EvaluationError:
        return {}
    compared = {}
    for name, value in found.scores["model"].items():
        best, interval = found.against_best.get(name), found.intervals.get("model", {}).get(name)
        beside = (best.baseline, found.scores[best.baseline][name], best.verdict) if best else ()
        compared[name] = Compared(value, interval, *beside)
    return compared


def with_golden(parts: Artifact, material: Material) -> Artifact:
    """The same parts with a few windows of the training range and the answers to them."""
    places = np.linspace(0, len(material.data) - 1, GOLDEN_WINDOWS).astype(np.int64)
    windows = window_list(material.data, np.unique(places).tolist(), material.rule)
    parts = msgspec.structs.replace(parts, model=parts.model.cpu())
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    golden = [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden))
