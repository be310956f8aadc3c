"""Global time: learned from the first 80 % of a log, asked about every event after it, beside baselines.

Training and evaluation are those of `nextmove train` and `nextmove evaluate`, with their defaults.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from model.artifact import read_manifest
from model.callbacks import Callback
from model.evaluation import Evaluation, evaluate
from model.exam import Protocol
from stream_app import behaviors
from stream_app.event_logs import read_log
from stream_app.learning import learn

SPLIT = 0.8
SHOWN = ("item NDCG@10", "item HR@10", "category HR@1", "behavior log-loss", "purchase AUC", "time pinball (log s)")
FILES = {
    "taobao": "taobao/users_815.csv.gz",
    "rees46": "rees46/2019-oct-first-hours.csv.gz",
    "ml-100k": "ml-100k/u.data.gz",
    "ml-1m": "ml-1m/ratings_ordered.tsv.gz",
}
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
) -> dict[str, Any]:
    """Trains and measures on one of `FILES` below `folder`; the figures and all that they depend on.

    `metrics` and each of `baselines` are measure → figure and the ends of its 95 % interval. Raises LogError,
    TrainingError or EvaluationError.
    """
    begun, cpu = time.monotonic(), time.process_time()
    events = read_log(folder / FILES[log])
    with TemporaryDirectory() as scratch:
        place = Path(scratch) / "model"
        options: dict[str, Any] = {"preset": preset, "seed": seed, "time_budget_s": budget_s, "callbacks": [callback]}
        learned = learn(events.frame, behaviors.load(), place, train_until=SPLIT, **options)
        protocol = Protocol().of_log(events.report.paths, events.report.dropped)
        found = evaluate(place, events.frame, split=SPLIT, protocol=protocol)
        manifest = read_manifest(place)
    return {
        "metrics": _figures(found, "model"),
        "baselines": {who: _figures(found, who) for who in found.scores if who != "model"},
        "against_best": msgspec.json.decode(msgspec.json.encode(found.against_best)),
        "users": found.users,
        "events": found.test_events,
        "file": FILES[log],
        "protocol": "; ".join((_told(found.protocol), *filter(None, (REMARKS.get(log),)))),
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


def _told(protocol: Protocol) -> str:
    return "; ".join(
        f"{name.replace('_', ' ')}: {value}" for name, value in asdict(protocol).items() if name != "files"
    )
