"""Which steps go to the device together: few passes, and as full as can be. Knows nothing of tensors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

from model.slots import after, before
from model.window import Step


class Order(NamedTuple):
    """Which steps are one user's, by number, and where the states that one leaves are of no use to the next."""

    firsts: list[int]  # of each user
    following: dict[int, int]  # the user's next one, by the one before
    broken: set[int]  # those of them that do not go on from where the one before ends: a refill comes first


def spans(steps: Sequence[Step | None], most: int) -> list[list[int]]:
    """Positions of the steps, in order, cut before a further one would make it more than `most` users."""
    found: list[list[int]] = []
    users: set[str] = set()
    for position, step in enumerate(steps):
        if step is None:
            continue
        if not found or (step.user_id not in users and len(users) == most):
            found.append([])
            users.clear()
        found[-1].append(position)
        users.add(step.user_id)
    return found


def in_order(steps: Sequence[Step]) -> Order:
    """Steps as they follow each other."""
    order, latest = Order([], {}, set()), dict[str, int]()
    for number, step in enumerate(steps):
        earlier = latest.get(step.user_id)
        latest[step.user_id] = number
        if earlier is None:
            order.firsts.append(number)
            continue
        order.following[earlier] = number
        if before(step) != after(steps[earlier]):
            order.broken.add(number)
    return order


def passes(
    users: Sequence[str], most: int, *, late: Container[int] = (), at_end: int | None = None
) -> Iterator[list[int]]:
    """Positions, in passes of at most `most`, each of distinct users; a user's in order, one pass after the other.

    Whoever has most left goes first, which makes the fewest passes; of those who have as much left, whoever comes to a `late` position goes
    last. With `at_end`, for threads that take turns and should end together, the last two passes' worth goes in passes of at most so many.
    """
    by_user: dict[str, list[int]] = {}
    for position, user in enumerate(users):
        by_user.setdefault(user, []).append(position)
    waiting, left = [positions[::-1] for positions in by_user.values()], len(users)
    while waiting:
        waiting.sort(key=lambda positions: (-len(positions), positions[-1] in late))  # nearly in order already
        size = most if at_end is None or left >= 2 * most else min(at_end, most)
        some = [positions.pop() for positions in waiting[:size]]
        yield some
        waiting, left = [positions for positions in waiting if positions], left - len(some)
