"""Where the states of users lie: tensors of slots, and what one more event adds to them.

S slots, W events of a window, B batch, D width, H heads, K heads of keys and values, P pointer width, R recurrent states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.backbones import Recurrent
from model.network import Heads, NextMoveModel
from model.pointer import EVENT_DECAYS, TIME_DECAYS_S

DECAYS = len(EVENT_DECAYS) + len(TIME_DECAYS_S)
KINDS = 2  # items, categories


class Pool(NamedTuple):
    """States of S users, W events each; what lies behind a user's events is of somebody else, and never looked at.

    Without a copy path the last four are empty: nothing points at the window.
    """

    item_ids: Tensor  # int64 [S, W] identities
    category_ids: Tensor  # int64 [S, W]
    behavior_rows: Tensor  # int64 [S, W]
    times_ms: Tensor  # int64 [S, W]
    sessions: Tensor  # int64 [S, W] breaks since the window's first event
    keys_values: tuple[Tensor, ...]  # per block [S, 2, W, K, D/H]
    recurrent: Tensor  # float [S, R, D] R states of a recurrent backbone, else none
    pointed: Tensor  # [S, W, 4 · P] `Pointer.key` and `Pointer.from_key` of the item's pointer, then the category's
    latest: Tensor  # bool [S, KINDS, W] no later event of the window is the same
    counts: Tensor  # float [S, KINDS, W] how often the same occurred up to here
    decayed: Tensor  # float [S, KINDS, W, DECAYS] the same, as of the newest event, recent events weighing more

    @property
    def bytes(self) -> int:
        """Memory held."""
        tensors = [tensor for part in self for tensor in (part if isinstance(part, tuple) else (part,))]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Event(NamedTuple):
    """One more event of B users; int64 [B] each."""

    slots: Tensor
    lengths: Tensor  # events that the slot holds before this one
    item_rows: Tensor
    item_ids: Tensor
    category_rows: Tensor
    category_ids: Tensor
    behavior_rows: Tensor
    times_ms: Tensor


class Stepped(NamedTuple):
    """What a step found: answers, the window as seen from the event, and what is to be kept of it."""

    heads: Heads  # T = 1
    item_ids: Tensor  # [B, W]; NO_IDENTITY behind the newest event
    category_ids: Tensor  # [B, W]
    behavior_rows: Tensor  # [B, W]
    sessions: Tensor  # [B]
    keys_values: tuple[Tensor, ...]  # per block [B, 2, K, D/H]
    recurrent: Tensor  # [B, R, D]
    pointed: Tensor  # [B, 4 · P]
    latest: Tensor  # [B, KINDS, W]
    counts: Tensor  # [B, KINDS, W]
    decayed: Tensor  # [B, KINDS, W, DECAYS]


def slot_bytes(model: NextMoveModel, window: int, dtype: torch.dtype) -> int:
    """Memory of one user's states."""
    return new_pool(model, 1, window, dtype, "meta").bytes


def new_pool(model: NextMoveModel, slots: int, window: int, dtype: torch.dtype, device: str = "cpu") -> Pool:
    """Empty states of `slots` users; keys and values in `dtype`."""
    config = model.config
    own = slots if config.copy else 0

    def numbers(*shape: int, of: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=of, device=device)

    heads = (config.kv_heads, config.width // config.heads)
    return Pool(
        numbers(slots, window),
        numbers(slots, window),
        numbers(slots, window),
        numbers(slots, window),
        numbers(slots, window),
        keys_values=tuple(numbers(slots, 2, window, *heads, of=dtype) for _ in model.blocks),
        recurrent=numbers(slots, recurrent_states(model), config.width, of=torch.float32),
        pointed=numbers(own, window, 4 * config.pointer_width, of=dtype),
        latest=numbers(own, KINDS, window, of=torch.bool),
        counts=numbers(own, KINDS, window, of=torch.float32),
        decayed=numbers(own, KINDS, window, DECAYS, of=torch.float32),
    )


def recurrent_states(model: NextMoveModel) -> int:
    """How many states a recurrent backbone keeps: one per layer, two in an LSTM; 0 for another one."""
    if not isinstance(model.peer, Recurrent):
        return 0
    return model.config.layers * (2 if model.config.backbone == "lstm" else 1)


def keep(pool: Pool, event: Event, found: Stepped) -> None:
    """Puts what a step found into the pool: the users' slots hold one event more."""
    slots, places = event.slots, event.lengths
    pool.item_ids[slots, places] = event.item_ids
    pool.category_ids[slots, places] = event.category_ids
    pool.behavior_rows[slots, places] = event.behavior_rows
    pool.times_ms[slots, places] = event.times_ms
    pool.sessions[slots, places] = found.sessions
    for kept, added in zip(pool.keys_values, found.keys_values, strict=True):
        kept[slots, :, places] = added.to(kept.dtype)
    pool.recurrent[slots] = found.recurrent
    if len(pool.pointed):
        pool.pointed[slots, places] = found.pointed.to(pool.pointed.dtype)
        pool.latest[slots], pool.counts[slots], pool.decayed[slots] = found.latest, found.counts, found.decayed


def clear(pool: Pool, slot: int | None = None) -> None:
    """Nothing that may be no number is left in a slot, or in any."""
    which = slice(None) if slot is None else slice(slot, slot + 1)
    for part in (*pool.keys_values, pool.pointed, pool.recurrent):
        part[which] = 0
