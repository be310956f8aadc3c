"""Who has which slot: states of users are kept under a tag that says how far they have come.

A state is derived data: whatever does not fit its tag exactly is computed anew, so a wrong guess costs time, never truth.
Knows nothing of tensors.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from model.window import Step


class Tag(NamedTuple):
    """What the states of a slot stand for: a window of the user, complete up to an offset."""

    partition: int
    offset: int
    start: int  # which of all the user's events the window begins with
    length: int  # events


def before(step: Step) -> Tag:
    """The window that `step` adds one event to."""
    return Tag(step.partition, step.before, step.start, step.length - 1)


def after(step: Step) -> Tag:
    """The window that `step` makes."""
    return Tag(step.partition, step.offset, step.start, step.length)


@dataclass(slots=True)
class Counts:
    """What became of the steps so far."""

    hits: int = 0  # went on from what was kept
    refills: int = 0  # kept nothing that fits
    evictions: int = 0  # slots taken from the user who was idle for longest
    restored: int = 0  # computed in idle time


class Kept(NamedTuple):
    """What an engine tells of the states that it keeps, and of the device where they are."""

    hits: int = 0
    refills: int = 0
    evictions: int = 0
    users: int = 0
    bytes: int = 0
    compiled: float = 0.0  # share of the programs
    restored: int = 0
    device_fallbacks: int = 0  # from a device that failed to the CPU


class Slots:
    """`count` slots, numbered from 0; the user who was idle for longest gives way."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"at least one slot is needed, got {count}")
        self.count = count
        self.counts = Counts()
        self._users: OrderedDict[str, tuple[int, Tag | None]] = OrderedDict()
        self._free = list(range(count - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._users)

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._users

    @property
    def free(self) -> int:
        """Slots that nobody has to give way for."""
        return len(self._free)

    def recent(self) -> list[str]:
        """The users, those used last first."""
        return list(reversed(self._users))

    def find(self, step: Step) -> int | None:
        """The slot that holds what `step` adds to; it is now the one used last."""
        found = self._users.get(step.user_id)
        if found is None or found[1] != before(step):
            self.counts.refills += 1
            return None
        self.counts.hits += 1
        self._users.move_to_end(step.user_id)
        return found[0]

    def take(self, user_id: str) -> int:
        """A slot for a user, whatever it holds; it stands for nothing until `keep`."""
        found = self._users.pop(user_id, None)
        if found is not None:
            slot = found[0]
        elif self._free:
            slot = self._free.pop()
        else:
            _, (slot, _) = self._users.popitem(last=False)
            self.counts.evictions += 1
        self._users[user_id] = slot, None
        return slot

    def used(self, user_ids: Iterable[str]) -> None:
        """These users had events, in this order: the last one was used last."""
        for user_id in user_ids:
            self._users.move_to_end(user_id)

    def keep(self, user_id: str, tag: Tag) -> None:
        """The user's slot holds what `tag` says."""
        slot, _ = self._users[user_id]
        self._users[user_id] = slot, tag

    def restore(self, user_id: str, tag: Tag) -> None:
        """The same, of a user without an event since: everybody else was used later."""
        self.keep(user_id, tag)
        self._users.move_to_end(user_id, last=False)
        self.counts.restored += 1

    def drop(self, user_id: str) -> int | None:
        """What is kept of a user is not to be trusted; the slot that is free now."""
        found = self._users.pop(user_id, None)
        if found is None:
            return None
        self._free.append(found[0])
        return found[0]
