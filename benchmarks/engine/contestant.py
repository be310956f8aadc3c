"""One path in a process of its own: it does what lines of JSON on its standard input ask for, one line of answer each."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.engine.setting import Setting, pin

PROBE_EVENTS = 256
PROBE_S = 0.4
COMPARED = 64  # events whose answers are compared between paths


class Contestant:
    """A path, its users, and what it can be asked to do."""

    def __init__(self, name: str, setting: Setting) -> None:
        from benchmarks.engine.paths import path_named
        from benchmarks.engine.stream import Stream

        entry = path_named(name)
        began = time.perf_counter()
        self.path = entry.build(setting)
        self.built_s = time.perf_counter() - began
        self.setting, self.stream, self.poll = setting, Stream(setting), setting.poll
        self.compared = self.stream.poll(min(COMPARED, setting.poll))
        prepared = self.path.prepare(self.compared)
        began = time.perf_counter()
        self.listed = self.path.listed(self.path.answer(prepared), prepared)
        self.first_s = time.perf_counter() - began
        if entry.is_incremental:
            for poll in self.stream.everybody():
                self.path.answer(self.path.prepare(poll))

    def started(self) -> dict[str, Any]:
        """Start-up times, and the answers that other paths may be compared with."""
        rows = [[int(str(item).rpartition("-")[2]) for item, _ in one] for one in self.listed]
        return {"built_s": self.built_s, "first_answer_s": self.first_s, "compared": rows}

    def tune(self, seconds: float = PROBE_S) -> dict[str, Any]:
        """Each dial in turn to where it answers fastest."""
        best, tried = {}, {}
        for dial, values in self.path.dials.items():
            rates = {}
            for value in values:
                self.turn(dial, value)
                self.run(seconds / 4, size=PROBE_EVENTS)
                rates[value] = self.run(seconds, size=PROBE_EVENTS)["events_per_s"]
            best[dial] = max(rates, key=lambda value: rates[value])
            tried[dial] = {str(value): rate for value, rate in rates.items()}
            self.turn(dial, best[dial])
        return {"dials": best, "tried": tried}

    def turn(self, dial: str, value: int) -> None:
        """Set a dial of the path, or the size of polls."""
        if dial == "poll":
            self.poll = value
        else:
            self.path.turn(dial, value)

    def run(self, seconds: float, size: int | None = None, unseen: float = 0.0) -> dict[str, Any]:
        """Whole polls for at least so many seconds of answering."""
        size = min(size or self.poll, self.setting.poll) if "poll" not in self.path.dials else self.poll
        spent, events = 0.0, 0
        while spent < seconds:
            spent += self._timed(size, unseen)
            events += size
        return {"events": events, "seconds": spent, "events_per_s": events / spent}

    def latency(self, events: int) -> dict[str, Any]:
        """Seconds of each answer when events come one at a time; the first tenth is left out."""
        for dial in self.path.dials:
            self.turn(dial, 1)
        seconds = [self._timed(1, 0.0) for _ in range(events)]
        return {"seconds": seconds[events // 10 :]}

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
    """Arguments: the path's name and the setting as JSON. Ends with its input."""
    name, setting = sys.argv[1], Setting(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if setting.device == "cpu":
        pin(setting.threads)
    contestant = Contestant(name, setting)
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
