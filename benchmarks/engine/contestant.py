"""One path in a process of its own: it does what lines of JSON on its standard input ask for, one line of answer each."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.engine.setting import Setting, pin

PROBE_EVENTS = 256
COMPARED = 64  # events whose answers are compared between paths


class Contestant:
    """A path, its users, and what it can be asked to do."""

    def __init__(self, name: str, setting: Setting, spawned_s: float) -> None:
        from benchmarks.engine.paths import path_named
        from benchmarks.engine.stream import Stream

        entry = path_named(name)
        self.path = entry.build(setting)
        built_s = time.monotonic() - spawned_s
        self.setting, self.stream, self.poll = setting, Stream(setting), setting.poll
        self.is_alone = False  # turned to events that come one at a time
        prepared = self.path.prepare(self.stream.poll(min(COMPARED, setting.poll)))
        began = time.monotonic()
        answers = self.path.answer(prepared)
        self.start_s = built_s + time.monotonic() - began
        self.listed = self.path.listed(answers, prepared)
        if entry.is_incremental:
            for poll in self.stream.everybody():
                self.path.answer(self.path.prepare(poll))
        gc.collect()
        gc.freeze()
        gc.disable()  # as in the worker: half a million objects of torch would be looked at again and again

    def started(self) -> dict[str, Any]:
        """Seconds from the start of the process to its first answers, without the users; and those answers' items."""
        items = [[int(str(item).rpartition("-")[2]) for item, _ in one] for one in self.listed]
        return {"start_s": self.start_s, "items": items}

    def tune(self, seconds: float) -> dict[str, Any]:
        """Each dial in turn to where most events are answered; then everything is warm."""
        best, tried = {}, {}
        for dial, values in self.path.dials.items():
            rates = {}
            for value in values:
                self.turn(dial, value)
                size = value if dial == "poll" else min(PROBE_EVENTS, self.poll)
                self.run(seconds / 4, size)
                rates[value] = self.run(seconds, size)["events_per_s"]
            best[dial] = max(rates, key=lambda value: rates[value])
            tried[dial] = {str(value): rate for value, rate in rates.items()}
            self.turn(dial, best[dial])
        self.run(2 * seconds)
        return {"dials": best, "tried": tried}

    def turn(self, dial: str, value: int) -> None:
        """Set a dial of the path, or the size of polls."""
        if dial == "poll":
            self.poll = value
        else:
            self.path.turn(dial, value)

    def run(self, seconds: float, size: int | None = None, unseen: float = 0.0) -> dict[str, Any]:
        """Whole polls of `size` events, for at least so many seconds of answering."""
        size = size or self.poll
        spent, events = 0.0, 0
        while spent < seconds:
            spent += self._timed(size, unseen)
            events += size
        rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        return {"events": events, "events_per_s": events / spent, "peak_rss_mb": rss_mb}

    def latency(self, events: int) -> dict[str, Any]:
        """Seconds of each answer when events come one at a time, at the best width; as many come before to warm up."""
        if not self.is_alone:
            self._alone(events)
        self.one_by_one(events)
        return {"seconds": self.one_by_one(events)}

    def _alone(self, events: int) -> None:
        self.is_alone = True
        for dial in self.path.dials.keys() - {"step"}:
            self.turn(dial, 1)
        means = {}
        for step in self.path.dials.get("step", ()):
            self.turn("step", step)
            self.one_by_one(events)
            means[step] = sum(self.one_by_one(events))
        if means:
            self.turn("step", min(means, key=lambda step: means[step]))

    def one_by_one(self, events: int) -> list[float]:
        """Seconds of each answer, polls of one."""
        return [self._timed(1, 0.0) for _ in range(events)]

    def _timed(self, size: int, unseen: float) -> float:
        poll = self.stream.poll(size, unseen=unseen)
        prepared = self.path.prepare(poll)
        began = time.perf_counter()
        answers = self.path.answer(prepared)
        spent = time.perf_counter() - began
        listed = self.path.listed(answers, prepared)
        if len(listed) != size or any(len(one) != self.setting.top_k for one in listed):
            raise RuntimeError(f"{size} events, {len(listed)} answers, not all with {self.setting.top_k} items")
        return spent


def main() -> int:
    """Arguments: the path's name, the setting as JSON, the time at which it was started. Ends with its input."""
    name, setting, spawned_s = sys.argv[1], Setting(**json.loads(sys.argv[2])), float(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if setting.device == "cpu":
        pin(setting.threads)
    contestant = Contestant(name, setting, spawned_s)
    done: dict[str, Callable[..., dict[str, Any]]] = {
        "started": contestant.started,
        "tune": contestant.tune,
        "run": contestant.run,
        "latency": contestant.latency,
    }
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(done[request.pop("do")](**request)) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
