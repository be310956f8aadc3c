"""The command line: `python -m benchmarks.stream`. Runs suites, writes their figures as JSON, and a report from them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.stream import brokers, loads, machine, throughput
from benchmarks.stream.paths import PATHS, PeerPath
from benchmarks.stream.programs import ROOT
from benchmarks.stream.rounds import console

REAL_LOG = ROOT.parent / "shared" / "data" / "taobao" / "two_hours_all_users.csv.gz"
RUNS, QUICK_RUNS = 5, 1
EVENTS, QUICK_EVENTS = 200_000, 20_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    options = parse(arguments)
    result: dict[str, Any] = {"benchmark": "stream", **machine.describe()}
    with ExitStack() as stack:
        places: list[brokers.Broker] = []
        if options.broker in ("embedded", "both"):
            places.append(brokers.Embedded())
        if options.broker in ("kafka", "both"):
            places.append(stack.enter_context(brokers.kafka()))
        played = chosen_loads(options)
        result["loads"] = {load.name: load.figures() for load in played}
        result["throughput"] = [
            row
            for broker in places
            for row in throughput.measure(broker, played, chosen_paths(options), runs=options.runs, model=options.model)
        ]
    text = json.dumps(result, indent=2) + "\n"
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text)
    else:
        sys.stdout.write(text)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what --quick makes of their defaults."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_RUNS} run of {QUICK_EVENTS:,} events")
    parser.add_argument("--runs", type=int, metavar="N", help=f"runs of each path (default: {RUNS})")
    parser.add_argument("--events", type=int, metavar="N", help=f"most events of a load (default: {EVENTS:,})")
    parser.add_argument("--paths", metavar="A,B,…", help=f"of {', '.join(path.name for path in PATHS)}")
    parser.add_argument("--loads", default="real,skewed", metavar="A,B", help="real, skewed")
    parser.add_argument("--broker", choices=("embedded", "kafka", "both"), default="both")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the real log (default: the Taobao log, if there)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="of nextmove_model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: standard output)")
    options = parser.parse_args(arguments)
    options.runs = options.runs or (QUICK_RUNS if options.quick else RUNS)
    options.events = options.events or (QUICK_EVENTS if options.quick else EVENTS)
    if options.log is None and REAL_LOG.exists():
        options.log = REAL_LOG
    return options


def chosen_loads(options: argparse.Namespace) -> list[loads.Load]:
    """The real log, if there is one, and the synthetic one."""
    names = options.loads.split(",")
    chosen = []
    if "real" in names and options.log:
        chosen.append(loads.real(options.log).head(options.events))
    if "skewed" in names:
        chosen.append(loads.skewed(options.events))
    return chosen


def chosen_paths(options: argparse.Namespace) -> list[PeerPath]:
    """Those that were named, or all; without the ones that cannot run here."""
    names = options.paths.split(",") if options.paths else [path.name for path in PATHS]
    unknown = set(names) - {path.name for path in PATHS}
    if unknown:
        raise SystemExit(f"no such path: {', '.join(sorted(unknown))}")
    chosen = [path for path in PATHS if path.name in names]
    for path in chosen:
        reason = path.missing or ("pass --model DIR" if path.needs_model and not options.model else None)
        if reason:
            console.print(f"{path.name} is left out: {reason}")
    return [path for path in chosen if not path.missing and (options.model or not path.needs_model)]


if __name__ == "__main__":
    sys.exit(main())
