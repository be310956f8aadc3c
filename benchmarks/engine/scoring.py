"""What it costs to score a catalogue: time per query, recall of the exact list, error of the total, memory.

`python -m benchmarks.engine.scoring` measures on this machine with one thread. Vectors are made as training leaves
them: near a space of few dimensions, of unequal length, with noise. All settings of a catalogue are timed in turn,
round after round, so that what else the machine does meets all of them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.compiling import can_compile
from model.precision import Precision
from model.scorer import BLOCK, ROOM, Scorer, whole
from model.stages import Ranked

WIDTH = 128
RANK = 24  # dimensions that the vectors mostly lie in
TOP_K = 10
ROUNDS = 7
SIZES = (10_000, 50_000, 200_000, 1_000_000)
BATCHES = (1, 16, 64, 256)
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


class Setting(NamedTuple):
    """One way to score one catalogue."""

    classes: int
    precision: Precision
    compiled: bool
    batch: int


def measure(
    sizes: Sequence[int] = SIZES,
    batches: Sequence[int] = BATCHES,
    precisions: Sequence[Precision] = PRECISIONS,
    compiled: Sequence[bool] | None = None,
    *,
    rounds: int = ROUNDS,
    block: int | None = None,
    hidden: int = 0,
    few_in_int8: bool = False,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """One row per setting: median and best µs per query over the rounds, recall@10, error of the log total, bytes.

    By default compiled as well, where this machine can.
    """
    compiled = (False, True)[: 1 + can_compile(device)] if compiled is None else compiled
    rows = []
    for size in sizes:
        vectors, bias, queries = (each.to(device) for each in material(size, max(batches)))
        seen = torch.randint(1, size, (len(queries), hidden), device=device) if hidden else None
        exactly = Scorer(vectors, bias, block=block)
        exact = {batch: answered(exactly, queries, seen, batch) for batch in batches}
        scorers = {
            (precision, fused): Scorer(
                vectors, bias, precision=precision, block=block, compiled=fused, few_in_int8=few_in_int8
            )
            for precision in precisions
            for fused in compiled
        }
        settings = [Setting(size, *way, batch) for way in scorers for batch in batches]
        times = timed({one: scorers[one[1:3]] for one in settings}, queries, seen, rounds)
        for one in settings:
            scorer = scorers[one[1:3]]
            found = answered(scorer, queries, seen, one.batch)
            micros = [1e6 * seconds / one.batch for seconds in times[one]]
            rows.append(
                {
                    **one._asdict(),
                    "hidden": hidden,
                    "block": block or (BLOCK if device == "cpu" else BLOCK * ROOM),
                    "us_per_query": round(statistics.median(micros), 2),
                    "us_per_query_best": round(min(micros), 2),
                    "bytes": scorer.bytes,
                    **agreement(found, exact[one.batch]),
                }
            )
    return rows


def material(classes: int, queries: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors [N + 1, D], bias [N + 1] and queries [Q, D], seeded."""
    random = torch.Generator().manual_seed(seed)
    basis = torch.randn(RANK, WIDTH, generator=random) / RANK**0.5
    vectors = torch.randn(classes + 1, RANK, generator=random) @ basis
    vectors += 0.2 * torch.randn(vectors.shape, generator=random)
    vectors *= 0.1 + 0.2 * torch.rand(classes + 1, 1, generator=random)
    asked = torch.randn(queries, RANK, generator=random) @ basis + 0.5 * torch.randn(queries, WIDTH, generator=random)
    return vectors, torch.randn(classes + 1, generator=random), asked


def timed(
    scorers: dict[Setting, Scorer], queries: Tensor, seen: Tensor | None, rounds: int
) -> dict[Setting, list[float]]:
    """Seconds per call of each setting; the first call, which compiles, is not counted."""
    times: dict[Setting, list[float]] = {setting: [] for setting in scorers}
    for number in range(rounds + 1):
        for setting, scorer in scorers.items():
            part = slice(0, setting.batch)
            begun = time.perf_counter()
            found = scorer.top(queries[part], TOP_K, None if seen is None else seen[part])
            found.classes[0, 0].item()  # waits for the device
            if number:
                times[setting].append(time.perf_counter() - begun)
    return times


def answered(scorer: Scorer, queries: Tensor, seen: Tensor | None, batch: int) -> Ranked:
    """All queries, so many at once."""
    parts = [
        scorer.top(queries[begin : begin + batch], TOP_K, None if seen is None else seen[begin : begin + batch])
        for begin in range(0, len(queries), batch)
    ]
    return whole(parts)


def agreement(found: Ranked, exact: Ranked) -> dict[str, float]:
    """How much of the exact lists was found, and how far off the log of the total is at most and on average."""
    listed = (found.classes[:, :, None] == exact.classes[:, None]).any(-1)
    off = (found.log_total - exact.log_total).abs()
    return {
        "recall": round(listed.double().mean().item(), 5),
        "log_total_error": round(off.mean().item(), 7),
        "log_total_error_worst": round(off.max().item(), 7),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; one JSON object per line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.scoring", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, metavar="B")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--compiled", nargs="+", default=["no", "yes"], choices=["no", "yes"])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--block", type=int, default=BLOCK)
    parser.add_argument("--hidden", type=int, default=0, help="classes hidden from each query")
    parser.add_argument(
        "--few-in-int8", action="store_true", help="batches of up to eight in int8, whatever the precision"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    compiled = [word == "yes" for word in options.compiled]
    found = measure(
        options.sizes,
        options.batches,
        options.precisions,
        compiled,
        rounds=options.rounds,
        block=options.block,
        hidden=options.hidden,
        few_in_int8=options.few_in_int8,
    )
    sys.stdout.writelines(json.dumps(row) + "\n" for row in found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
