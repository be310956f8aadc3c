"""One run of one path: fresh topics, all events on the input before the program starts, every answer counted."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.stream.brokers import Broker, Site
from benchmarks.stream.failures import RunFailed, Stalled, WrongCount
from benchmarks.stream.loads import Load
from benchmarks.stream.meter import Figures, Sample, figures, watch
from benchmarks.stream.paths import PeerPath
from benchmarks.stream.programs import ROOT, Program, rss_mb
from benchmarks.stream.topics import Names, Offsets, fill, specs

FAILED = ROOT / "var" / "benchmarks" / "failed"  # the logs of programs that failed


@dataclass(frozen=True)
class Trial:
    """What one run showed."""

    events: int
    figures: Figures
    peak_rss_mb: float  # of all its processes together

    def to_dict(self) -> dict[str, float]:
        """Flat, for JSON."""
        own = asdict(self)
        return {**own.pop("figures"), **own}


@dataclass(frozen=True)
class Stage:
    """A broker with the topics of one run, and a place for its programs."""

    path: PeerPath
    site: Site
    names: Names
    folder: Path
    settings: Mapping[str, str]
    outputs: Offsets  # counts answers and dead letters

    def state_dir(self, number: int = 0) -> Path:
        """Where a program keeps its state."""
        return self.folder / f"state-{number}"

    def start(self, number: int = 0, **settings: str) -> Program:
        """Start the program; a second time with the same number it finds its state again."""
        self.state_dir(number).mkdir(exist_ok=True)
        given = {**self.settings, **settings}
        environment = self.path.environment(self.site, self.names, self.state_dir(number), given)
        return Program(self.path.command(), environment, self.folder / f"{number}.log")

    def play(self, programs: Sequence[Program], events: int) -> Trial:
        """Watch until every event is answered; then end the programs and count again. Raises WrongCount."""
        samples = watch(programs, self.site.pid, self.outputs.total, events)
        return self.conclude(programs, samples, events)

    def conclude(self, programs: Sequence[Program], samples: Sequence[Sample], events: int) -> Trial:
        """What the samples say of `events`, if the count is right."""
        peak = sum(rss_mb(program.pid) for program in programs)
        for program in programs:
            program.stop()
        answers, letters = (
            Offsets(self.site.bootstrap, [topic], self.names.partitions).total() for topic in self.names.outputs
        )
        if answers != events or letters:
            raise WrongCount(f"{self.path.name}: {answers} answers and {letters} dead letters to {events} events")
        return Trial(events, figures(samples, events), peak)


@contextmanager
def staged(
    path: PeerPath,
    broker: Broker,
    partitions: int,
    settings: Mapping[str, str] | None = None,
    topic_config: Mapping[str, str] | None = None,
) -> Iterator[Stage]:
    """Topics that no run has used before; `settings` are NextMove's own, `topic_config` is of input and output."""
    names = Names(f"{path.name.replace('_', '-')}-{uuid.uuid4().hex[:8]}", partitions)
    with (
        TemporaryDirectory(prefix="nextmove-benchmark-") as folder,
        broker.site(specs(names, topic_config or {}), names.group) as site,
    ):
        outputs = Offsets(site.bootstrap, names.outputs, partitions)
        outputs.connect()
        try:
            yield Stage(path, site, names, Path(folder), settings or {}, outputs)
        except RunFailed:
            _keep_logs(Path(folder), names.group)
            raise


def _keep_logs(folder: Path, run: str) -> None:
    FAILED.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, FAILED / f"{run}-{log.name}")


def run(
    path: PeerPath, broker: Broker, load: Load, partitions: int, settings: Mapping[str, str] | None = None
) -> Trial:
    """Play `load` through `path`. Raises where an event is not answered, or answered twice."""
    with staged(path, broker, partitions, settings) as stage:
        fill(stage.site.bootstrap, stage.names, load.records)
        with stage.start() as program:
            return stage.play([program], len(load.records))


def wait_until_ready(programs: Sequence[Program], limit_s: float = 1200.0) -> None:
    """Until each worker has its partitions and their histories. Raises ProgramEnded or Stalled."""
    deadline = time.monotonic() + limit_s
    while not all(program.ready() for program in programs):
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            raise Stalled(f"not ready after {limit_s:.0f} s\n{programs[0].log_end()}")
        time.sleep(0.05)
