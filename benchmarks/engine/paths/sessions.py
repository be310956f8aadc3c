"""The peers' network in a runtime: one or several sessions at the same time, each with its share of the threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from benchmarks.engine.batches import Rectangle, rectangles
from benchmarks.engine.paths.contract import BATCHES, GPU_BATCHES, STEPS, Listed
from benchmarks.engine.paths.rows import Answered, in_order
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import Ints, Poll


class Matrix(Protocol):
    """What torch and numpy have in common."""

    def tolist(self) -> Any:
        """As lists of Python's numbers."""


Session = Callable[[Ints, Ints], tuple[Matrix, Matrix]]  # rows [B, L], last [B] → probabilities, rows [B, k]


class Sessions:
    """`load` makes a session that uses so many threads."""

    def __init__(self, setting: Setting, load: Callable[[int], Session]) -> None:
        self._setting, self._load = setting, load
        self._turned = {"batch": 32, "step": 10}
        self._sessions = [load(setting.threads)]
        self._threads = ThreadPoolExecutor(setting.threads)
        self.dials: Mapping[str, Sequence[int]] = {
            "batch": BATCHES if setting.device == "cpu" else GPU_BATCHES,
            "step": STEPS,
        }
        if setting.threads > 1:
            self.dials = {**self.dials, "sessions": (1, setting.threads)}

    def turn(self, dial: str, value: int) -> None:
        """Of `dials`; several sessions answer different batches at the same time."""
        if dial == "sessions":
            self._sessions = [self._load(self._setting.threads // value) for _ in range(value)]
        else:
            self._turned[dial] = value

    def prepare(self, poll: Poll) -> list[Rectangle]:
        """Rows instead of names, sorted by length."""
        return rectangles(poll, **self._turned, window=self._setting.window)

    def answer(self, prepared: Sequence[Rectangle]) -> list[Answered]:
        """One entry per rectangle."""
        if len(self._sessions) == 1:
            return _answer(self._sessions[0], prepared)
        count = len(self._sessions)
        parts = [prepared[number::count] for number in range(count)]
        answers: list[Answered] = [([], [])] * len(prepared)
        for number, some in enumerate(self._threads.map(_answer, self._sessions, parts)):
            answers[number::count] = some
        return answers

    def listed(self, answers: Sequence[Answered], prepared: Sequence[Rectangle]) -> list[Listed]:
        """In the order of the poll."""
        return in_order(answers, prepared)


def _answer(session: Session, prepared: Sequence[Rectangle]) -> list[Answered]:
    answers = []
    for one in prepared:
        values, best = session(one.rows, one.last)
        answers.append((values.tolist(), best.tolist()))
    return answers
