"""The benchmark of inference: runs suites, writes their figures as JSON, and a report and a chart from them."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine, notes
from benchmarks.engine.chart import draw
from benchmarks.engine.paths import PATHS
from benchmarks.engine.plan import Plan, quick
from benchmarks.engine.report import render
from benchmarks.engine.setting import LARGE, Setting
from benchmarks.engine.suites import SUITES, measured
from benchmarks.machine import ROOT
from benchmarks.notes import note
from benchmarks.report import add_places, write_report

HERE = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "openvino")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 if any run failed."""
    options = parse(arguments)
    device = None
    if options.device == "cuda" and not options.only_report:
        device = gpu()
        if device is None:
            note("nothing is measured: there is no usable GPU")
            return 0
    places(options, device)
    kept = json.loads(options.json.read_text()) if options.merge or options.only_report else {}
    if options.only_report:
        result = kept
    else:
        result = merged(kept, run(options, device))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.report:
        write_report(result, options.report, draw, render)
    for failure in notes.failures:
        note(f"FAILED: {failure}")
    return 1 if notes.failures else 0


def run(options: argparse.Namespace, device: str | None) -> dict[str, Any]:
    """The sections of the suites that were asked for, and where and with what they were measured."""
    notes.failures.clear()
    about: dict[str, Any] = machine.describe(LIBRARIES, ("model", "benchmarks"))
    if device is not None:
        about["machine"]["gpu"] = device
    named = [path for path in PATHS if options.paths is None or path.name in options.paths]
    missing = {path.name: path.missing(options.device) for path in named}
    paths = [path for path in named if missing[path.name] is None]
    plan = (
        quick(paths, options.threads, options.device)
        if options.quick
        else Plan(
            paths,
            options.threads,
            replace(LARGE if options.large else Setting(), device=options.device),
            runs=options.runs,
        )
    )
    result: dict[str, Any] = {"benchmark": "engine", "setting": plan.setting.to_dict(), "taken": {}}
    result["missing"] = {name: reason for name, reason in missing.items() if reason}
    for threads in plan.threads:
        for suite, rows in measured(plan, threads, options.suites):
            if isinstance(rows, str):
                result["missing"][suite] = rows
            elif rows:
                result[suite] = result.get(suite, []) + rows
                result["taken"][f"{suite}, {threads}"] = about
    for name, reason in result["missing"].items():
        note(f"{name} is left out: {reason}")
    result["failures"] = list(notes.failures)
    return result


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The new figures, and the old ones of suites and numbers of cores that were not measured again."""
    result = {**old, **new, "taken": {**old.get("taken", {}), **new["taken"]}}
    for suite in SUITES:
        measured = {row["threads"] for row in new.get(suite, ())}
        rows = [row for row in old.get(suite, ()) if row["threads"] not in measured] + list(new.get(suite, ()))
        if rows:
            result[suite] = sorted(rows, key=lambda row: row["threads"])
    there = {row.get("path") for suite in SUITES for row in result.get(suite, ())} | result.keys()
    missing = {**old.get("missing", {}), **new["missing"]}
    result["missing"] = {name: reason for name, reason in missing.items() if name not in there}
    return result


def gpu() -> str | None:
    """The name of the GPU that torch would use, None where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, their defaults filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="toy sizes, two runs each: does it work at all?")
    parser.add_argument("--suites", metavar="A,B,…", type=_names, help=f"of {', '.join(SUITES)}")
    parser.add_argument("--paths", metavar="A,B,…", type=_names, help=f"of {', '.join(path.name for path in PATHS)}")
    parser.add_argument("--threads", metavar="A,B,…", help="cores, one pass for each (default: 1,2; 1 on a GPU)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--large", action="store_true", help="width 256, 4 layers, windows of 200, 1,000,000 items")
    parser.add_argument("--runs", type=int, default=Plan.runs, metavar="N", help=f"of each path (default: {Plan.runs})")
    add_places(parser)
    parser.epilog = (
        f"Without --json and --report everything goes to {HERE.relative_to(ROOT)}, of a GPU to a folder of its name below "
        "gpu/, or with --quick to var/benchmarks/engine; with --json alone there is no report."
    )
    options = parser.parse_args(arguments)
    for given, known in ((options.suites or (), SUITES), (options.paths or (), [path.name for path in PATHS])):
        if unknown := set(given) - set(known):
            parser.error(f"no such suite or path: {', '.join(sorted(unknown))}")
    if options.large and (options.device != "cuda" or options.quick):
        parser.error("--large is for --device=cuda, and not for --quick")
    if options.suites is None:
        options.suites = [suite for suite in SUITES if suite != "step" or options.device == "cuda"]
    default = "1" if options.device == "cuda" or (os.cpu_count() or 1) < 2 else "1,2"
    options.threads = [int(each) for each in (options.threads or default).split(",")]
    return options


def places(options: argparse.Namespace, device: str | None) -> None:
    """Where figures and report go, unless that was said."""
    if options.json is None or options.only_report:
        folder = HERE / "gpu" / _folder(device, options.large) if device else HERE
        options.report = options.report or (ROOT / "var" / "benchmarks" / "engine" if options.quick else folder)
    if options.json is None:
        options.json = options.report / "results.json"


def _folder(device: str, large: bool) -> str:
    return re.sub(r"\W+", "-", device).lower() + ("-large" if large else "")


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    sys.exit(main())
