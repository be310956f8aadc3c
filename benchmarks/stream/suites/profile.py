"""Where the worker's microseconds go: a sampling profiler beside it, and its samples sorted into stages.

A sample belongs to the innermost function of NextMove on its stack; where there is none, to the innermost library.
Shares of samples times the CPU time per event are microseconds per event.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from re import search
from typing import Any

from benchmarks.notes import note, rounded
from benchmarks.stream.brokers import Broker
from benchmarks.stream.failures import RunFailed
from benchmarks.stream.loads import Load, skewed
from benchmarks.stream.meter import watch
from benchmarks.stream.paths import path_named
from benchmarks.stream.plan import Plan
from benchmarks.stream.suites.throughput import PARTITIONS
from benchmarks.stream.topics import fill
from benchmarks.stream.trial import Stage, staged

PY_SPY = Path(sys.executable).with_name("py-spy")
SAMPLES_PER_S = 250
WARM = 0.15  # share of the answers after which profiling begins
TOP = 25  # functions listed

WAITING = r"EpollSelector\.select|_worker \(|wait \(.*threading\.py"  # innermost frames of a thread with nothing to do

# A frame is "function (file:line)". Of each group the innermost frame that a pattern finds names the stage; the later
# groups are only asked about stacks that the ones before know nothing of.
STEPS = (
    ("decode", r"Pipeline\.decode|stream_app/events\.py"),
    ("check stored histories", r"stream_app/history_codec\.py"),
    ("fold", r"Pipeline\.fold|HistoryCache\."),
    ("infer", r"Pipeline\.(infer|windows)|constant_predictor\.py"),
    ("score", r"Pipeline\.score|stream_app/scoring\.py"),
    ("encode predictions", r"Pipeline\.conclude|stream_app/predictions\.py"),
    ("table", r"HistoryTable\."),
    ("produce", r"stream_app/(producing|outgoing)\.py|PredictionAgent\._deliver"),
    ("commit", r"PredictionAgent\._commit|aiokafka_fixes\.py"),
    ("chunking", r"stream_app/intake\.py"),
    ("metrics", r"stream_app/(metrics|observations|worker|web)\.py"),
)
LIBRARIES = (
    ("aiokafka: producer", r"aiokafka/producer/"),
    ("aiokafka: consumer", r"aiokafka/(consumer|record)/"),
    ("aiokafka: connections", r"aiokafka/"),
    ("Faust", r"\((faust|mode)/"),
    ("agent", r"PredictionAgent\.(?!run)"),
    ("event loop", r"asyncio/|selectors\.py|concurrent/"),
)


def measure(plan: Plan) -> list[dict[str, Any]]:
    """One profile per broker."""
    if not PY_SPY.exists():
        note("the profile is left out: `make benchmark-setup` installs py-spy")
        return []
    return [_profile(plan, broker) for broker in plan.brokers]


def _profile(plan: Plan, broker: Broker) -> dict[str, Any]:
    load = skewed(plan.sizes.scale_events)
    if broker.most_partition_bytes:
        load = load.fitting(PARTITIONS, broker.most_partition_bytes)
    with staged(path_named("nextmove_constant").with_window(plan.window), broker, PARTITIONS) as stage:
        stacks, cpu_us, events = _sampled(stage, load, plan.sizes.profile_s)
    total = sum(stacks.values())
    stages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for stack, count in stacks.items():
        frames = stack.split(";")
        stages[stage_of(frames)] += count
        functions[_function(frames[-1])] += count
    return {
        "broker": broker.kind,
        "events": events,
        "samples": total,
        "cpu_us_per_event": rounded(cpu_us),
        "stages_us_per_event": _shares(stages.most_common(), cpu_us / total),
        "functions_us_per_event": _shares(functions.most_common(TOP), cpu_us / total),
    }


def stage_of(frames: Iterable[str]) -> str:
    """The stage of a stack, outermost frame first."""
    inner_first = list(frames)[::-1]
    for rules in (STEPS, LIBRARIES):
        for frame in inner_first:
            for stage, pattern in rules:
                if search(pattern, frame):
                    return stage
    return "other"


def _sampled(stage: Stage, load: Load, seconds: float) -> tuple[Counter[str], float, int]:
    """Stacks with their counts, CPU time per event (µs) while profiling, and the events of that time."""
    fill(stage.site.bootstrap, stage.names, load.records)
    total, raw = len(load.records), stage.folder / "stacks.txt"
    answered = stage.outputs.total
    with stage.start() as program:
        watch([program], stage.site.pid, answered, int(total * WARM))
        before = answered(), program.cpu_s()
        profiler = _attach(program.pid, seconds, raw)
        while profiler.poll() is None and answered() < total:
            time.sleep(0.01)
        after = answered(), program.cpu_s()
        watch([program], stage.site.pid, answered, total)
        profiler.wait(30)
    if not raw.exists():
        raise RunFailed(f"py-spy: {profiler.stderr.read() if profiler.stderr else ''}")
    events = after[0] - before[0]
    stacks = Counter({stack: n for stack, n in _parse(raw) if not search(WAITING, stack.rpartition(";")[2])})
    return stacks, (after[1] - before[1]) / events * 1e6, events


def _attach(pid: int, seconds: float, raw: Path) -> subprocess.Popen[str]:
    """Sample a process; without stopping it for a sample, which would cost what is to be measured."""
    arguments = ["record", "--pid", str(pid), "--duration", str(max(1, int(seconds))), "--rate", str(SAMPLES_PER_S)]
    return subprocess.Popen(
        [str(PY_SPY), *arguments, "--format", "raw", "--output", str(raw), "--nonblocking"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _parse(raw: Path) -> Iterator[tuple[str, int]]:
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        yield stack, int(count)


def _function(frame: str) -> str:
    """Function and file, without the line and the way to the file."""
    name, _, place = frame.rpartition(" (")
    return f"{name} ({'/'.join(place.split(':')[0].split('/')[-2:]).rstrip(')')})"


def _shares(counts: Iterable[tuple[str, int]], us_per_sample: float) -> dict[str, float]:
    return {name: rounded(count * us_per_sample) for name, count in counts}
