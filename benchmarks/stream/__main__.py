"""The benchmark of the stream path: runs suites, writes their figures as JSON, and a report and a chart from them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, starmap
from pathlib import Path
from typing import Any

from benchmarks import notes
from benchmarks.report import add_places, write_report
from benchmarks.stream import machine, rounds
from benchmarks.stream.brokers import Embedded, kafka
from benchmarks.stream.chart import draw
from benchmarks.stream.paths import PATHS, PeerPath
from benchmarks.stream.plan import QUICK, WINDOW, Plan, Sizes
from benchmarks.stream.programs import ROOT
from benchmarks.stream.report import place, render, sources
from benchmarks.stream.suites import codecs, engine, latency, partitions, producing, profile, throughput, users, workers
from benchmarks.stream.trained_model import trained_model

HERE = Path(__file__).parent
REAL_LOG = ROOT.parent / "shared" / "data" / "taobao" / "two_hours_all_users.csv.gz"
SUITES: dict[str, Callable[[Plan], Any]] = {
    "throughput": throughput.measure,
    "partitions": partitions.measure,
    "producing": producing.measure,
    "users": users.measure,
    "workers": workers.measure,
    "engine": engine.measure,
    "latency": latency.measure,
    "profile": profile.measure,
    "codecs": codecs.measure,
}
NEED_KAFKA = {"partitions", "producing", "workers", "users", "latency"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if any run failed."""
    options = parse(arguments)
    result = json.loads(options.json.read_text()) if options.merge or options.only_report else {}
    if not options.only_report:
        result = merged(result, run(options))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.report:
        write_report(result, options.report, draw, render)
    for failure in notes.failures:
        notes.note(f"FAILED: {failure}")
    return 1 if notes.failures else 0


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new figures, and the old ones of what was not measured again, each with where and when it was taken.

    Of the comparison each broker with each load is measured by itself.
    """
    both: dict[str, Any] = {name: {**old.get(name, {}), **new.get(name, {})} for name in ("taken", "loads")}
    again = set(map(place, new.get("throughput", ())))
    kept = [row for row in old.get("throughput", ()) if place(row) not in again]
    if rows := sorted([*kept, *new.get("throughput", ())], key=place):
        both["throughput"] = rows
    return {**old, **new, **both}


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The sections of the suites that were asked for, and where and with what they were measured."""
    about = machine.describe()
    result: dict[str, Any] = {"benchmark": "stream", "taken": {}}
    with planned(options) as plan:
        about["sizes"] = vars(plan.sizes)
        result["loads"] = {load.name: load.figures() for load in plan.loads}
        if plan.kafka is not None:
            throughput.warm_up(plan.kafka, plan.sizes.events, plan.sizes.warm_up_runs)
        for name in options.suites:
            if name in NEED_KAFKA and plan.kafka is None:
                notes.note(f"{name} is left out: it needs a real Kafka")
                continue
            notes.note(f"== {name}")
            sections = measured(name, plan)
            result |= sections
            result["taken"] |= dict.fromkeys(chain.from_iterable(starmap(sources, sections.items())), about)
    result["failures"] = notes.failures
    return result


def measured(name: str, plan: Plan) -> dict[str, Any]:
    """The sections of a suite; none if it failed as a whole."""
    try:
        section = SUITES[name](plan)
    except rounds.FAILURES as failure:
        notes.failed(name, failure)
        return {}
    return section if isinstance(section, dict) else {name: section}


@contextmanager
def planned(options: argparse.Namespace) -> Iterator[Plan]:
    """The plan, while its brokers run."""
    sizes = QUICK if options.quick else Sizes()
    given = {name: getattr(options, name) for name in ("runs", "events") if getattr(options, name)}
    if options.events:
        given["scale_events"] = given["real_events"] = options.events
    if options.runs:
        given["scale_runs"] = min(options.runs, sizes.scale_runs)
    sizes = replace(sizes, **given)
    paths = chosen_paths(options.paths)
    model = options.model
    if model is None and "throughput" in options.suites and any(path.needs_model for path in paths):
        model = trained_model(options.log, sizes.train_s)
    with ExitStack() as stack:
        yield Plan(
            sizes=sizes,
            paths=paths,
            load_names=options.loads.split(","),
            log=options.log,
            model=model,
            window=options.window,
            embedded=Embedded() if options.broker in ("embedded", "both") else None,
            kafka=stack.enter_context(kafka()) if options.broker in ("kafka", "both") else None,
        )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, their defaults filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small loads, one run each: does it work at all?")
    parser.add_argument("--suites", metavar="A,B,…", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--paths", metavar="A,B,…", help=f"of {', '.join(path.name for path in PATHS)} (default: all)")
    parser.add_argument("--broker", choices=("embedded", "kafka", "both"), default="both")
    parser.add_argument("--loads", default="real,skewed", metavar="A,B", help="real, skewed (default: both)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the real log (default: the Taobao log, if there)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="of nextmove_model (default: one is trained)")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N", help="events of nextmove_constant's window")
    parser.add_argument("--runs", type=int, metavar="N", help=f"of each path (default: {Sizes.runs})")
    parser.add_argument("--events", type=int, metavar="N", help=f"most of a load (default: {Sizes.events:,})")
    add_places(parser)
    parser.epilog = (
        f"Without --json and --report everything goes to {HERE.relative_to(ROOT)}, or with --quick to "
        "var/benchmarks/stream; with --json alone there is no report."
    )
    options = parser.parse_args(arguments)
    options.suites = options.suites.split(",") if options.suites else list(SUITES)
    if unknown := set(options.suites) - SUITES.keys():
        parser.error(f"no such suite: {', '.join(sorted(unknown))}")
    if options.json is None:
        options.report = options.report or (ROOT / "var" / "benchmarks" / "stream" if options.quick else HERE)
        options.json = options.report / "results.json"
    if options.log is None and REAL_LOG.exists():
        options.log = REAL_LOG
    return options


def chosen_paths(named: str | None) -> list[PeerPath]:
    """Those that were named, or all; without the ones that cannot run here."""
    names = named.split(",") if named else [path.name for path in PATHS]
    if unknown := set(names) - {path.name for path in PATHS}:
        raise SystemExit(f"no such path: {', '.join(sorted(unknown))}")
    chosen = [path for path in PATHS if path.name in names]
    for path in chosen:
        if path.missing:
            notes.note(f"{path.name} is left out: {path.missing}")
    return [path for path in chosen if path.missing is None]


if __name__ == "__main__":
    sys.exit(main())
