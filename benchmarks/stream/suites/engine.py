"""The whole worker with the network of `benchmarks/engine`, whose states it keeps: what the engine's rate is worth behind a topic.

All users are alike and have a full ring before the worker starts; each user's first event costs a window, the others a step.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.engine.paths.nextmove import Naming, artifact
from benchmarks.engine.setting import Setting
from benchmarks.stream.brokers import Broker
from benchmarks.stream.loads import BEHAVIORS, Load, category_id, item_id, uniform
from benchmarks.stream.paths import path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.preload import preload
from benchmarks.stream.rounds import interleave, summary
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.topics import fill
from benchmarks.stream.trial import Trial, staged, wait_until_ready
from model.artifact import publish

USERS = 2_000
CACHE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own
STATES_MB = 1_024  # holds all users
NETWORKS = {"plain": False, "copy": True}
CONTESTANTS = {  # the network, and in what its states are kept
    "plain": ("plain", "float32"),
    "plain, states in bfloat16": ("plain", "bfloat16"),
    "copy": ("copy", "float32"),
}
NAMING = Naming(item_id, category_id, BEHAVIORS)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One row per broker, network and precision of states."""
    setting = Setting()
    load = uniform(plan.sizes.engine_events, users=USERS)
    rows = []
    with published(setting) as models, compile_cache():
        settings = {"compile": "true", "states_mb": str(STATES_MB)}
        for broker in plan.brokers:
            contestants = {
                name: partial(
                    _attempt,
                    broker,
                    load,
                    setting,
                    {**settings, "model": str(models[network]), "states_precision": precision},
                )
                for name, (network, precision) in CONTESTANTS.items()
            }
            trials = interleave(contestants, plan.sizes.scale_runs, f"{broker.kind} ")
            rows += [{"broker": broker.kind, "network": name, **summary(own)} for name, own in trials.items() if own]
    return rows


@contextmanager
def published(setting: Setting) -> Iterator[Mapping[str, Path]]:
    """Model directories of random weights, by network."""
    with TemporaryDirectory(prefix="nextmove-benchmark-") as folder:
        models = {name: Path(folder) / name for name in NETWORKS}
        for name, copy in NETWORKS.items():
            publish(models[name], artifact(setting, copy=copy, naming=NAMING))
        yield models


@contextmanager
def compile_cache() -> Iterator[None]:
    """An empty one for all programs that are started meanwhile: only the first of them compiles."""
    before = os.environ.get(CACHE)
    with TemporaryDirectory(prefix="nextmove-compiled-") as folder:
        os.environ[CACHE] = folder  # programs inherit it
        try:
            yield
        finally:
            del os.environ[CACHE]
            if before is not None:
                os.environ[CACHE] = before


def _attempt(broker: Broker, load: Load, setting: Setting, settings: Mapping[str, str]) -> Trial:
    with staged(path_named("nextmove_model"), broker, PARTITIONS, settings) as stage:
        preload(stage.site.bootstrap, stage.names, USERS, setting.rule)
        fill(stage.site.bootstrap, stage.names, load.records)
        with stage.start() as program:
            wait_until_ready([program])
            return stage.play([program], len(load.records))
