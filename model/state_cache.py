"""What the network has computed for users, kept for their next events: a pool of slots within a limit of memory.

Steps go in passes of distinct users. Whoever has no states that fit gets them from the whole window (a refill), then
every step costs one event. Answers equal those to whole windows up to rounding; the cache is derived data, and anything
that fails drops what it touched. Use it from one thread.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.answers import Seen
from model.compiling import compiled
from model.features import NO_IDENTITY, encode, pad
from model.graphs import WAYS, Graph, Memory, Numbers, new_memory, records
from model.incremental import Step as NetworkStep
from model.incremental import fill, named
from model.network import Heads, NextMoveModel
from model.passes import passes
from model.pool import Event, Pool, Stepped, keep, new_pool, slot_bytes
from model.slots import Counts, Slots, Tag, after
from model.told import Told, difference, fetched, packed, unpacked
from model.vocabulary import NONE, PAD, Catalogue, Vocabulary
from model.window import Past, Step, Window, WindowRule

log = logging.getLogger("nextmove")

BUCKETS = (1, 8, 32, 128, 256)  # rows per pass
GPU_BUCKETS = (
    8,
    64,
    256,
    1024,
    2048,
)  # a GPU needs more to do at once, and a pass of one is no faster than one of eight
LEAST = 256  # users for whom there must be room
REFILL_TOKENS = 8192  # events of windows per pass
STRANGE = (1 << 61) - 1
WARM_RUNS = 5
TOLERANCE = 1e-3  # of a probability, between two ways to run the same program
NO_WINDOW = Window([], [], [], [])


Tell = Callable[[Heads, Seen], Told]  # heads at the newest events (T = 1); on the device, and without waiting for it


class Answered(NamedTuple):
    """What is said after one more event of some users."""

    steps: list[int]  # which of those that were asked about
    told: Told  # on the host
    strange: list[dict[int, str]]  # per user: identity → name that the vocabulary does not know


class StateCache:
    """States of as many users as `limit_bytes` allow; raises ValueError where those are fewer than a pass has rows."""

    def __init__(
        self,
        model: NextMoveModel,
        vocabulary: Vocabulary,
        rule: WindowRule,
        limit_bytes: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        buckets: Sequence[int] | None = None,
        compile_steps: bool = False,
    ) -> None:
        """Keys and values are kept, and blocks computed, in `dtype`; a pass has at most as many rows as the last bucket.

        What a recurrent backbone keeps is float32, and so are its products.
        """
        each = slot_bytes(model, rule.events, dtype)
        self.device = torch.device(device)
        self.recorded = records(self.device)
        room = max(
            0, limit_bytes // each - self.recorded
        )  # a recorded program always has all rows: one slot is nobody's
        least = max(buckets) if buckets else LEAST
        if room < least:
            raise ValueError(
                f"{limit_bytes} bytes hold the states of {room} users, {each} bytes each; at least {least} are needed"
            )
        usual = GPU_BUCKETS if self.recorded else BUCKETS
        self.buckets = tuple(sorted(buckets or (rows for rows in usual if rows <= room)))
        self._model = model
        self._vocabulary = vocabulary
        self._slots = Slots(room)
        self._pool: Pool = new_pool(model, room + self.recorded, rule.events, dtype, device)
        self._strange: list[dict[int, str]] = [{} for _ in range(self._slots.count)]  # by slot: identity → name
        narrow = torch.bfloat16 if dtype == torch.bfloat16 and model.peer is None else None
        self._plain = NetworkStep(model, narrow).eval()
        self.compiled = compile_steps and model.peer is None  # torch compiles no recurrent backbone
        self._program: Callable[[Pool, Event, Tensor], Stepped] = (
            compiled(self._plain, one_for_all_batches=True) if self.compiled else self._plain
        )
        self._graphs: dict[int, tuple[Graph, Told]] = {}  # by rows
        self._graphs_tell: Tell | None = None
        self._memory: Memory | None = None
        self.most = self.buckets[-1]  # rows of a pass
        moved = rule.events - rule.stride  # events before the newest where a window has just moved: most refills
        widths = {width for width in (8, 16, 32, 64, 128, 256, moved) if 0 < width < rule.events}
        self._widths = [*sorted(widths), rule.events]

    @property
    def counts(self) -> Counts:
        """Hits, refills and evictions so far."""
        return self._slots.counts

    @property
    def room(self) -> int:
        """Users whose states can be kept."""
        return self._slots.count

    @property
    def users(self) -> int:
        """Whose states are kept."""
        return len(self._slots)

    @property
    def bytes(self) -> int:
        """Memory of the pool, in use or not."""
        return self._pool.bytes

    @torch.inference_mode()
    def warm(self, tell: Tell, finish: Callable[[Told, int], object]) -> None:
        """Runs the programs of all buckets, so that they are compiled, and settles how many rows a pass has at most.

        The smallest number within a tenth of the fastest one per row, with `finish`, which makes of what is told what is wanted. Sizes for which there is no
        memory are left out. Where compiling fails it is done without, and so is recording, also where what was recorded says
        something else than the program.
        """
        if self.compiled:
            try:
                self._each_size(lambda rows: self._step(self._nothing(rows)))
            except Exception as error:  # noqa: BLE001  # a compiler fails in many ways, and none of them matters
                log.warning("states are kept without compiled code: %s", " ".join(str(error).split())[:200])
                self.compiled, self._program = False, self._plain
        if self.recorded:
            try:
                self._each_size(lambda rows: self._graph(rows, tell))
                self._compare(tell)
            except Exception as error:  # noqa: BLE001  # likewise
                self._record_no_more(error)
                self._slots = Slots(self._slots.count)
                for part in (*self._pool.keys_values, self._pool.pointed, self._pool.recurrent):
                    part.zero_()
        costs: dict[int, float] = {}  # seconds per row
        self._each_size(lambda rows: costs.update({rows: self._cost(rows, tell, finish)}))
        self.most = min(rows for rows, cost in costs.items() if cost <= 1.1 * min(costs.values()))

    def _each_size(self, run: Callable[[int], object]) -> None:
        """For every size of a pass, the largest first, for which a program for all of them is made; those without memory are gone."""
        for rows in reversed(self.buckets):
            try:
                run(rows)
            except torch.OutOfMemoryError:
                if rows == self.buckets[0]:
                    raise
                log.warning("there is no memory for passes of %d users", rows)
                self.buckets = tuple(size for size in self.buckets if size < rows)
                self.most = self.buckets[-1]

    def _record_no_more(self, error: Exception) -> None:
        log.warning("passes are not recorded: %s", " ".join(str(error).split())[:200])
        self.recorded, self._graphs, self._memory = False, {}, None

    def _step(self, event: Event) -> Stepped:
        return self._program(self._pool, event, named(self._model, event))

    def _nothing(self, rows: int) -> Event:
        """First events without a name; for programs that are to run, not to answer.

        Where passes are recorded they are of nobody, whose slot is the last, else of whoever has the first slot. Each column is a tensor of
        its own: a program compiled for two that are one fits no other event.
        """
        slot = self._slots.count if self.recorded else 0
        event = Event(*torch.zeros((len(Event._fields), rows), dtype=torch.int64, device=self.device).unbind(0))
        without = torch.full((rows,), NO_IDENTITY, device=self.device)
        return event._replace(slots=event.slots + slot, item_ids=without, category_ids=without.clone())

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
                kind[:] = [tell(found.heads, seen(found))]
                return packed(kind[0])

            graph = Graph(program, torch.stack(self._nothing(rows)), self._memory)
            self._graphs[rows] = graph, Told(*(torch.empty_like(each, device="meta") for each in kind[0]))
        return self._graphs[rows]

    def _compare(self, tell: Tell) -> None:
        """Raises RuntimeError where recorded passes say something else than the programs do, to made-up users' first events.

        For a cache that nobody has used yet; nothing of it is left.
        """
        most = self.most
        for smaller, rows in zip((0, *self.buckets), self.buckets, strict=False):
            self.most, users = rows, max(smaller + 1, rows - 1)  # where there can be one, a row is nobody's
            steps = [
                made_up(user, event, self._vocabulary)
                for event in range(min(3, self._widths[-1]))
                for user in range(users)
            ]
            told: list[list[Told]] = []
            for recorded in (False, True):
                self.recorded = recorded
                told.append([part.told for part in self.advance(steps, lambda _: NO_WINDOW, tell)])
                self.distrust(steps)
            worst = max(difference(*pair) for pair in zip(*told, strict=True))
            if not worst <= TOLERANCE:
                raise RuntimeError(f"they do not say what the program says: off by {worst:.2g}")
        self.most, self._slots = most, Slots(self._slots.count)

    def _cost(self, rows: int, tell: Tell, finish: Callable[[Told, int], object]) -> float:
        """Seconds per row of a pass: the fastest of a few."""
        event, times = self._nothing(rows), []
        columns = torch.stack(event).cpu().numpy()
        for _ in range(WARM_RUNS):
            begun = time.perf_counter()
            if self.recorded:
                graph, kind = self._graph(rows, tell)
                finish(unpacked(graph.start(columns)(), kind), rows)
            else:
                found = self._step(event)
                finish(fetched(tell(found.heads, seen(found))), rows)
            times.append(time.perf_counter() - begun)
        return min(times) / rows

    def advance(
        self, steps: Sequence[Step], window: Callable[[int], Window], tell: Tell
    ) -> Generator[Answered, None, None]:
        """One more event with each step, of at most `room` users, each user's in order: parts of the steps, and their answers.

        `window(n)` is the whole window of step n; it is asked for where nothing fits. A device of its own is one pass ahead of whoever
        takes the answers. After an error, or if it is closed before its end, the states of all these users are dropped; where memory
        was short, passes are smaller from then on.
        """
        ahead: deque[tuple[list[int], list[dict[int, str]], Callable[[], Told]]] = deque()
        try:
            first_of: dict[str, int] = {}
            for number, step in enumerate(steps):
                first_of.setdefault(step.user_id, number)
            slots = self._placed(list(first_of.values()), steps, window)  # refills of all users together
            for some in list(passes([step.user_id for step in steps], self.most)):
                slots |= self._placed([number for number in some if number not in slots], steps, window)
                mine = [slots[number] for number in some]
                told = self._start([steps[number] for number in some], mine, tell)
                ahead.append((some, [self._strange[slot] for slot in mine], told))
                if len(ahead) == WAYS or not self.recorded:
                    yield _waited(*ahead.popleft())
            while ahead:
                yield _waited(*ahead.popleft())
            self._slots.used(step.user_id for step in steps)  # in the order of their events, not of the passes
        except BaseException as error:
            self.distrust(steps)
            if isinstance(error, torch.OutOfMemoryError):
                self.most = max((size for size in self.buckets if size < self.most), default=self.most)
            raise

    def _start(self, steps: Sequence[Step], slots: Sequence[int], tell: Tell) -> Callable[[], Told]:
        """One pass, whose users' slots hold one event more from now on."""
        columns = self._columns(steps, slots)
        rows = next(size for size in self.buckets if size >= len(steps))
        told = self._replayed(columns, rows, tell) if self.recorded else None
        if told is None:
            event = Event(*torch.from_numpy(columns).to(self.device).unbind(0))
            found = first(self._step(Event(*(widened(column, rows) for column in event))), len(steps))
            keep(self._pool, event, found)
            told = partial(fetched, tell(found.heads, seen(found)))
        for step in steps:
            self._slots.keep(step.user_id, after(step))
        return told

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

    @property
    def recent_users(self) -> list[str]:
        """Whose states are kept, those used last first."""
        return self._slots.recent()

    @torch.inference_mode()
    def restore(self, pasts: Sequence[Past]) -> bool:
        """States of users who are not known here, in slots that are free; whether others are free still.

        Full windows are left out: with its next event the user's begins elsewhere.
        """
        new = [one for one in pasts if one.user_id not in self._slots and len(one.window.items) < self._widths[-1]]
        new = new[: self._slots.free]
        try:
            slots = [self._slots.take(one.user_id) for one in new]
            for slot in slots:
                self._strange[slot] = {}
            lengths = [len(one.window.items) for one in new]
            self._refill_all(slots, lengths, lambda number: new[number].window)
        except BaseException:
            self.distrust(new)
            raise
        for one, length in zip(new, lengths, strict=True):
            self._slots.restore(one.user_id, Tag(one.partition, one.offset, one.start, length))
        return self._slots.free > 0

    def distrust(self, steps: Iterable[Step | Past]) -> None:
        """Drop the states of these users, and what may be no number in them: whoever gets the slot must not read it."""
        for step in steps:
            slot = self._slots.drop(step.user_id)
            if slot is not None:
                for part in (*self._pool.keys_values, self._pool.pointed, self._pool.recurrent):
                    part[slot : slot + 1] = 0

    def _placed(self, numbers: Sequence[int], steps: Sequence[Step], window: Callable[[int], Window]) -> dict[int, int]:
        """The slots of some of the steps, of distinct users, by number; they hold all events but the newest."""
        slots = {number: self._slots.find(steps[number]) for number in numbers}
        cold = [number for number, slot in slots.items() if slot is None]
        for number in cold:
            slot = slots[number] = self._slots.take(steps[number].user_id)
            self._strange[slot] = {}
        found: dict[int, int] = slots  # type: ignore[assignment]  # no None is left
        before = [steps[number].length - 1 for number in cold]
        self._refill_all([found[number] for number in cold], before, lambda place: window(cold[place]))
        return found

    def _refill_all(self, slots: Sequence[int], lengths: Sequence[int], window: Callable[[int], Window]) -> None:
        """The first `lengths` events of the windows, those of about a length together, REFILL_TOKENS at most at once."""
        longer = sorted((number for number, length in enumerate(lengths) if length), key=lengths.__getitem__)
        while longer:
            width = next(width for width in self._widths if width >= lengths[longer[0]])
            most = max(1, REFILL_TOKENS // width)
            some = [number for number in longer[:most] if lengths[number] <= width]
            longer = longer[len(some) :]
            windows = [Window(*(column[: lengths[number]] for column in window(number))) for number in some]  # type: ignore[arg-type]  # a column each
            self._refill([slots[number] for number in some], windows, width)

    def _refill(self, slots: list[int], windows: list[Window], width: int) -> None:
        """States of all events of the windows."""
        columns = encode(windows, self._vocabulary)
        batch = pad(columns, columns.starts, columns.lengths, width)
        for ids, names, catalogue in (
            (batch.item_ids, columns.unknown_items, self._vocabulary.items),
            (batch.category_ids, columns.unknown_categories, self._vocabulary.categories),
        ):
            if names:
                identities = torch.tensor([strange_identity(name, catalogue) for name in names])
                unknown = ids >= catalogue.rows
                local = ids[unknown] - catalogue.rows
                ids[unknown] = identities[local]
                for row, number in zip(unknown.nonzero()[:, 0].tolist(), local.tolist(), strict=True):
                    self._strange[slots[row]][int(identities[number])] = names[number]
        fill(
            self._model, self._pool, torch.tensor(slots, device=self.device), batch.to(self.device), self._plain.narrow
        )

    def _columns(self, steps: Sequence[Step], slots: Sequence[int]) -> Numbers:
        """The steps as an `Event`, [fields, B]."""
        names = self._vocabulary
        items = [self._identify(step.item, slot, names.items) for step, slot in zip(steps, slots, strict=True)]
        categories = [
            self._identify(step.category, slot, names.categories) for step, slot in zip(steps, slots, strict=True)
        ]
        known, unknown = names.behaviors.index, names.behaviors.first - 1
        return np.array(
            [
                slots,
                [step.length - 1 for step in steps],
                *zip(*items, strict=True),
                *zip(*categories, strict=True),
                [known.get(step.behavior, unknown) for step in steps],
                [step.time_ms for step in steps],
            ],
            np.int64,
        )

    def _identify(self, name: str | None, slot: int, catalogue: Catalogue) -> tuple[int, int]:
        """Row and identity of a name; one that the vocabulary does not know is noted with the slot."""
        if name is None:
            return NONE, NO_IDENTITY
        row = catalogue.index.get(name, PAD)
        if row != PAD:
            return row, row
        identity = strange_identity(name, catalogue)
        self._strange[slot][identity] = name
        return catalogue.unknown_row(name), identity


def made_up(user: int, event: int, names: Vocabulary) -> Step:
    """The event of that number of somebody: of some item, which for every fifth user no model knows, with its category."""
    known = names.items.names
    item = known[(7 * user + event) % len(known)] if known and user % 5 else f"unknown {user % 2}"
    return Step(
        user_id=str(user),
        partition=0,
        before=event - 1,
        offset=event,
        start=0,
        length=event + 1,
        item=item,
        behavior=names.behaviors.names[(user + event) % len(names.behaviors.names)],
        category=names.categories.names[(user + event // 2) % len(names.categories.names)]
        if names.categories.names
        else None,
        time_ms=61_000 * (user + event),
    )


def seen(found: Stepped) -> Seen:
    """What the windows hold, the newest events included."""
    return Seen(found.item_ids, found.category_ids, found.behavior_rows)


def _waited(steps: list[int], strange: list[dict[int, str]], told: Callable[[], Told]) -> Answered:
    return Answered(steps, told(), strange)


def strange_identity(name: str, catalogue: Catalogue) -> int:
    """Of a name that the vocabulary does not know: the same within this process, beyond all rows."""
    return catalogue.rows + (hash(name) & STRANGE)


def widened(column: Tensor, rows: int) -> Tensor:
    """[B] → [rows], the last one again and again."""
    return torch.cat((column, column[-1:].expand(rows - len(column)))) if rows > len(column) else column


def first(part: Any, rows: int) -> Any:
    """The first rows of every tensor of a structure."""
    if isinstance(part, Tensor):
        return part[:rows]
    if is_dataclass(part):
        return type(part)(*(first(getattr(part, one.name), rows) for one in fields(part)))  # type: ignore[misc]  # an object
    if isinstance(part, tuple):
        parts = [first(one, rows) for one in part]
        return type(part)(*parts) if hasattr(part, "_fields") else tuple(parts)
    return part
