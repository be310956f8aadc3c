"""What can be measured: each suite gives rows, one per path and number of cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.engine.paths import REFERENCE, SIZES, Entry, path_named
from benchmarks.engine.paths.contract import Missing
from benchmarks.engine.plan import Plan
from benchmarks.engine.racing import Contestant, Failed, Race, race
from benchmarks.engine.setting import Setting, pin
from benchmarks.notes import failed, note, rounded

Row = dict[str, Any]
HIT_RUNS = 3  # of each of 21 settings


def throughput(running: Race, plan: Plan, threads: int) -> list[Row]:
    """Events answered per second at each path's best settings, which are looked for first."""
    started = running.ask("started")
    tuned = running.ask("tune", seconds=plan.tune_s)
    for name, found in tuned.items():
        note(f"  {name}: {found['dials']}")
    done = running.interleave(plan.runs, "run", seconds=plan.run_s)
    rows = []
    for name, runs in done.items():
        rates = [run["events_per_s"] for run in runs]
        rows.append(
            {
                "path": name,
                "threads": threads,
                **summary(rates),
                "events": min(run["events"] for run in runs),
                "peak_rss_mb": rounded(max(run["peak_rss_mb"] for run in runs)),
                "settings": tuned[name]["dials"],
                "tried": {
                    dial: {value: rounded(rate) for value, rate in rates.items()}
                    for dial, rates in tuned[name]["tried"].items()
                },
                "overlap_at_10": overlap(path_named(name), started),
            }
        )
    return with_ratios(rows)


def summary(rates: Sequence[float]) -> Row:
    """Medians over the runs, min and max; µs per event are one over the rate."""
    costs = [1e6 / rate for rate in rates]
    row: Row = {"runs": len(rates)}
    for name, values in (("events_per_s", rates), ("us_per_event", costs)):
        row |= {name: rounded(median(values)), f"{name}_min": rounded(min(values)), f"{name}_max": rounded(max(values))}
    return row


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """How many times Hugging Face's rate, None where that did not run."""
    base = next((row["events_per_s"] for row in rows if row["path"] == REFERENCE), None)
    return [{**row, "ratio_to_hugging_face": base and rounded(row["events_per_s"] / base)} for row in rows]


def overlap(entry: Entry, started: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Share of the listed items that the first path of the same network lists as well; None for that path itself."""
    first = next(name for name in started if path_named(name).network == entry.network)
    if first == entry.name:
        return None
    pairs = zip(started[first]["items"], started[entry.name]["items"], strict=True)
    return rounded(float(np.mean([len(set(one) & set(other)) / len(one) for one, other in pairs])))


def latency(running: Race, plan: Plan, threads: int) -> list[Row]:
    """Milliseconds of an answer when events come one at a time, of all runs together."""
    done = running.interleave(plan.runs, "latency", events=plan.latency_events)
    rows = []
    for name, runs in done.items():
        ms = np.concatenate([run["seconds"] for run in runs]) * 1e3
        p50, p99 = (rounded(float(each)) for each in np.quantile(ms, (0.5, 0.99)))
        rows.append({"path": name, "threads": threads, "events": len(ms), "p50_ms": p50, "p99_ms": p99})
    return rows


def hits(plan: Plan, threads: int) -> list[Row]:
    """Incremental paths by the share of events whose user's states are at hand, and by the size of polls."""
    incremental = [entry for entry in plan.paths if entry.is_incremental]
    if not incremental:
        raise Missing("no incremental path runs here")
    rows = []
    with race(incremental, plan.with_threads(threads)) as running:
        for ratio in plan.hits:
            for size in [size for size in SIZES if size <= plan.setting.poll]:
                asked = {"seconds": plan.run_s / 2, "size": size, "unseen": 1 - ratio}
                running.ask("run", **asked)
                for name, runs in running.interleave(min(plan.runs, HIT_RUNS), "run", **asked).items():
                    rates = summary([run["events_per_s"] for run in runs])
                    rows.append({"path": name, "threads": threads, "hit_ratio": ratio, "poll": size, **rates})
    return rows


def start_up(plan: Plan, threads: int) -> list[Row]:
    """Seconds from the start of the process to the first answers: with an empty compile cache, then with a full one."""
    rows = []
    for entry in plan.paths:
        with TemporaryDirectory() as folder:
            try:
                cold, warm = (_start_s(entry, plan.with_threads(threads), Path(folder)) for _ in range(2))
            except Failed as failure:
                failed(entry.name, failure)
                continue
        rows.append({"path": entry.name, "threads": threads, "cold_s": rounded(cold), "warm_s": rounded(warm)})
        note(f"  {entry.name}: {cold:.1f} s, {warm:.1f} s")
    return rows


def _start_s(entry: Entry, setting: Setting, compiled: Path) -> float:
    contestant = Contestant(entry, setting, compiled)
    try:
        return float(contestant.ask("started")["start_s"])
    finally:
        contestant.end()


def scoring(plan: Plan, threads: int) -> list[Row]:
    """Scoring alone, by the length of the catalogue."""
    options: dict[str, Any] = {"sizes": (10_000,), "rounds": 1} if plan.quick else {}
    if plan.setting.device != "cpu":
        options |= {"batches": (1, 256), "precisions": ("float32", "bfloat16"), "device": plan.setting.device}
    return [{"threads": threads, **row} for row in _aside("scoring", threads, options)]


def step(plan: Plan, threads: int) -> list[Row]:
    """A GPU's time for one more event of many users, beside what its memory allows."""
    if plan.setting.device == "cpu":
        raise Missing("it is measured on a GPU")
    return [{"threads": threads, **row} for row in _aside("step", threads, {"setting": plan.with_threads(threads)})]


def _aside(module: str, threads: int, options: Mapping[str, Any]) -> list[Row]:
    """In a process of its own, bound to its cores."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=pin, initargs=(threads,)) as own:
        return own.submit(_measured, module, options).result()


def _measured(module: str, options: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = import_module(f"benchmarks.engine.{module}").measure(**options)
    return rows


RACES: dict[str, Callable[[Race, Plan, int], list[Row]]] = {"throughput": throughput, "latency": latency}
OTHERS: dict[str, Callable[[Plan, int], list[Row]]] = {
    "hits": hits,
    "start_up": start_up,
    "scoring": scoring,
    "step": step,
}
SUITES = (*RACES, *OTHERS)


def measured(plan: Plan, threads: int, suites: Sequence[str]) -> Iterator[tuple[str, list[Row] | str]]:
    """The rows of each suite, or why there are none; what races all paths does so in one race."""
    races = [name for name in RACES if name in suites]
    if races:
        with race(plan.paths, plan.with_threads(threads)) as running:
            for name in races:
                note(f"== {name}, cores: {threads}")
                yield name, RACES[name](running, plan, threads)
    for name in [name for name in OTHERS if name in suites]:
        note(f"== {name}, cores: {threads}")
        try:
            yield name, OTHERS[name](plan, threads)
        except Missing as missed:
            yield name, str(missed)
