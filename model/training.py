"""A table of events in, a published model out.

Two passes. The first learns from all but the last part of the training range and finds, on that last part, when to stop,
how good the model is, and how its probabilities are to be calibrated. The second learns again from the whole range, as
long as the first one found best: what is newest matters most for what comes next. With a time budget there is only the
first pass. Progress goes to a callback; nothing is printed. With a directory for checkpoints a training that was killed
goes on where it was.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch

from model import artifact
from model.artifact import Artifact, ArtifactError, Epoch, Golden, Manifest, TrainingRange
from model.checkpoint import CheckpointError
from model.cleaning import Cleaning, CleaningReport, clean
from model.config import BACKBONES, PRESETS, NextMoveConfig
from model.devices import choose_device
from model.engine import GOLDEN_TOP_K, Engine
from model.first_pass import MANIFEST_MEASURES, FirstPass, calibrate, measure
from model.group import ALONE, Group, GroupError
from model.learner import DENSE, RANKED, SPARSE, Keep, Learner, Progress, Recipe
from model.material import Material, default_horizons, log_share, prepare
from model.network import NextMoveModel
from model.saves import Keeping, Saves
from model.sequences import FrameError, Sequences, sequences, usable, window_list
from model.splits import leave_one_out
from model.targets import Horizons
from model.vocabulary import VocabularyError
from model.window import WindowRule

__all__ = ["Keeping", "Progress", "TrainResult", "TrainingError", "train"]

GOLDEN_WINDOWS = 8
LEARNING = 0.8  # of a time budget; the rest is for validating and saving


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
    cleaning: CleaningReport


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
    bf16: bool
    recipe: Recipe | None  # chosen by the log where it is None
    device: str
    protocol: str
    group: Group
    keeping: Keeping | None

    def identity(self) -> dict[str, Any]:
        """All that decides what comes out, but for the log."""
        own = {
            name: getattr(self, name)
            for name in ("behaviors", "goal", "preset", "backbone", "seed", "validation", "protocol")
        }
        parts = {"window": self.rule, "horizons": self.horizons, "recipe": self.recipe}
        written = {name: part and asdict(part) for name, part in parts.items()}
        return {**own, **written, "device": self.device, "processes": self.group.size}


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
    protocol: str = "time",
    validation: float = 0.1,
    time_budget_s: float | None = None,
    epochs: int | None = None,
    recipe: Recipe | None = None,
    window: WindowRule | None = None,
    horizons: Horizons | None = None,
    cleaning: Cleaning | None = None,
    progress: Callable[[Progress], None] | None = None,
    device: str = "auto",
    threads: int | None = None,
    bf16: bool = False,
    keeping: Keeping | None = None,
    group: Group = ALONE,
) -> TrainResult:
    """Learns from the first `train_until` of the events by time and publishes the model at `out`.

    With the protocol "leave-one-out" it learns from all but the last two events of each user instead. What is learned
    from is cleaned first, by the default rules of `model.cleaning` where none are given. The last `validation` share of what
    is left decides when to stop; 0 means: learn all `epochs`. `time_budget_s` bounds the whole training, and the result
    then depends on the machine's speed; without it the same seed on the same machine gives the same model. `threads` is
    half the cores by default: the matrices are small, and threads that wait for a core that others use cost more than
    they bring. The recipe is chosen by the log unless one is given. With `keeping` the same call after a crash goes on where
    the last checkpoint was, and the model is that of a training that was never interrupted. All processes of a `group` make
    the same call; the first one publishes.
    Raises TrainingError with one line.
    """
    begun = time.monotonic()
    report = progress or (lambda _: None)
    _check(preset, backbone, train_until, validation, protocol, epochs)
    try:
        order = Order(
            behaviors=behaviors,
            goal=goal,
            preset=preset,
            backbone=backbone,
            seed=seed,
            rule=window or WindowRule(),
            horizons=horizons,
            validation=validation,
            budget_s=time_budget_s,
            epochs=epochs,
            bf16=bf16,
            recipe=recipe,
            device=choose_device(device),
            protocol=protocol,
            group=group,
            keeping=keeping,
        )
        artifact.check_place(Path(out))
        frame = usable(frame).sort("timestamp", maintain_order=True)
        frame, cleaned = _cleaned(_training_part(frame, protocol, train_until), cleaning or Cleaning())
        with torch.random.fork_rng(devices=[]), _threads(threads or max(1, (os.cpu_count() or 1) // 2 // group.size)):
            manifest = _train(frame, order, cleaned, Path(out), report, begun)
    except (FrameError, VocabularyError, ArtifactError, CheckpointError, GroupError) as error:
        raise TrainingError(str(error)) from error
    return TrainResult(
        directory=Path(out),
        version=manifest.version,
        epochs=manifest.training.epochs,
        seconds=time.monotonic() - begun,
        events=manifest.training.events,
        users=manifest.training.users,
        metrics=dict(manifest.metrics),
        cleaning=cleaned,
    )


def _check(
    preset: str, backbone: str, train_until: float, validation: float, protocol: str, epochs: int | None
) -> None:
    """Raises TrainingError for an option that makes no sense."""
    if preset not in PRESETS:
        raise TrainingError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
    if backbone not in BACKBONES:
        raise TrainingError(f"no backbone {backbone!r}; there are {', '.join(BACKBONES)}")
    if not (0 < train_until <= 1 and 0 <= validation < 1):
        raise TrainingError(f"train_until must be in (0, 1] and validation in [0, 1), got {train_until}, {validation}")
    if protocol not in ("time", "leave-one-out"):
        raise TrainingError(f"one cannot train by {protocol!r}; the protocol is time or leave-one-out")
    if epochs is not None and epochs < 1:
        raise TrainingError(f"epochs must be at least 1, got {epochs}")


def _training_part(frame: pl.DataFrame, protocol: str, share: float) -> pl.DataFrame:
    """What may be learned from; frame is sorted by time."""
    if protocol == "leave-one-out":
        data = sequences(frame)
        return frame[np.sort(data.order[leave_one_out(data).train])]
    return frame.head(max(1, int(frame.height * share)))


def _cleaned(frame: pl.DataFrame, cleaning: Cleaning) -> tuple[pl.DataFrame, CleaningReport]:
    """What is learned from; raises TrainingError where the rules leave nothing."""
    kept, report = clean(frame, cleaning)
    if kept.is_empty():
        raise TrainingError(f"cleaning leaves nothing ({report.line()}); loosen its rules or switch it off")
    return kept, report


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """With this many threads for torch, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    frame: pl.DataFrame,
    order: Order,
    cleaned: CleaningReport,
    out: Path,
    report: Callable[[Progress], None],
    begun: float,
) -> Manifest:
    """Both passes; frame is the training range, cleaned and sorted."""
    report(Progress("prepare", 0, 1))
    data = sequences(frame)
    made = _first_material(data, order)
    order = replace(order, recipe=_recipe(made, order))  # one for both passes
    saves = _saves(data, made, order)
    report(Progress("prepare", 1, 1))
    validates = made.learn_until < len(data)
    if saves.found is not None and saves.found.state["phase"] == "refit":
        found = msgspec.convert(saves.found.state["found"], FirstPass)
    else:
        budget_s = None if order.budget_s is None else max(1.0, LEARNING * order.budget_s - (time.monotonic() - begun))
        first = _learner(made, order, report, "train", saves.keeper(phase="train"), budget_s)
        saves.restore(first)
        parts, found = _found(first, order, frame)
    curve = found.curve
    if order.budget_s is None and validates:
        made = prepare(data, len(data), order.behaviors, order.goal, order.rule, made.horizons)
        keep = saves.keeper(phase="refit", found=msgspec.to_builtins(found))
        second = _learner(made, order, report, "refit", keep)
        saves.restore(second)
        parts = assemble(second, order, second.run(stop_after=found.epochs)[0])
        curve = curve + _curve(second)
    noted = {"metrics": found.metrics, "calibration": found.calibration, "compared": found.compared}
    parts = _noted(parts, **noted, curve=curve, cleaning=cleaned)
    report(Progress("save", 0, 1))
    order.group.lead(lambda: artifact.publish(out, with_golden(parts, made)), ArtifactError)
    saves.clear()
    report(Progress("save", 1, 1))
    return artifact.read_manifest(out)


def _found(first: Learner, order: Order, frame: pl.DataFrame) -> tuple[Artifact, FirstPass]:
    """Runs the first pass; what it learned, calibrated, and what it found. The leader of a group measures for all."""
    made = first.material
    validates = made.learn_until < len(made.data)
    epochs, losses = first.run(stop_after=None if validates else first.recipe.epochs)
    metrics = {_title(name): value for name, value in losses.items()}
    parts = assemble(first, order, epochs)
    found = FirstPass(epochs, metrics, _curve(first))
    if not (validates and order.group.leads):
        return parts, found
    calibration = calibrate(parts, made)
    parts = _noted(parts, calibration=calibration)
    compared = measure(parts, frame, made.learn_until / len(made.data))
    metrics |= {f"validation {name}": compared[name].value for name in MANIFEST_MEASURES if name in compared}
    return parts, msgspec.structs.replace(found, calibration=calibration, compared=compared, metrics=metrics)


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
    raise TrainingError(
        "nothing to learn: no user has two events in the training part; give a longer log or a larger share of it"
    )


def _saves(data: Sequences, made: Material, order: Order) -> Saves:
    if order.keeping is None:
        return Saves(None, {}, order.group)
    identity = {"log": data.fingerprint(), "vocabulary": made.vocabulary.content_hash, **order.identity()}
    return Saves(order.keeping.directory, identity, order.group)


def _learner(
    made: Material,
    order: Order,
    report: Callable[[Progress], None],
    phase: str,
    keep: Keep | None,
    budget_s: float | None = None,
) -> Learner:
    torch.manual_seed(order.seed)
    recipe = _recipe(made, order)
    model = new_model(made, order.preset, recipe, order.backbone)
    if not order.group.leads:  # equal weights, other dropout
        torch.manual_seed(order.seed + (order.group.rank << 32))
    return Learner(
        model,
        made,
        recipe,
        order.seed,
        report,
        budget_s=budget_s,
        device=order.device,
        phase=phase,
        group=order.group,
        keep=keep,
        keep_every_s=order.keeping.every_s if order.keeping else 0,
    )


def _recipe(made: Material, order: Order) -> Recipe:
    recipe = order.recipe or (DENSE if made.is_dense() else SPARSE)
    epochs = recipe.epochs if order.epochs is None else order.epochs
    return replace(recipe, epochs=epochs, bf16=recipe.bf16 or order.bf16)


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


def assemble(learner: Learner, order: Order, epochs: int) -> Artifact:
    """The parts of an artefact, without golden answers and figures; raises TrainingError where no epoch ended with a number."""
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
            protocol=order.protocol,
            backbone=order.backbone,
        ),
        metrics={},
        popular_items=material.vocabulary.popular_items(),
        golden=[],
    )
    return Artifact(learner.model.eval(), material.vocabulary, manifest)


def with_golden(parts: Artifact, material: Material) -> Artifact:
    """The same parts with a few windows of the training range and the answers to them."""
    places = np.linspace(0, len(material.data) - 1, GOLDEN_WINDOWS).astype(np.int64)
    windows = window_list(material.data, np.unique(places).tolist(), material.rule)
    parts = msgspec.structs.replace(parts, model=parts.model.cpu())
    answers = Engine(parts, device="cpu", top_k=GOLDEN_TOP_K).predict(windows)
    golden = [Golden(window, answer) for window, answer in zip(windows, answers, strict=True)]
    return msgspec.structs.replace(parts, manifest=msgspec.structs.replace(parts.manifest, golden=golden))
