"""Does the number of users matter? And how long does a worker take to get their histories back?

Every user has a full ring before the worker starts, under a small window, so that all else is equal; then the same
number of events is spread evenly over the users. Recovery is the time until the worker is ready less that of a worker
without any users.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.notes import note, rounded
from benchmarks.stream.loads import uniform
from benchmarks.stream.paths import path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.preload import preload
from benchmarks.stream.programs import Program, rss_mb
from benchmarks.stream.rounds import attempted, summary
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.topics import fill
from benchmarks.stream.trial import Trial, staged, wait_until_ready
from model.window import WindowRule

WINDOW = 16  # events; a million rings of 16 to 31 fit into the memory of a small machine
MEMORY = {"store": "memory://"}
NOISE_S, NOISE_MB = 1.0, 80.0  # by which starts of the same worker differ
ROCKSDB = {**MEMORY, "store": "rocksdb://"}


@dataclass(frozen=True)
class Start:
    """A worker that has just become ready."""

    ready_s: float  # since the start of its process
    rss_mb: float
    cpu_s: float


@dataclass(frozen=True)
class Life:
    """One run: what was stored, how the worker started, what events cost it then."""

    changelog_bytes_per_user: float
    start: Start
    trial: Trial
    restart: Start | None  # on the state that it left
    disk_mb: float


def measure(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Two sections: cost per event by users, and recovery of the most users by store."""
    base = {"memory": _empty(plan, MEMORY), "rocksdb": _empty(plan, ROCKSDB)}
    scale, recovery = [], []
    most = max(plan.sizes.users)
    lives: dict[int, list[Life]] = {users: [] for users in plan.sizes.users}
    for _ in range(plan.sizes.scale_runs):
        for users in plan.sizes.users:
            lives[users] += _life(plan, users, MEMORY)
    for users, own in lives.items():
        if own:
            scale.append(_scale_row(users, own, base["memory"]))
    if lives[most]:
        recovery.append(_recovery_row("memory", most, [life.start for life in lives[most]], base["memory"]))
    for life in _life(plan, most, ROCKSDB):
        recovery.append(
            _recovery_row("rocksdb, empty", most, [life.start], base["rocksdb"]) | {"disk_mb": life.disk_mb}
        )
        if life.restart is not None:
            recovery.append(_recovery_row("rocksdb, kept", most, [life.restart], base["rocksdb"]))
        scale.append(_scale_row(most, [life], base["rocksdb"], store="rocksdb"))
    return {"users": scale, "recovery": recovery}


def _empty(plan: Plan, settings: Mapping[str, str]) -> Start:
    """A worker without any users; medians of a few, since a start takes some seconds, one more or less."""
    assert plan.kafka is not None
    path, starts = path_named("nextmove_constant").with_window(WINDOW), []
    for _ in range(plan.sizes.scale_runs):
        with staged(path, plan.kafka, PARTITIONS, settings) as stage, stage.start() as program:
            starts.append(_ready(program))
    return middle(starts)


def middle(starts: Sequence[Start]) -> Start:
    """The medians."""
    return Start(*(median(values) for values in zip(*map(astuple, starts), strict=True)))


def _life(plan: Plan, users: int, settings: Mapping[str, str]) -> list[Life]:
    """One run, or none if it failed."""
    lives: list[Life] = []

    def attempt() -> Trial:
        lives.append(_live(plan, users, settings))
        return lives[0].trial

    trial = attempted(f"{users:,} users, {settings['store']}", attempt)
    if trial is not None:
        note(
            f"  {users:,} users, {settings['store']}: ready after {lives[0].start.ready_s:.1f} s, "
            f"{trial.figures.events_per_s:,.0f} events/s, {trial.figures.cpu_us_per_event:.1f} µs CPU/event"
        )
    return lives


def _live(plan: Plan, users: int, settings: Mapping[str, str]) -> Life:
    assert plan.kafka is not None
    load = uniform(plan.sizes.scale_events, users=users)
    path = path_named("nextmove_constant").with_window(WINDOW)
    with staged(path, plan.kafka, PARTITIONS, settings) as stage:
        size = preload(stage.site.bootstrap, stage.names, users, WindowRule(events=WINDOW))
        fill(stage.site.bootstrap, stage.names, load.records)
        with stage.start() as program:
            start = _ready(program)
            trial = stage.play([program], len(load.records))
        restart = None
        if settings is ROCKSDB:
            with stage.start() as program:
                restart = _ready(program)
        return Life(size, start, trial, restart, _disk_mb(stage.state_dir()))


def _ready(program: Program) -> Start:
    wait_until_ready([program])
    return Start(time.monotonic() - program.started_s, rss_mb(program.pid, peak=False), program.cpu_s())


def _disk_mb(folder: Path) -> float:
    return rounded(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6)


def _scale_row(users: int, lives: Sequence[Life], base: Start, store: str = "memory") -> dict[str, Any]:
    grown_mb = median(life.start.rss_mb for life in lives) - base.rss_mb
    return {
        "users": users,
        "store": store,
        **summary([life.trial for life in lives]),
        "changelog_bytes_per_user": rounded(lives[0].changelog_bytes_per_user),
        "memory_bytes_per_user": rounded(grown_mb * 1e6 / users) if grown_mb > NOISE_MB else None,
    }


def _recovery_row(store: str, users: int, starts: Sequence[Start], base: Start) -> dict[str, Any]:
    """What the histories took; no rates from a difference that is no longer than starts differ anyway."""
    start = middle(starts)
    seconds, cpu_s = start.ready_s - base.ready_s, start.cpu_s - base.cpu_s
    return {
        "store": store,
        "users": users,
        "runs": len(starts),
        "ready_s": rounded(start.ready_s),
        "recovery_s": rounded(max(seconds, 0.0)),
        "users_per_s": rounded(users / seconds) if seconds > NOISE_S else None,
        "cpu_us_per_user": rounded(cpu_s * 1e6 / users) if cpu_s > NOISE_S else None,
        "rss_mb": rounded(start.rss_mb),
    }
