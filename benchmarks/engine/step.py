"""What one more event of many users costs a CUDA device, beside what its memory allows. It knows nothing of names or hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine.paths.nextmove import artifact
from benchmarks.engine.setting import Setting
from model.compiling import can_compile
from model.engine import Engine
from model.graphs import Graph, new_memory
from model.incremental import Step, named
from model.pool import Event, Pool, keep, new_pool, slot_bytes
from model.stepper import seen
from model.told import packed

ROWS = (2048, 1024, 256)  # code for all of them is made for the first
WAYS = ((torch.bfloat16, True), (torch.bfloat16, False))  # type of the states, compiled
POOL_BYTES = 4 << 30  # of states, many times what the chip's cache holds
STARTS = 40  # of a pass, between two looks at the clock
ROUNDS = 5  # the fastest counts: what else the host does only adds
COPIED_BYTES = 4 << 30


def measure(setting: Setting) -> list[dict[str, Any]]:
    """One row per network, type of the states, way to run it and number of users at once."""
    return list(rows(setting))


def rows(
    setting: Setting, counts: Sequence[int] = ROWS, ways: Sequence[tuple[torch.dtype, bool]] = WAYS
) -> Iterator[dict[str, Any]]:
    """The same, one after the other."""
    ceiling = copy_bytes_per_s(setting.device)
    for copy in (False, True):
        parts = artifact(setting, copy=copy)
        for dtype, compiled in ways:
            if compiled and not can_compile(setting.device):
                continue
            engine = Engine(parts, device=setting.device, top_k=setting.top_k, compiled=compiled)
            each = slot_bytes(parts.model, setting.window, dtype)
            # outside of inference mode, as in the engine: compiled code takes many times as long with tensors made inside
            pool = filled(new_pool(parts.model, POOL_BYTES // each, setting.window, dtype, setting.device))
            step, answers = programs(engine, pool, dtype, compiled)
            for count in counts:
                step_us, answers_us = (us_per_pass(one, pool, count, setting) for one in (step, answers))
                yield {
                    "copy": copy,
                    "dtype": str(dtype).removeprefix("torch."),
                    "compiled": compiled,
                    "rows": count,
                    "step_us": round(step_us, 2),
                    "answers_us": round(answers_us, 2),
                    "read_bytes": each,
                    "copy_bytes_per_s": ceiling,
                    "share_of_bandwidth": round(each * count / (step_us * 1e-6) / ceiling, 4),
                    "scoring": engine.precision,
                }
            del engine, pool, step, answers
            torch.cuda.empty_cache()


def filled(pool: Pool) -> Pool:
    """With random states: a device may do nothing faster than something."""
    for tensor in (*pool.keys_values, pool.pointed):
        tensor.normal_()
    return pool


def programs(
    engine: Engine, pool: Pool, dtype: torch.dtype, fused: bool
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The step with what it keeps, and the same with all answers; [fields, rows] → [rows, any]."""
    model = engine._model  # noqa: SLF001  # the benchmark takes the engine apart
    tell = engine._tell(engine.top_k)  # noqa: SLF001
    network: Callable[..., Any] = Step(model, torch.bfloat16 if dtype == torch.bfloat16 else None).eval()
    if fused:
        from model.compiling import compiled

        network = compiled(network, one_for_all_batches=True)

    def step(columns: Tensor) -> Tensor:
        event = Event(*columns.unbind(0))
        keep(pool, event, network(pool, event, named(model, event)))
        return event.slots[:, None]

    def answers(columns: Tensor) -> Tensor:
        event = Event(*columns.unbind(0))
        found = network(pool, event, named(model, event))
        keep(pool, event, found)
        return packed(tell.of(found.heads, seen(found)))

    return step, answers


@torch.inference_mode()
def us_per_pass(program: Callable[[Tensor], Tensor], pool: Pool, rows: int, setting: Setting) -> float:
    """Microseconds from pass to pass of so many users of full windows, who are others each time; their copies to and fro included."""
    slots, last = len(pool.item_ids), setting.window - 1
    given = []
    for users in torch.randperm(slots)[: slots // rows * rows].view(-1, rows)[:STARTS]:
        items = torch.randint(3, setting.items, (rows,))
        categories = torch.randint(3, setting.categories, (rows,))
        same = torch.ones(rows, dtype=torch.int64)
        given.append(torch.stack((users, same * last, items, items, categories, categories, same * 3, same * 10**12)))
    graph = Graph(program, given[0].to(setting.device), new_memory())
    times: list[float] = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for number in range(STARTS):
            graph.start(given[number % len(given)].numpy())
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / STARTS)
    return min(times)


def copy_bytes_per_s(device: str) -> float:
    """Bytes read and written a second by a large copy within the device's memory."""
    source = torch.randn(COPIED_BYTES // 4, device=device)
    target = torch.empty_like(source)
    times: list[float] = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(1e-3 * begin.elapsed_time(end))
    return 2 * source.nbytes / sorted(times)[len(times) // 2]
