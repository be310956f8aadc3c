"""A table of events in, a published model out.

Two passes. The first learns from all but the last part of the training range and finds, on that last part, when to stop,
how good the model is, and how its answers are to be calibrated. The second learns again from the whole range, as
long as the first one found best: what is newest matters most for what comes next. With a time budget there is only the
first pass. Callbacks hear how it goes; nothing is printed. With a directory for checkpoints a training that was killed
goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import torch

from model import artifact
from model.artifact import Artifact, ArtifactError, Epoch, Manifest
from model.assembly import assemble, new_model, with_golden
from model.callbacks import Callback, Callbacks, Progress
from model.checkpoint import CheckpointError
from model.cleaning import CleaningReport, clean
from model.first_pass import MANIFEST_MEASURES, FirstPass, calibrate, measure
from model.group import GroupError
from model.learner import Keep, Learner
from model.material import Material, default_horizons, prepare
from model.order import Keeping, Order, TrainingError
from model.recipe import RANKED
from model.saves import Saves
from model.sequences import FrameError, Sequences, sequences, usable
from model.splits import leave_one_out
from model.targets import Horizons
from model.threads import half_the_cores, threads
from model.vocabulary import VocabularyError
from model.warm_start import WarmStartError, older_model, seen, transplant

__all__ = ["Keeping", "Order", "TrainResult", "TrainingError", "train"]

LEARNING = 0.8  # of a time budget; the rest is for validating and saving


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


def train(
    frame: pl.DataFrame,
    behaviors: Sequence[str],
    goal: str,
    out: Path,
    *,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TrainResult:
    """Learns from a table of events and publishes the model at `out`; options as in `Order`, where all have a default.

    What is learned from is cleaned first. Without a time budget the same seed on the same machine gives the same model.
    Raises TrainingError with one line.
    """
    begun = time.monotonic()
    order = Order(behaviors=behaviors, goal=goal, **options)
    count = order.threads or max(1, half_the_cores() // order.group.size)
    callback = Callbacks(callbacks if order.group.leads else ())
    try:
        artifact.check_place(Path(out))
        frame, cleaned = _cleaned(_training_part(usable(frame).sort("timestamp", maintain_order=True), order), order)
        with torch.random.fork_rng(devices=[]), threads(count):
            manifest = _train(frame, order, cleaned, Path(out), callback, begun)
    except BaseException as error:
        callback.on_error()
        if isinstance(error, (FrameError, VocabularyError, ArtifactError, CheckpointError, GroupError, WarmStartError)):
            raise TrainingError(str(error)) from error
        raise
    callback.on_end(manifest)
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


def _training_part(frame: pl.DataFrame, order: Order) -> pl.DataFrame:
    """What may be learned from; frame is sorted by time."""
    if order.protocol == "leave-one-out":
        data = sequences(frame)
        return frame[np.sort(data.order[leave_one_out(data).train])]
    return frame.head(max(1, int(frame.height * order.train_until)))


def _cleaned(frame: pl.DataFrame, order: Order) -> tuple[pl.DataFrame, CleaningReport]:
    """What is learned from; raises TrainingError where the rules leave nothing."""
    kept, report = clean(frame, order.cleaning)
    if kept.is_empty():
        raise TrainingError(f"cleaning leaves nothing ({report.line()}); loosen its rules or switch it off")
    return kept, report


def _train(
    frame: pl.DataFrame, order: Order, cleaned: CleaningReport, out: Path, callback: Callback, begun: float
) -> Manifest:
    """Both passes; frame is the training range, cleaned and sorted."""
    callback.on_step(Progress("prepare", 0, 1))
    data = sequences(frame)
    older = None if order.warm is None else older_model(order.warm, order.window)
    since = 0 if older is None else seen(data.times_ms, older)
    made = _first_material(data, order, since, older)
    order = order.with_recipe(made)  # one for both passes
    callback.on_begin(order.identity())
    saves = _saves(data, made, order)
    callback.on_step(Progress("prepare", 1, 1))
    parts: Artifact | None = None
    if saves.found is not None and saves.found.state["phase"] == "refit":
        found = msgspec.convert(saves.found.state["found"], FirstPass)
    else:
        parts, found = _first(made, order, saves, frame, callback, begun, older)
    curve = found.curve
    if parts is None or (order.time_budget_s is None and made.learn_until < len(data)):
        made = prepare(
            data, len(data), order.behaviors, order.goal, order.window, made.horizons, order.text, since, order.prices
        )
        keep = saves.keeper(phase="refit", found=msgspec.to_builtins(found))
        second = _learner(made, order, callback, "refit", keep, older=older)
        saves.restore(second)
        parts = assemble(second, order, second.run(stop_after=found.epochs)[0])
        curve = curve + _curve(second)
    noted = {"metrics": found.metrics, "calibration": found.calibration, "compared": found.compared}
    whole = _noted(parts, **noted, curve=curve, cleaning=cleaned)
    callback.on_step(Progress("save", 0, 1))
    order.group.lead(lambda: artifact.publish(out, with_golden(whole, made)), ArtifactError)
    saves.clear()
    callback.on_step(Progress("save", 1, 1))
    return artifact.read_manifest(out)


def _first(
    made: Material,
    order: Order,
    saves: Saves,
    frame: pl.DataFrame,
    callback: Callback,
    begun: float,
    older: Artifact | None,
) -> tuple[Artifact, FirstPass]:
    """Runs the first pass; what it learned, calibrated, and what it found. The leader of a group measures for all."""
    left = None if order.time_budget_s is None else LEARNING * order.time_budget_s - (time.monotonic() - begun)
    budget_s = None if left is None else max(1.0, left)
    first = _learner(made, order, callback, "train", saves.keeper(phase="train"), budget_s, older)
    saves.restore(first)
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


def _first_material(data: Sequences, order: Order, since: int, older: Artifact | None) -> Material:
    """All but the last part of what is new is learned from; everything where nothing could be learned otherwise."""
    horizons = order.horizons or default_horizons(data.times_ms)
    if older is not None:
        horizons = Horizons(older.manifest.goal_horizon_ms, older.manifest.churn_horizon_ms)
    for until in (len(data) - int((len(data) - since) * order.validation), len(data)):
        made = prepare(
            data, until, order.behaviors, order.goal, order.window, horizons, order.text, since, order.prices
        )
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
    callback: Callback,
    phase: str,
    keep: Keep | None,
    budget_s: float | None = None,
    older: Artifact | None = None,
) -> Learner:
    torch.manual_seed(order.seed)
    recipe = order.recipe
    assert recipe is not None
    model = new_model(made, order.preset, recipe, order.backbone)
    if older is not None:
        transplant(model, made.vocabulary, older)
    if not order.group.leads:  # equal weights, other dropout
        torch.manual_seed(order.seed + (order.group.rank << 32))
    return Learner(
        model,
        made,
        recipe,
        order.seed,
        callback,
        budget_s=budget_s,
        device=order.device,
        phase=phase,
        group=order.group,
        keep=keep,
        keep_every_s=order.keeping.every_s if order.keeping else 0,
    )


def _title(name: str) -> str:
    if name == RANKED:
        return f"validation {RANKED}"
    return "validation loss" if name == "loss" else f"validation {name} loss"
