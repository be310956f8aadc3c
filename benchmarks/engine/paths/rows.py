"""Answers of paths that know rows and rectangles."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.engine.batches import Rectangle
from benchmarks.engine.paths.contract import Listed

Answered = tuple[list[list[float]], list[list[int]]]  # probabilities and rows of a rectangle, [B, k]; row 0 is padding


def in_order(answers: Sequence[Answered], prepared: Sequence[Rectangle]) -> list[Listed]:
    """Answers to rectangles, in the order of the poll; items counted from 0."""
    found: dict[int, Listed] = {}
    for (values, best), one in zip(answers, prepared, strict=True):
        for position, some, rows in zip(one.positions.tolist(), values, best, strict=True):
            found[position] = [(row - 1, value) for row, value in zip(rows, some, strict=True)]
    return [found[position] for position in range(len(found))]
