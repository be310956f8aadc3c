"""Global time: learned from the first 80 % of a log, asked about every event after it, beside baselines.

Training and evaluation are those of `nextmove train` and `nextmove evaluate`, with their defaults.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import polars as pl

from model.artifact import read_manifest
from model.callbacks import Callback
from model.evaluation import Evaluation, evaluate
from model.exam import Protocol
from model.item_text import ItemText, encoded
from model.text_encoder import default_encoder
from stream_app import behaviors
from stream_app.event_logs import read_log
from stream_app.item_texts import read_texts
from stream_app.learning import learn

SPLIT = 0.8
COLD = "cold item, after some history"
CATALOGUE = (
    "with a catalogue: every item of the whole log that has a text (category and brand), so those that come later are known "
    "to exist; a shop's catalogue also holds items that nobody looks at"
)
SHOWN = (
    "item NDCG@10",
    "item HR@10",
    "category HR@1",
    "behavior macro-F1",
    "behavior log-loss",
    "purchase AUC",
    "time pinball (log s)",
)
SHOWN_DESCRIBED = (*SHOWN[:2], "cold item NDCG@10", *SHOWN[2:])
FILES = {
    "taobao": "taobao/users_815.csv.gz",
    "rees46": "rees46/2019-oct-first-hours.csv.gz",
    "ml-100k": "ml-100k/u.data.gz",
    "ml-1m": "ml-1m/ratings_ordered.tsv.gz",
}
DESCRIBED = {"rees46": ("category_code", "brand")}  # logs that say something about items
REMARKS = {
    "ml-1m": "times stand on a tenth of the rows and are filled in between, so they have seen a little of the future"
}


def measure(
    folder: Path,
    callback: Callback = Callback(),  # noqa: B008  one that hears nothing
    *,
    log: str,
    preset: str = "small",
    seed: int = 0,
    budget_s: float | None = None,
    described: bool = False,
) -> dict[str, Any]:
    """Trains and measures on one of `FILES` below `folder`; the figures and all that they depend on.

    `described`: with a catalogue of the whole log's items, each with its text, category and frozen sentence vector.
    `metrics` and each of `baselines` are measure → figure and the ends of its 95 % interval. Raises LogError,
    TrainingError or EvaluationError.
    """
    begun, cpu = time.monotonic(), time.process_time()
    events = read_log(folder / FILES[log])
    with TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        text = catalogue(folder / FILES[log], DESCRIBED[log]) if described else None
        options: dict[str, Any] = {
            "text": text,
            "preset": preset,
            "seed": seed,
            "time_budget_s": budget_s,
            "callbacks": [callback],
        }
        learned = learn(events.frame, behaviors.load(), place, train_until=SPLIT, **options)
        protocol = Protocol().of_log(events.report.paths, events.report.dropped)
        found = evaluate(place, events.frame, split=SPLIT, protocol=protocol)
        manifest = read_manifest(place)
    return {
        "metrics": _figures(found, "model") | _cold(found),
        "baselines": {who: _figures(found, who) for who in found.scores if who != "model"},
        "against_best": msgspec.json.decode(msgspec.json.encode(found.against_best)),
        "users": found.users,
        "events": found.test_events,
        "file": FILES[log],
        "protocol": "; ".join(
            (_told(found.protocol), *filter(None, (REMARKS.get(log), CATALOGUE if described else None)))
        ),
        "preset": preset,
        "seed": seed,
        "window_events": manifest.window.events,
        "epochs": learned.epochs,
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "time_budget_s": budget_s,
    }


def _figures(found: Evaluation, who: str) -> dict[str, list[float]]:
    intervals = found.intervals.get(who, {})
    return {name: [value, *intervals.get(name, ())] for name, value in found.scores[who].items()}


def _cold(found: Evaluation) -> dict[str, list[float]]:
    """NDCG@10 on items that neither training nor the window held, where the user had done something before."""
    cold = next((one for one in found.slices.get("item", []) if one.name == COLD), None)
    return {} if cold is None else {"cold item NDCG@10": [cold.model, *(cold.interval or ())]}


def catalogue(path: Path, columns: Sequence[str]) -> ItemText:
    """All items of a log with what its columns say about them. Raises LogError or TextError."""
    found = read_texts(",".join(columns), [path], format="auto", mapping=None)
    items = read_log(path).frame.filter(pl.col("item_id").is_not_null()).unique("item_id", keep="first")
    categories, prices = (
        dict(items.select("item_id", name).drop_nulls().iter_rows()) for name in ("category", "price")
    )
    return encoded(found.texts, default_encoder(), catalogue=True, categories=categories, prices=prices)


def _told(protocol: Protocol) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: {value}" for name, value in asdict(protocol).items() if name != "files"
    )
