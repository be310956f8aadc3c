"""Contestants as processes: started, asked in turn, ended; what fails is told and left out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.engine.paths import Entry
from benchmarks.engine.setting import Setting
from benchmarks.machine import ROOT
from benchmarks.notes import failed, note

FOLDER = ROOT / "var" / "benchmarks" / "engine"
END_LIMIT_S = 15.0


class Failed(Exception):
    """A contestant ended though nobody told it to; the message is the last that it wrote."""


class Contestant:
    """One path in a process of its own."""

    def __init__(self, entry: Entry, setting: Setting, compiled: Path = FOLDER / "compiled") -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.entry = entry
        self._log = FOLDER / f"{entry.name}.log"
        arguments = (entry.name, json.dumps(setting.to_dict()), str(time.monotonic()))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.engine.contestant", *arguments],
                cwd=ROOT,
                env=_environment(setting.threads, compiled),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """What `benchmarks.engine.contestant` answers; raises Failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(errors="replace").strip().splitlines()
            raise Failed(said[-1] if said else f"exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Kindly at first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


class Race:
    """All contestants that still run."""

    def __init__(self, contestants: Sequence[Contestant]) -> None:
        self.running = {each.entry.name: each for each in contestants}

    def ask(self, do: str, **arguments: Any) -> dict[str, dict[str, Any]]:
        """Each in turn, while the others wait; by name, without those that fail."""
        answers = {}
        for name, each in list(self.running.items()):
            try:
                answers[name] = each.ask(do, **arguments)
            except Failed as failure:
                failed(name, failure)
                self.running.pop(name).end()
        return answers

    def interleave(self, runs: int, do: str, **arguments: Any) -> dict[str, list[dict[str, Any]]]:
        """Each once, then each again: what the machine does meanwhile hits all of them alike."""
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in self.running}
        for number in range(1, runs + 1):
            for name, answer in self.ask(do, **arguments).items():
                done[name].append(answer)
            note(f"  {number}/{runs} {do}")
        return {name: answers for name, answers in done.items() if len(answers) == runs}


@contextmanager
def race(entries: Sequence[Entry], setting: Setting) -> Iterator[Race]:
    """The contestants, while they run; they start one after the other."""
    running = Race([])
    try:
        for entry in entries:
            running.running[entry.name] = Contestant(entry, setting)
            try:
                running.running[entry.name].ask("started")
            except Failed as failure:
                failed(entry.name, failure)
                running.running.pop(entry.name).end()
        yield running
    finally:
        for each in running.running.values():
            each.end()


def _environment(threads: int, compiled: Path) -> Mapping[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEXTMOVE_")}
    numbers = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(compiled / "inductor"), "TRITON_CACHE_DIR": str(compiled / "triton")}
    return {**kept, **numbers, **caches, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
