"""One run of one path: fresh topics, all events on the input before the program starts, every answer counted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.stream.brokers import Broker
from benchmarks.stream.loads import Load
from benchmarks.stream.meter import Figures, figures, watch
from benchmarks.stream.paths import PeerPath
from benchmarks.stream.programs import Program, rss_mb
from benchmarks.stream.topics import Names, Offsets, fill, specs


class WrongCount(Exception):
    """More answers than events, or dead letters where there should be none."""


@dataclass(frozen=True)
class Trial:
    """What one run showed."""

    events: int
    answers: int
    dead_letters: int
    figures: Figures
    peak_rss_mb: float  # of all its processes together

    def to_dict(self) -> dict[str, float]:
        """Flat, for JSON."""
        own = asdict(self)
        return {**own.pop("figures"), **own}


def fresh_names(path: str, partitions: int) -> Names:
    """Topics that no earlier run has used."""
    return Names(f"{path.replace('_', '-')}-{uuid.uuid4().hex[:8]}", partitions)


def run(
    path: PeerPath,
    broker: Broker,
    load: Load,
    partitions: int,
    *,
    settings: Mapping[str, str] | None = None,
    processes: int = 1,
) -> Trial:
    """Play `load` through `path`; `settings` are NextMove's own. Raises when an event is not answered exactly once."""
    names = fresh_names(path.name, partitions)
    events = len(load.records)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="nextmove-benchmark-")))
        site = stack.enter_context(broker.site(specs(names), names.group))
        fill(site.bootstrap, names, load.records)
        outputs = Offsets(site.bootstrap, names.outputs, partitions)
        programs = []
        for number in range(processes):
            state = folder / f"state-{number}"
            state.mkdir()
            environment = path.environment(site, names, state, settings or {})
            programs.append(stack.enter_context(Program(path.command(), environment, folder / f"{number}.log")))
        samples = watch(programs, site.pid, outputs.total, events)
        peak = sum(rss_mb(program.pid) for program in programs)
        for program in programs:
            program.stop()
        answers, letters = (Offsets(site.bootstrap, [topic], partitions).total() for topic in names.outputs)
    if answers != events or letters:
        raise WrongCount(f"{path.name}: {answers} answers and {letters} dead letters to {events} events")
    return Trial(events, answers, letters, figures(samples, events), peak)
