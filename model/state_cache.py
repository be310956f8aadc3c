"""What the network has computed for users, kept for their next events: a pool of slots within a limit of memory.

Steps go in passes of distinct users. Whoever has no states that fit gets them from the whole window (a refill), then
every step costs one event. Answers equal those to whole windows up to rounding; the cache is derived data, and anything
that fails drops what it touched. Use it from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch

from model.features import NO_IDENTITY, encode, pad
from model.graphs import WAYS, Numbers, records
from model.helper import SHARED, Helper, results
from model.incremental import fill
from model.network import NextMoveModel
from model.passes import Order, in_order, passes
from model.pool import Pool, clear, new_pool, slot_bytes
from model.slots import Counts, Slots, Tag, after
from model.stepper import Stepper, Tell
from model.told import Told
from model.vocabulary import NONE, PAD, Catalogue, Vocabulary
from model.window import Past, Step, Window, WindowRule

LEAST = 256  # users for whom there must be room
LAST = 128  # users at most of a pass that two threads end with: in smaller ones each costs more
REFILL_TOKENS = 8192  # events of windows per pass
STRANGE = (1 << 61) - 1


class Answered(NamedTuple):
    """What is said after one more event of some users."""

    steps: list[int]  # which of those that were asked about
    told: Told  # on the host
    strange: list[dict[int, str]]  # per user: identity → name that the vocabulary does not know


class _Asked(NamedTuple):
    """What is to be answered, and who helps."""

    steps: Sequence[Step]
    window: Callable[[int], Window]
    helper: Helper | None


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
        helper: Helper | None = None,
    ) -> None:
        """Keys and values are kept, and blocks computed, in `dtype`; a pass has at most as many rows as the last bucket.

        What a recurrent backbone keeps is float32, and so are its products. A helper, for CPUs, refills, and makes answers of passes,
        while others are computed.
        """
        each = slot_bytes(model, rule.events, dtype)
        self.device = torch.device(device)
        recorded = records(self.device)
        room = max(0, limit_bytes // each - recorded)  # a recorded pass always has all rows: one slot is nobody's
        least = max(buckets) if buckets else LEAST
        if room < least:
            raise ValueError(
                f"{limit_bytes} bytes hold the states of {room} users, {each} bytes each; at least {least} are needed"
            )
        self._vocabulary = vocabulary
        self._slots = Slots(room)
        self._pool: Pool = new_pool(model, room + recorded, rule.events, dtype, device)
        self._strange: list[dict[int, str]] = [{} for _ in range(room)]  # by slot: identity → name
        narrow = torch.bfloat16 if dtype == torch.bfloat16 and model.peer is None else None
        self.stepper = Stepper(
            model, self._pool, buckets, narrow=narrow, compile_steps=compile_steps, recorded=recorded
        )
        self._helper = helper
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

    def warm(self, tell: Tell, finish: Callable[[Told, int], object]) -> None:
        """As `Stepper.warm`, before any user is known."""
        self.stepper.warm(tell, finish)

    def advance(
        self, steps: Sequence[Step], window: Callable[[int], Window], tell: Tell
    ) -> Generator[Answered, None, None]:
        """One more event with each step, of at most `room` users, each user's in order: parts of the steps, and their answers.

        `window(n)` is the whole window of step n; it is asked for where nothing fits, maybe by the helper's thread. A device of its own is one
        pass ahead of whoever takes the answers. After an error, or if it is closed before its end, the states of all these users are dropped;
        where memory was short, passes are smaller from then on.
        """
        try:
            users, order = [step.user_id for step in steps], in_order(steps)
            slots, cold = self._placed(order.firsts, steps)
            late = {number for number in order.broken | cold if steps[number].length > 1}  # others need not wait
            is_shared = self._helper is not None and len(users) >= SHARED
            at_end = min(LAST, (len(users) + 1) // 2) if is_shared else None
            parts = list(passes(users, self.stepper.most, late=late, at_end=at_end))
            ahead = WAYS - 1 if self.stepper.recorded else 0
            helper = self._helper if len(parts) > 1 else None
            works = self._run(parts, order, _Asked(steps, window, helper if is_shared else None), slots, cold, tell)
            with closing(results(works, ahead=ahead, helper=helper)) as answers:
                for (some, strange), told in answers:
                    yield Answered(some, told, strange)
            self._slots.used(step.user_id for step in steps)  # in the order of their events, not of the passes
        except BaseException as error:
            self.distrust(steps)
            if isinstance(error, torch.OutOfMemoryError):
                self.stepper.shrink()
            raise

    def _run(
        self,
        parts: Sequence[list[int]],
        order: Order,
        asked: _Asked,
        slots: dict[int, int],
        cold: set[int],
        tell: Tell,
    ) -> Iterator[tuple[tuple[list[int], list[dict[int, str]]], Callable[[], Told]]]:
        """A pass for each part of the steps: which it answers, the strange names of their users, and how to get what is told.

        Of the users' first steps the slots are given, and which of those are cold; the others are found when the step before is done.
        """
        first = len(parts) if asked.helper is None else 1  # what that waits for at once is nobody else's to begin
        soon = [number for some in parts[:first] for number in some if number in cold]
        later = [number for some in parts[first:] for number in some if number in cold]
        refills = self._refills_of(later, slots, asked) | self._refills_of(soon, slots, asked._replace(helper=None))
        for some in parts:
            for number in some:
                if number in refills:
                    refills.pop(number)()
            mine = [slots.pop(number) for number in some]
            now = [asked.steps[number] for number in some]
            told = self.stepper.run(self._columns(now, mine), tell)
            strange = [self._strange[slot] for slot in mine]
            for step in now:  # their slots hold one event more from now on
                self._slots.keep(step.user_id, after(step))
            following = [order.following[number] for number in some if number in order.following]
            found, too_cold = self._placed(following, asked.steps)
            slots |= found
            refills |= self._refills_of([number for number in following if number in too_cold], slots, asked)
            yield (some, strange), told

    def _refills_of(
        self, cold: Sequence[int], slots: Mapping[int, int], asked: _Asked
    ) -> dict[int, Callable[[], None]]:
        """By number of each cold step the refill that has to be over before it: a helper may begin at once, without one it is done when asked for."""
        found: dict[int, Callable[[], None]] = {}
        lengths = [asked.steps[number].length - 1 for number in cold]
        mine = [slots[number] for number in cold]
        for some, work in self._refills(mine, lengths, lambda place: asked.window(cold[place])):
            over = cache(work) if asked.helper is None else asked.helper.start(work)
            found |= dict.fromkeys((cold[place] for place in some), over)
        return found

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
            for _, work in self._refills(slots, lengths, lambda number: new[number].window):
                work()
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
                clear(self._pool, slot)

    def _placed(self, numbers: Sequence[int], steps: Sequence[Step]) -> tuple[dict[int, int], set[int]]:
        """The slots of some of the steps, of distinct users, by number, and which of them are cold: what their slots hold is of no use."""
        slots = {number: self._slots.find(steps[number]) for number in numbers}
        cold = [number for number, slot in slots.items() if slot is None]
        for number in cold:
            slot = slots[number] = self._slots.take(steps[number].user_id)
            self._strange[slot] = {}
        return slots, set(cold)  # type: ignore[return-value]  # no None is left

    def _refills(
        self, slots: Sequence[int], lengths: Sequence[int], window: Callable[[int], Window]
    ) -> Iterator[tuple[list[int], Callable[[], None]]]:
        """The first `lengths` events of the windows, those of about a length together, REFILL_TOKENS at most at once: places, and the work."""
        longer = sorted((number for number, length in enumerate(lengths) if length), key=lengths.__getitem__)
        while longer:
            width = next(width for width in self._widths if width >= lengths[longer[0]])
            most = max(1, REFILL_TOKENS // width)
            some = [number for number in longer[:most] if lengths[number] <= width]
            longer = longer[len(some) :]
            windows = (Window(*(column[: lengths[number]] for column in window(number))) for number in some)  # type: ignore[arg-type]  # a column each
            yield some, partial(self._refill, [slots[number] for number in some], windows, width)

    def _refill(self, slots: list[int], windows: Iterable[Window], width: int) -> None:
        """States of all events of the windows, which are large and so cut only now."""
        columns = encode(list(windows), self._vocabulary)
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
        fill(self.stepper.plain, self._pool, torch.tensor(slots, device=self.device), batch.to(self.device))

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


def strange_identity(name: str, catalogue: Catalogue) -> int:
    """Of a name that the vocabulary does not know: the same within this process, beyond all rows."""
    return catalogue.rows + (hash(name) & STRANGE)
