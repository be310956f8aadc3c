"""How a pass is run: one more event of some users, from whole numbers to what is told, with what it leaves in the pool.

Passes have a few sizes. Each is compiled where that is wanted, and recorded where the device records; what was recorded is compared
with the program before anybody believes it. It knows slots, not users. Use it from one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.ahead_of_time import Lasting, leaves, rebuilt, works_on
from model.conclusion import Seen
from model.config import NextMoveConfig
from model.features import NO_IDENTITY
from model.graphs import WAYS, Graph, Memory, Numbers, new_memory
from model.helper import results
from model.incremental import Step, named
from model.network import Heads, NextMoveModel
from model.pool import Event, Pool, Stepped, clear, keep
from model.short_pass import Asked, short_pass
from model.step_library import compiled_step
from model.told import Told, difference, fetched, packed, unpacked
from model.vocabulary import NONE

log = logging.getLogger("nextmove")

BUCKETS = (1, 8, 32, 128, 256)  # rows per pass
GPU_BUCKETS = (
    8,
    64,
    256,
    1024,
    2048,
)  # a GPU needs more to do at once, and a pass of one is no faster than one of eight
WARM_RUNS = 5
TOLERANCE = 1e-3  # of a probability, between two ways to run the same program
COMPARED = 3  # events of each made-up user, or as many as a window has


class Tell(NamedTuple):
    """What is told of events, the same way each time."""

    of: Callable[[Heads, Seen], Told]  # heads at the newest events (T = 1); on the device, and without waiting for it
    asked: Callable[
        [int], Lasting[Asked] | None
    ]  # the same of so many events, for a short pass; None where that is no use


class Stepper:
    """Passes of at most `most` users, and in `sizes`: the number of rows is the smallest of them that is enough."""

    def __init__(
        self,
        model: NextMoveModel,
        pool: Pool,
        sizes: Sequence[int] | None,
        *,
        narrow: torch.dtype | None,
        compile_steps: bool,
        recorded: bool,
    ) -> None:
        """By default sizes are those of the device for which the pool has room; where passes are recorded its last slot is nobody's.

        With `narrow`, products are computed in that type.
        """
        slots = len(pool.item_ids)
        self.device = pool.item_ids.device
        self.recorded = recorded
        usual = GPU_BUCKETS if recorded else BUCKETS
        self.sizes = tuple(sorted(sizes or (rows for rows in usual if rows <= slots - recorded)))
        self.most = self.sizes[-1]
        self._nobody = (
            slots - 1 if recorded else 0
        )  # or whoever gets the first slot, and never looks at what is kept there
        self._model, self._pool = model, pool
        self.plain = Step(model, narrow).eval()
        self.compiled = compile_steps and model.peer is None  # torch compiles no recurrent backbone
        self.program: Callable[[Pool, Event, Tensor], Stepped] = (
            compiled_step(self.plain, self.device) if self.compiled else self.plain
        )
        self._short = short_pass(self.plain) if self.compiled and works_on(self.device.type) else None
        self._short_sizes: set[int] = set()  # in which it is faster
        self._asked: dict[int, Lasting[Asked] | None] = {}  # by rows
        self._asked_tell: Tell | None = None
        self._lasting_pool = Lasting(pool)
        self._graphs: dict[int, tuple[Graph, Told]] = {}  # by rows
        self._graphs_tell: Tell | None = None
        self._memory: Memory | None = None

    @torch.inference_mode()
    def warm(self, tell: Tell, finish: Callable[[Told, int], object]) -> None:
        """Runs the programs of all sizes, so that they are compiled, and settles how many rows a pass has at most.

        The smallest number within a tenth of the fastest one per row, with `finish`, which makes of what is told what is wanted. Sizes for
        which there is no memory are left out. Where compiling fails it is done without, and so is recording, also where what was recorded
        says something else than the program. For a pool that nobody has used yet.
        """
        if self.compiled:
            try:
                self._each_size(lambda rows: self._step(self._nothing(rows)))
            except Exception as error:  # noqa: BLE001  # a compiler fails in many ways, and none of them matters
                log.warning("states are kept without compiled code: %s", " ".join(str(error).split())[:200])
                self.compiled, self.program, self._short = False, self.plain, None
        if self.recorded:
            try:
                self._each_size(lambda rows: self._graph(rows, tell))
                self._compare(tell)
            except Exception as error:  # noqa: BLE001  # likewise
                self._record_no_more(error)
            clear(self._pool)
        costs: dict[int, float] = {}  # seconds per row
        self._each_size(lambda rows: costs.update({rows: self._cost(rows, tell, finish)}))
        if self._short is not None:
            try:
                costs |= self._short_costs(costs, tell, finish)
            except Exception as error:  # noqa: BLE001  # what compiles need not run
                log.warning("passes of few events are done in parts: %s", " ".join(str(error).split())[:200])
                self._short, self._short_sizes = None, set()
            clear(self._pool, self._nobody)
        self.most = min(rows for rows, cost in costs.items() if cost <= 1.1 * min(costs.values()))

    def run(self, columns: Numbers, tell: Tell) -> Callable[[], Told]:
        """A pass of distinct slots, an `Event` as [fields, B]: they hold one event more, and whoever asks gets its answers.

        Where nothing is recorded they are made then, of what the pass has found.
        """
        count = columns.shape[1]
        rows = next(size for size in self.sizes if size >= count)
        told = self._replayed(columns, rows, tell) if self.recorded else None
        if told is None:
            last_again = np.minimum(np.arange(rows), count - 1)  # and again
            whole = columns.take(last_again, axis=1)  # each field in one piece, which indexing would not give
            if rows in self._short_sizes:
                told = self._at_once(torch.from_numpy(whole), count, tell)
        if told is None:
            event = Event(*torch.from_numpy(whole).to(self.device).unbind(0))
            found = self._step(event)
            if count < rows:
                event, found = first(event, count), first(found, count)
            keep(self._pool, event, found)
            told = partial(self._told, tell, found)
        return told

    def _at_once(self, columns: Tensor, count: int, tell: Tell) -> Callable[[], Told] | None:
        """A short pass: an `Event` [fields, rows], of which so many count. None where there is none of so many rows."""
        if self._short is None or self._short.is_plain:
            return None
        if tell is not self._asked_tell:
            self._asked, self._asked_tell = {}, tell
        rows = columns.shape[1]
        if rows not in self._asked:
            self._asked[rows] = tell.asked(rows)
        asked = self._asked[rows]
        if asked is None:
            return None
        told = self._short(self._lasting_pool, columns, named(self._model, Event(*columns.unbind(0))), asked)
        return lambda: first(told, count) if count < rows else told

    def _short_costs(
        self, costs: Mapping[int, float], tell: Tell, finish: Callable[[Told, int], object]
    ) -> dict[int, float]:
        """Seconds per row of short passes, in the sizes in which they cost less than those given; something of nobody is kept then."""
        found: dict[int, float] = {}
        for rows in self.sizes:
            columns, times = torch.stack(self._nothing(rows)), []
            for _ in range(WARM_RUNS):
                begun = time.perf_counter()
                told = self._at_once(columns, rows, tell)
                if told is None:
                    break
                finish(told(), rows)
                times.append(time.perf_counter() - begun)
            if times and min(times) / rows < costs[rows]:
                found[rows] = min(times) / rows
        if self._short is not None and self._short.is_plain:  # one that does not compile ends them all
            found = {}
        self._short_sizes = set(found)
        return found

    def shrink(self) -> None:
        """Memory was short: passes are of the next smaller size from now on."""
        self.most = max((size for size in self.sizes if size < self.most), default=self.most)

    def _each_size(self, run: Callable[[int], object]) -> None:
        """For every size of a pass, the largest first, for which a program for all of them is made; those without memory are gone."""
        for rows in reversed(self.sizes):
            try:
                run(rows)
            except torch.OutOfMemoryError:
                if rows == self.sizes[0]:
                    raise
                log.warning("there is no memory for passes of %d users", rows)
                self.sizes = tuple(size for size in self.sizes if size < rows)
                self.most = self.sizes[-1]

    def _step(self, event: Event) -> Stepped:
        return self.program(self._pool, event, named(self._model, event))

    @staticmethod
    def _told(tell: Tell, found: Stepped) -> Told:
        return fetched(tell.of(found.heads, seen(found)))

    def _nothing(self, rows: int) -> Event:
        """First events without a name; for programs that are to run, not to answer."""
        event = Event(*torch.zeros((len(Event._fields), rows), dtype=torch.int64, device=self.device).unbind(0))
        event.slots.fill_(self._nobody)
        for identities in (event.item_ids, event.category_ids):
            identities.fill_(NO_IDENTITY)
        return event

    def _graph(self, rows: int, tell: Tell) -> tuple[Graph, Told]:
        """The recorded pass of so many rows, and an answer of its kind."""
        if tell is not self._graphs_tell or self._memory is None:
            self._graphs, self._graphs_tell = {}, tell
            self._memory = new_memory()  # that of the others went with them
        if rows not in self._graphs:
            kind: list[Told] = []

            def program(columns: Tensor) -> Tensor:
                event = Event(*columns.unbind(0))
                found = self._step(event)
                keep(self._pool, event, found)
                kind[:] = [tell.of(found.heads, seen(found))]
                return packed(kind[0])

            graph = Graph(program, torch.stack(self._nothing(rows)), self._memory)
            self._graphs[rows] = graph, Told(*(torch.empty_like(each, device="meta") for each in kind[0]))
        return self._graphs[rows]

    def _replayed(self, columns: Numbers, rows: int, tell: Tell) -> Callable[[], Told] | None:
        """A recorded pass; None where it cannot be recorded, which what is hidden now may be the reason for."""
        try:
            graph, kind = self._graph(rows, tell)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # as when it is warmed up
            self._record_no_more(error)
            return None
        numbers = graph.start(columns)
        return lambda: unpacked(numbers(), kind)

    def _record_no_more(self, error: Exception) -> None:
        log.warning("passes are not recorded: %s", " ".join(str(error).split())[:200])
        self.recorded, self._graphs, self._memory = False, {}, None

    def _compare(self, tell: Tell) -> None:
        """Raises RuntimeError where recorded passes say something else than the programs do, to made-up users' first events."""
        for smaller, rows in zip((0, *self.sizes), self.sizes, strict=False):
            users = max(smaller + 1, rows - 1)  # where there can be one, a row is nobody's
            events = min(COMPARED, self._pool.item_ids.shape[1])
            given = [made_up(self._model.config, users, event) for event in range(events)]
            told: list[list[Told]] = []
            for recorded in (False, True):
                self.recorded = recorded
                told.append(self._ahead(given, tell))
            worst = max(difference(*pair) for pair in zip(*told, strict=True))
            if not worst <= TOLERANCE:
                raise RuntimeError(f"they do not say what the program says: off by {worst:.2g}")

    def _ahead(self, given: Sequence[Numbers], tell: Tell) -> list[Told]:
        """Passes one after the other, of which as many are under way as can be."""
        under_way = ((None, self.run(columns, tell)) for columns in given)
        return [told for _, told in results(under_way, ahead=WAYS - 1)]

    def _cost(self, rows: int, tell: Tell, finish: Callable[[Told, int], object]) -> float:
        """Seconds per row of a pass of which nothing is kept: the fastest of a few."""
        event, times = self._nothing(rows), []
        columns = torch.stack(event).cpu().numpy()
        for _ in range(WARM_RUNS):
            begun = time.perf_counter()
            if self.recorded:
                graph, kind = self._graph(rows, tell)
                finish(unpacked(graph.start(columns)(), kind), rows)
            else:
                finish(self._told(tell, self._step(event)), rows)
            times.append(time.perf_counter() - begun)
        return min(times) / rows


def made_up(config: NextMoveConfig, users: int, event: int) -> Numbers:
    """The event of that number of so many users, in the first slots: about some item, which for every fifth of them no model knows."""
    user = np.arange(users)
    named, strange = config.item_rows - config.item_first, (user % 5 == 0) | (config.item_rows == config.item_first)
    items = np.where(strange, config.item_first - 1, config.item_first + (7 * user + event) % max(1, named))
    categories = config.category_first + (user + event // 2) % max(1, config.category_rows - config.category_first)
    some = categories < config.category_rows
    behaviors = config.behavior_first + (user + event) % (config.behavior_rows - config.behavior_first)
    return np.array(
        [
            user,
            np.full(users, event),
            items,
            np.where(strange, config.item_rows + user % 2, items),
            np.where(some, categories, NONE),
            np.where(some, categories, NO_IDENTITY),
            behaviors,
            61_000 * (user + event),
        ],
        np.int64,
    )


def seen(found: Stepped) -> Seen:
    """What the windows hold, the newest events included."""
    return Seen(found.item_ids, found.category_ids, found.behavior_rows)


def first(part: Any, rows: int) -> Any:
    """The first rows of every tensor of a structure."""
    return rebuilt(part, iter([tensor[:rows] for tensor in leaves(part, Tensor)]))
