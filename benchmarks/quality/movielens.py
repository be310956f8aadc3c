"""ML-1M, leave-one-out: each user's last movie is the test, the one before it validates, all earlier ones are learned.

The log comes in exact order (`pos`) but with times on a tenth of its rows; times filled between those would have seen
the future. So there are none: events lie a day apart, and each user's last one on the same day. The network then sees the
order and nothing else, and the split by position becomes one by time, like any other training.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks.quality.ranking import Ranker, measures
from model.assembly import new_model
from model.callbacks import Callback
from model.learner import Learner
from model.material import Material, default_horizons, prepare
from model.order import decided
from model.recipe import DENSE, Recipe
from model.sequences import Sequences, sequences
from model.window import DAY_MS, WindowRule

FILE = "ml-1m/ratings_ordered.tsv.gz"
LAST_MS = 10_000 * DAY_MS  # when every user's last event is said to be
BEHAVIOR = "rate"
RULE = WindowRule(events=200, age_ms=LAST_MS)  # the length that SASRec and its successors use on this log
PROTOCOL = (
    "leave-one-out: the last item of each user is the test, the one before validates (when to stop), all earlier ones are "
    "learned, and nothing is learned from the last two; full ranking over all items of the training part, items that the "
    "user has met before filtered; ties go to the competitors; no times, so no query time; 95 % intervals over users"
)


def measure(
    folder: Path,
    callback: Callback,
    *,
    backbone: str = "nextmove",
    preset: str = "base",
    seed: int = 0,
    budget_s: float | None = None,
    recipe: Recipe = DENSE,
    rule: WindowRule = RULE,
) -> dict[str, Any]:
    """Trains and measures; the figures and all that they depend on."""
    begun, cpu = time.monotonic(), time.process_time()
    frame = read(folder / FILE)
    data = sequences(frame)
    learner = learn(frame, callback, backbone, preset, seed, budget_s, recipe, rule)
    epochs, _ = learner.run()
    ranker = Ranker(learner.model, learner.material.vocabulary, rule)
    last = np.flatnonzero(np.append(data.first[1:] == np.arange(1, len(data)), True))
    return {
        "metrics": measures(ranker.ranks(data, last)),
        "validation": measures(ranker.ranks(data, last - 1)),
        "users": len(last),
        "items": len(learner.material.vocabulary.items.names),
        "events": len(data),
        "file": FILE,
        "protocol": PROTOCOL,
        "backbone": backbone,
        "preset": preset,
        "seed": seed,
        "learning_rate": recipe.learning_rate,
        "window_events": rule.events,
        "epochs": epochs,
        "parameters": sum(weight.numel() for weight in learner.model.parameters()),
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "time_budget_s": budget_s,
    }


def read(path: Path) -> pl.DataFrame:
    """The log as a table of events: ratings and what times there are left out."""
    rows = pl.read_csv(path, separator="\t", columns=["user", "pos", "movie"])
    after = pl.col("pos").max().over("user") - pl.col("pos")
    return rows.select(
        user_id=pl.col("user").cast(pl.String),
        timestamp=LAST_MS - after * DAY_MS,
        behavior=pl.lit(BEHAVIOR),
        item_id=pl.col("movie").cast(pl.String),
        category=pl.lit(None, pl.String),
    ).sort("timestamp", maintain_order=True)


def learn(
    frame: pl.DataFrame,
    callback: Callback,
    backbone: str,
    preset: str,
    seed: int,
    budget_s: float | None,
    recipe: Recipe,
    rule: WindowRule,
) -> Learner:
    """Ready to learn from all but each user's last two events, and to stop by the one before the last."""
    material = split(sequences(frame.filter(pl.col("timestamp") < LAST_MS)), rule)
    recipe = decided(recipe, "cpu")
    torch.manual_seed(seed)
    model = new_model(material, preset, recipe, backbone)
    return Learner(model, material, recipe, seed, callback, budget_s=budget_s)


def split(data: Sequences, rule: WindowRule) -> Material:
    """The events without the test; those of the newest day validate."""
    until = int((data.times_ms < LAST_MS - DAY_MS).sum())
    return prepare(data, until, (BEHAVIOR,), BEHAVIOR, rule, default_horizons(data.times_ms))
