"""One event at a time: what the network says after one more event, from the states that it kept of the events before.

`Step` computes what `NextMoveModel` does with `last=True`, up to rounding, for windows of which all events but the newest
have left their states in a `Pool`: keys and values of each block, or the state of a recurrent backbone, keys of the
pointers, and the sums that the pointers' features are made of. `fill` puts them there for whole windows. An event so costs one token, not a window.

B batch, S slots, W events of a window, D width, H heads, K heads of keys and values, P pointer width.
"""

from __future__ import annotations

import math
from copy import deepcopy as copy_of
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from model.backbones import Recurrent
from model.features import NO_IDENTITY, Batch
from model.network import (
    DISTANCES,
    GAP_BUCKETS,
    HOUR_MS,
    Block,
    Copied,
    Heads,
    Mixture,
    NextMoveModel,
    gap_buckets,
    quantiles,
)
from model.pointer import COUNT_CAP, EVENT_DECAYS, FAR, TIME_DECAYS_S, Pointer
from model.pool import KINDS, Event, Pool, Stepped


class Step(nn.Module):
    """The network's answer to one more event of each of B users; see `Pool`. Changes nothing."""

    def __init__(self, model: NextMoveModel, narrow: torch.dtype | None = None) -> None:
        """With `narrow`, products of the blocks and pointers are computed in that type, with a copy of the blocks' weights in it."""
        super().__init__()
        self.model = model
        self.narrow = narrow
        self.narrow_blocks = None if narrow is None else narrowed_blocks(model, narrow)

    @property
    def blocks(self) -> nn.ModuleList:
        """Those that compute."""
        return self.model.blocks if self.narrow_blocks is None else self.narrow_blocks

    def forward(self, pool: Pool, event: Event, named: Tensor) -> Stepped:
        """Answers [B, 1, …] and what `keep` puts into the pool; `named` as from the function of that name.

        Nothing here is as long as the catalogue, so that compiled code outlives a model that knows more names.
        """
        model = self.model
        view = look(pool, event, model.config.session_gap_ms)
        again = recount(pool, event, view) if model.repeats is not None else None
        x = named + self.timed(event, view)
        if again is not None and model.repeats is not None:
            x = x + model.repeats(again.repeated)
        pointed_at, keys_values, recurrent = x, [], pool.recurrent[event.slots]
        with narrowed(x, self.narrow):
            if isinstance(model.peer, Recurrent):
                x, recurrent = go_on(model.peer, x, recurrent * (event.lengths > 0)[:, None, None])
            for block, kept in zip(self.blocks, pool.keys_values, strict=True):
                assert isinstance(block, Block)
                pointed_at = x
                x, added = attend(block, x, kept, event, view, None if again is None else again.maps)
                keys_values.append(added)
        h = model.norm(x.float())[:, None]  # [B, 1, D]
        items, categories = Mixture(model.item_query(h), None), Mixture(model.category_query(h), None)
        none = x.new_zeros(0)
        states, pointed = (none, none, none), none
        if again is not None:
            states = (again.latest, again.counts, again.decayed)
            with narrowed(x, self.narrow):
                pointed = torch.cat(
                    [part(pointed_at) for one in pointers(model) for part in (one.key, one.from_key)], -1
                )
            kept = torch.where(view.here[..., None], pointed[:, None].to(pool.pointed.dtype), pool.pointed[event.slots])
            for_items, for_categories = kept.chunk(KINDS, dim=-1)  # [B, W, 2 · P] each
            items = Mixture(items.query, copy(model.item_pointer, model.item_gate, h[:, 0], for_items, again, 0))
            categories = Mixture(
                categories.query, copy(model.category_pointer, model.category_gate, h[:, 0], for_categories, again, 1)
            )
        heads = Heads(
            items=items,
            categories=categories,
            behaviors=model.behavior_logits(h, event.behavior_rows[:, None]),
            goal=model.goal_head(h).squeeze(-1),
            churn=model.churn_head(h).squeeze(-1),
            log_seconds=quantiles(model.time_head(h)),
        )
        found = (heads, *view.ids, view.behavior_rows, view.session)
        return Stepped(*found, tuple(keys_values), recurrent, pointed, *states)

    def timed(self, event: Event, view: View) -> Tensor:
        """When the events are, and how long after the ones before, as vectors [B, D]."""
        gaps = torch.where(event.lengths == 0, GAP_BUCKETS + 1, gap_buckets(view.gap_ms.clamp(min=0)))
        return self.model.gap(gaps) + self.model.hour(event.times_ms // HOUR_MS % 24)  # type: ignore[no-any-return]


def narrowed_blocks(model: NextMoveModel, narrow: torch.dtype) -> nn.ModuleList:
    """The blocks with the weights of their products in a narrow type, so that no pass has to make them so."""
    blocks = copy_of(model.blocks)
    for part in blocks.modules():
        if isinstance(part, nn.Linear):
            part.to(narrow)
    return blocks


def narrowed(x: Tensor, narrow: torch.dtype | None) -> torch.autocast:
    """Products in the narrow type, where there is one."""
    return torch.autocast(x.device.type, narrow, enabled=narrow is not None)


def named(model: NextMoveModel, event: Event) -> Tensor:
    """What the events are about, as vectors [B, D]."""
    what = model.of_items(event.item_rows) + model.category(event.category_rows)
    return what + model.behavior(event.behavior_rows)  # type: ignore[no-any-return]


class View(NamedTuple):
    """The windows as seen from the newest events."""

    here: Tensor  # bool [B, W] the newest event
    seen: Tensor  # bool [B, W] an event
    ids: tuple[Tensor, Tensor]  # [B, W] items, categories; NO_IDENTITY behind the newest event
    behavior_rows: Tensor  # [B, W]
    gap_ms: Tensor  # [B] since the event before, 0 where there is none
    session: Tensor  # [B]
    age: Tensor  # [B, W] log seconds since each event
    sessions_ago: Tensor  # [B, W]


class Again(NamedTuple):
    """What of a window the newest event is like, and what follows for the pointers; same events share their sums."""

    same: Tensor  # bool [B, KINDS, W] the newest event included
    age: Tensor  # [B, W] log seconds since each event
    sessions_ago: Tensor  # [B, W]
    maps: Tensor  # [B, W, RELATIONS] as `model.pointer.Relations.maps`
    repeated: Tensor  # [B, 2 · KINDS] as `model.pointer.seen_before`
    latest: Tensor  # [B, KINDS, W] as in `Pool`, one event later; so are the others
    counts: Tensor  # [B, KINDS, W]
    decayed: Tensor  # [B, KINDS, W, DECAYS]


def look(pool: Pool, event: Event, session_gap_ms: int) -> View:
    """What the kept windows look like from the new events."""
    slots, lengths = event.slots, event.lengths
    places = torch.arange(pool.times_ms.shape[1], device=slots.device)
    here, seen = places == lengths[:, None], places <= lengths[:, None]
    last = (lengths - 1).clamp(min=0)
    gap_ms = torch.where(lengths == 0, 0, event.times_ms - pool.times_ms[slots, last])
    session = torch.where(lengths == 0, 0, pool.sessions[slots, last] + (gap_ms > session_gap_ms))

    def column(kept: Tensor, new: Tensor) -> Tensor:
        return torch.where(here, new[:, None], kept[slots])

    seconds = (event.times_ms[:, None] - column(pool.times_ms, event.times_ms)).clamp(min=0).float() / 1000
    items, categories = column(pool.item_ids, event.item_ids), column(pool.category_ids, event.category_ids)
    return View(
        here,
        seen,
        (torch.where(seen, items, NO_IDENTITY), torch.where(seen, categories, NO_IDENTITY)),
        column(pool.behavior_rows, event.behavior_rows),
        gap_ms,
        session,
        torch.log1p(seconds),
        (session[:, None] - column(pool.sessions, session)).clamp(min=0).float(),
    )


def recount(pool: Pool, event: Event, view: View) -> Again:
    """`Pool.latest`, `counts` and `decayed` one event later.

    The new event's sum is what the same ones had, weighed down, and 1.
    """
    slots, here = event.slots, view.here[:, None]  # bool [B, 1, W]
    new = torch.stack((event.item_ids, event.category_ids), dim=1)  # [B, KINDS]
    known = new >= 0
    same = (torch.stack(view.ids, dim=1) == new[..., None]) & known[..., None]  # [B, KINDS, W]
    before = (same & ~here).float()
    older = view.seen[:, None] & ~here
    latest = (pool.latest[slots] & older & (before == 0)) | (here & known[..., None])
    counted = pool.counts[slots]
    count = (counted * before).amax(-1)  # [B, KINDS]
    counts = torch.where(here, ((count + 1) * known)[..., None], counted)
    seconds = view.gap_ms.clamp(min=0).float() / 1000  # [B]
    decays = [torch.full_like(seconds, decay) for decay in EVENT_DECAYS]
    decays += [torch.exp(-seconds / constant) for constant in TIME_DECAYS_S]
    weighed = pool.decayed[slots] * torch.stack(decays, dim=-1)[:, None, None]  # [B, KINDS, W, DECAYS]
    own = ((weighed * before[..., None]).amax(2) + 1) * known[..., None]  # [B, KINDS, DECAYS]
    decayed = torch.where(here[..., None], own[:, :, None], weighed + before[..., None])
    repeated = torch.stack((count > 0, torch.log1p(count.clamp(max=COUNT_CAP))), dim=-1)  # [B, KINDS, 2]
    maps = torch.stack((view.age * 0.1, view.sessions_ago == 0, *same.unbind(1)), dim=-1)
    return Again(same, view.age, view.sessions_ago, maps, repeated.flatten(1), latest, counts, decayed)


def pointers(model: NextMoveModel) -> tuple[Pointer, Pointer]:
    """The items', then the categories'."""
    return model.item_pointer, model.category_pointer


def attend(
    block: Block, x: Tensor, kept: Tensor, event: Event, view: View, maps: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`Block.forward` for one more event: its state [B, D], and its keys and values [B, 2, K, D/H].

    As products and sums, which a compiler fuses with the gathering of what is kept.
    """
    normed = block.attention_norm(x)  # [B, D]
    size = x.shape[1] // block.heads
    query = block.query(normed).view(len(x), block.kv_heads, -1, size)  # [B, K, H/K, D/H]
    added = block.key_value(normed).view(len(x), 2, block.kv_heads, size)
    here = view.here[:, None, :, None, None]  # [B, 1, W, 1, 1]
    both = torch.where(here, added[:, :, None].to(kept.dtype), kept[event.slots])  # [B, 2, W, K, D/H]
    keys, values = both[:, 0, :, :, None], both[:, 1, :, :, None]  # [B, W, K, 1, D/H] each
    scores = (query[:, None] * keys).sum(-1) / math.sqrt(size)  # [B, W, K, H/K]
    since = event.lengths[:, None] - torch.arange(kept.shape[2], device=x.device)  # [B, W]
    bias = block.distance(since.clamp(0, DISTANCES - 1))  # [B, W, H]
    if maps is not None and block.relation_weight is not None:
        bias = bias + maps @ block.relation_weight
    scores = (scores.flatten(2) + bias).masked_fill(~view.seen[..., None], float("-inf"))  # [B, W, H]
    weights = scores.softmax(1).view(*scores.shape[:2], block.kv_heads, -1, 1)  # [B, W, K, H/K, 1]
    mixed = block.mix((weights * values).sum(1).flatten(1))  # [B, D]
    y = x + torch.sigmoid(block.attention_gate(x)) * mixed
    wide, gate = block.widen(block.feed_norm(y)).chunk(2, dim=-1)
    fed = block.narrow(F.silu(gate) * wide)
    return y + torch.sigmoid(block.feed_gate(y)) * fed, added


def go_on(backbone: Recurrent, x: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """One more event [B, D] on states [B, R, D]: the backbone's answer, and the states after it."""
    given = states.transpose(0, 1).contiguous()  # [R, B, D]
    if isinstance(backbone.inner, nn.LSTM):
        hidden, cell = given.chunk(2)
        answer, (hidden, cell) = backbone.inner(x[:, None], (hidden.contiguous(), cell.contiguous()))
        given = torch.cat((hidden, cell))
    else:
        answer, given = backbone.inner(x[:, None], given)
    return answer[:, 0], given.transpose(0, 1)


def run_through(backbone: Recurrent, x: Tensor, lengths: Tensor) -> Tensor:
    """The states after whole windows, [B, R, D]; x [B, L, D]."""
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states = backbone.inner(packed)[1]
    return (torch.cat(states) if isinstance(states, tuple) else states).transpose(0, 1)


def copy(pointer: Pointer, gate: nn.Module, h: Tensor, kept: Tensor, again: Again, kind: int) -> Copied:
    """`Pointer.forward` from what is kept: h [B, D], kept [B, W, 2 · P]; kind 0: items, 1: categories."""
    key, from_key = kept.chunk(2, dim=-1)  # [B, W, P] each
    candidate = again.latest[:, kind]  # [B, W]
    match = (pointer.query(h)[:, None] * key).sum(-1) / math.sqrt(pointer.query.out_features)  # [B, W]
    mixed = pointer.from_query(h)[:, None] + from_key + pointer.from_features(features(again, kind))  # [B, W, P]
    logits = match + (F.gelu(mixed) * pointer.score.weight[0]).sum(-1)
    chances = torch.log_softmax(logits.masked_fill(~candidate, FAR), dim=-1).masked_fill(~candidate, FAR)
    opened = gate(h)[:, 0].masked_fill(~candidate.any(-1), -FAR)  # nothing to copy: all to the catalogue
    return Copied(F.logsigmoid(opened)[:, None], F.logsigmoid(-opened)[:, None], chances[:, None])


def features(again: Again, kind: int) -> Tensor:
    """What `model.pointer.candidates` says of each event of a window as seen from the newest, [B, W, POINTER_FEATURES]."""
    candidate = again.latest[:, kind]
    after = candidate.sum(1, keepdim=True) - candidate.cumsum(1)
    recent = (after + candidate.long() - 1).clamp(min=0).float()  # [B, W] distinct ones more recent, where a candidate
    count = again.counts[:, kind].clamp(max=COUNT_CAP).clamp(min=1)
    sums = torch.log1p(again.decayed)
    known = (
        torch.log1p(recent) / 2,
        1 / (1 + recent),
        (recent == 0).float(),
        (recent == 1).float(),
        (recent == 2).float(),
        again.age / 8,
        torch.log1p(again.sessions_ago) / 2,
        (again.sessions_ago == 0).float(),
        (again.sessions_ago == 1).float(),
        torch.log(count),
        (count >= 2).float(),
        again.same[:, 1 - kind].float(),
    )
    return torch.cat((torch.stack(known, dim=-1), sums[:, kind], sums[:, 1 - kind]), dim=-1)


def fill(step: Step, pool: Pool, slots: Tensor, batch: Batch) -> None:
    """Puts the states of whole windows into the pool, from which the step goes on; slots [B], batch [B, L] with L ≤ W."""
    model, narrow = step.model, step.narrow
    length = batch.item_ids.shape[1]
    relations = model.relate(batch) if model.config.copy else None
    x = model.embed(batch, relations, None)  # [B, L, D]
    pointed_at = x
    if isinstance(model.peer, Recurrent):
        pool.recurrent[slots] = run_through(model.peer, x, batch.lengths)
    for depth, (block, kept) in enumerate(zip(step.blocks, pool.keys_values, strict=True)):
        assert isinstance(block, Block)
        pointed_at = x
        with narrowed(x, narrow):
            added = block.key_value(block.attention_norm(x))  # [B, L, 2 · K · D/H]
            added = added.view(*x.shape[:2], 2, *kept.shape[3:]).transpose(1, 2)  # [B, 2, L, K, D/H]
            kept[slots, :, :length] = added.to(kept.dtype)
            if depth < len(step.blocks) - 1:  # nobody asks the top block about events that are over
                x = block(x, relations, None)
    columns = ("item_ids", "category_ids", "behavior_rows", "times_ms")
    for name in columns:
        getattr(pool, name)[slots, :length] = getattr(batch, name)
    gaps = torch.diff(batch.times_ms, dim=1, prepend=batch.times_ms[:, :1])
    pool.sessions[slots, :length] = (gaps > model.config.session_gap_ms).cumsum(1)
    if relations is None:
        return
    with narrowed(x, narrow):
        pointed = torch.cat([part(pointed_at) for one in pointers(model) for part in (one.key, one.from_key)], -1)
    pool.pointed[slots, :length] = pointed.to(pool.pointed.dtype)
    since = (batch.lengths - 1)[:, None] - torch.arange(length, device=slots.device)  # [B, L] events before the last
    past = since >= 0
    age = relations.log_age[torch.arange(len(slots), device=slots.device), batch.lengths - 1]  # [B, L] log seconds
    weights = [decay ** since.clamp(min=0).float() for decay in EVENT_DECAYS]
    weights += [torch.exp(-torch.expm1(age) / seconds) for seconds in TIME_DECAYS_S]
    weight = torch.stack(weights, dim=-1) * past[:, :, None]  # [B, L, DECAYS]
    for kind, same in enumerate((relations.same_item, relations.same_category)):
        ids = (batch.item_ids, batch.category_ids)[kind]
        pool.latest[slots, kind, :length] = ~same.triu(1).any(-1) & (ids >= 0) & past
        pool.counts[slots, kind, :length] = same.tril().sum(-1).float()
        pool.decayed[slots, kind, :length] = same.float() @ weight  # [B, L, DECAYS]
