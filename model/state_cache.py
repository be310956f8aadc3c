"""What the network has computed for users, kept for their next events: a pool of slots within a limit of memory.

Steps go in passes of distinct users. Whoever has no states that fit gets them from the whole window (a refill), then
every step costs one event. Answers equal those to whole windows up to rounding; the cache is derived data, and anything
that fails drops what it touched. Use it from one thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.answers import Seen
from model.compiling import compiled
from model.features import NO_IDENTITY, encode, pad
from model.incremental import Step as NetworkStep
from model.incremental import fill, named
from model.network import Heads, NextMoveModel
from model.passes import passes
from model.pool import Event, Pool, Stepped, keep, new_pool, slot_bytes
from model.slots import Counts, Slots, Tag, after
from model.vocabulary import NONE, PAD, Catalogue, Vocabulary
from model.window import Past, Step, Window, WindowRule

log = logging.getLogger("nextmove")

BUCKETS = (1, 8, 32, 128, 256)  # rows per pass: one program each
REFILL_TOKENS = 8192  # events of windows per pass
STRANGE = (1 << 61) - 1
WARM_RUNS = 5


class Answered(NamedTuple):
    """What the network says after one more event of some users."""

    heads: Heads  # T = 1
    seen: Seen
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
        buckets: Sequence[int] = BUCKETS,
        compile_steps: bool = False,
    ) -> None:
        """Keys and values are kept, and blocks computed, in `dtype`; a pass has at most as many rows as the last bucket.

        What a recurrent backbone keeps is float32, and so are its products.
        """
        each = slot_bytes(model, rule.events, dtype)
        self.buckets = tuple(sorted(buckets))
        if limit_bytes // each < self.buckets[-1]:
            raise ValueError(
                f"{limit_bytes} bytes hold the states of {limit_bytes // each} users, {each} bytes each; "
                f"at least {self.buckets[-1]} are needed"
            )
        self.device = torch.device(device)
        self._model = model
        self._vocabulary = vocabulary
        self._slots = Slots(limit_bytes // each)
        self._pool: Pool = new_pool(model, self._slots.count, rule.events, dtype, device)
        self._strange: list[dict[int, str]] = [{} for _ in range(self._slots.count)]  # by slot: identity → name
        narrow = torch.bfloat16 if dtype == torch.bfloat16 and model.peer is None else None
        self._plain = NetworkStep(model, narrow).eval()
        self.compiled = compile_steps and model.peer is None  # torch compiles no recurrent backbone
        self._program: Callable[[Pool, Event, Tensor], Stepped] = (
            compiled(self._plain) if self.compiled else self._plain
        )
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
    def warm(self, answer: Callable[[Answered], object]) -> None:
        """Runs the programs of all buckets, so that they are compiled, and settles how many rows a pass has at most.

        The smallest number within a tenth of the fastest one per row, with `answer`, which makes of a pass what is wanted.
        Where compiling fails it is done without.
        """
        if self.compiled:
            try:
                for rows in self.buckets:
                    self._step(nothing(rows, self.device))
            except Exception as error:  # noqa: BLE001  # a compiler fails in many ways, and none of them matters
                log.warning("states are kept without compiled code: %s", " ".join(str(error).split())[:200])
                self.compiled, self._program = False, self._plain
        costs = {rows: self._cost(rows, answer) for rows in self.buckets}  # seconds per row
        self.most = min(rows for rows, cost in costs.items() if cost <= 1.1 * min(costs.values()))

    def _step(self, event: Event) -> Stepped:
        return self._program(self._pool, event, named(self._model, event))

    def _cost(self, rows: int, answer: Callable[[Answered], object]) -> float:
        """Seconds per row of a pass: the fastest of a few."""
        event, times = nothing(rows, self.device), []
        for _ in range(WARM_RUNS):
            begun = time.perf_counter()
            found = self._step(event)
            answer(Answered(found.heads, Seen(found.item_ids, found.category_ids, found.behavior_rows), [{}] * rows))
            times.append(time.perf_counter() - begun)
        return min(times) / rows

    def advance(
        self, steps: Sequence[Step], window: Callable[[int], Window]
    ) -> Generator[tuple[list[int], Answered], None, None]:
        """One more event with each step, of at most `room` users, each user's in order: parts of the steps, and their answers.

        `window(n)` is the whole window of step n; it is asked for where nothing fits. After an error, or if it is closed before
        its end, the states of all these users are dropped; where memory was short, passes are smaller from then on.
        """
        try:
            first_of: dict[str, int] = {}
            for number, step in enumerate(steps):
                first_of.setdefault(step.user_id, number)
            slots = self._placed(list(first_of.values()), steps, window)  # refills of all users together
            for some in list(passes([step.user_id for step in steps], self.most)):
                slots |= self._placed([number for number in some if number not in slots], steps, window)
                yield some, self._advanced([steps[number] for number in some], [slots[number] for number in some])
            self._slots.used(step.user_id for step in steps)  # in the order of their events, not of the passes
        except BaseException as error:
            self.distrust(steps)
            if isinstance(error, torch.OutOfMemoryError):
                self.most = max((size for size in self.buckets if size < self.most), default=self.most)
            raise

    def _advanced(self, steps: Sequence[Step], slots: Sequence[int]) -> Answered:
        event = self._event(steps, slots)
        rows = next(size for size in self.buckets if size >= len(steps))
        found = first(self._step(Event(*(widened(column, rows) for column in event))), len(steps))
        keep(self._pool, event, found)
        for step in steps:
            self._slots.keep(step.user_id, after(step))
        seen = Seen(found.item_ids, found.category_ids, found.behavior_rows)
        return Answered(found.heads, seen, [self._strange[slot] for slot in slots])

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
                for part in (*self._pool.keys_values, self._pool.pointed):
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

    def _event(self, steps: Sequence[Step], slots: Sequence[int]) -> Event:
        names = self._vocabulary
        items = [self._identify(step.item, slot, names.items) for step, slot in zip(steps, slots, strict=True)]
        categories = [
            self._identify(step.category, slot, names.categories) for step, slot in zip(steps, slots, strict=True)
        ]
        known, unknown = names.behaviors.index, names.behaviors.first - 1
        columns = np.array(
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
        return Event(*torch.from_numpy(columns).to(self.device).unbind(0))

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


def nothing(rows: int, device: torch.device) -> Event:
    """First events without a name, of whoever has the first slot; for programs that are to run, not to answer.

    Each column is a tensor of its own: a program compiled for two that are one fits no other event.
    """
    event = Event(*torch.zeros((len(Event._fields), rows), dtype=torch.int64, device=device).unbind(0))
    without = torch.full((rows,), NO_IDENTITY, device=device)
    return event._replace(item_ids=without, category_ids=without.clone())


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
