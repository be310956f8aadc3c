"""What the first pass of a training finds on the part of the range that it did not learn: calibration and comparison."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import polars as pl

from model.artifact import Artifact, Compared, Epoch
from model.calibration import Calibration, fit_behaviors, fit_question, fit_times
from model.engine import Engine
from model.evaluation import EvaluationError, evaluate
from model.material import Material
from model.sequences import window_list
from model.targets import Ints
from model.validation import VALIDATION_WINDOWS

CALIBRATED = {
    "behavior": "next_behaviors",
    "time": "time_to_next_s",
    "purchase": "purchase_probability",
    "churn": "churn_probability",
}
MANIFEST_MEASURES = (
    "item NDCG@10",
    "item HR@10",
    "category HR@1",
    "behavior accuracy",
    "behavior log-loss",
    "purchase AUC",
    "time pinball (log s)",
)


class FirstPass(msgspec.Struct, frozen=True):
    """What the second pass, and the manifest, need of the first one; plain enough for a checkpoint."""

    epochs: int  # that the best weights have seen
    metrics: dict[str, float]
    curve: list[Epoch]
    calibration: Calibration | None = None
    compared: dict[str, Compared] = {}


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
            elif name == "time":
                fitted["times"], fitted["waiting"] = fit_times(np.log1p(told), answers[at])
            else:
                fitted[name], effects[name] = fit_question(told, answers[at])
    return Calibration(**fitted, effects=effects)


def held_out(material: Material) -> dict[str, tuple[Ints, Any]]:
    """By head the events, and the answers [N]: next events of the validation part, and horizons that end in it.

    Events with such a horizon may themselves lie in the learning part, at whose end their answers were not known.
    """
    learned, checked, data = material.learned, material.checked, material.data
    classes = material.columns.behavior_rows[checked.next] - material.vocabulary.behaviors.first
    late = (checked.next >= 0) & (data.order[checked.next] >= material.learn_until)
    return {
        "behavior": (np.flatnonzero(late & (classes >= 0)), classes),
        "time": (np.flatnonzero(late), np.log1p(checked.gap_ms / 1000)),
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
