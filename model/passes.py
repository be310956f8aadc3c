"""Which steps go to the device together: few passes, and as full as can be. Knows nothing of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from model.window import Step


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


def passes(users: Sequence[str], most: int) -> Iterator[list[int]]:
    """Positions, in passes of at most `most`, each of distinct users; a user's in order, one pass after the other.

    Whoever has most left goes first, which makes the fewest passes.
    """
    left: dict[str, list[int]] = {}
    for position, user in enumerate(users):
        left.setdefault(user, []).append(position)
    waiting = [positions[::-1] for positions in left.values()]
    while waiting:
        waiting.sort(key=len, reverse=True)  # nearly in order already
        yield [positions.pop() for positions in waiting[:most]]
        waiting = [positions for positions in waiting if positions]
