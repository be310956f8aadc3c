"""One event at a time: what the network says after one more event, from the states that it kept of the events before.

`Step` computes what `NextMoveModel` does with `last=True`, up to rounding, for windows of which all events but the newest
have left their states in a `Pool`: keys and values of each block, keys of the pointers, and the sums that the pointers'
features are made of. `fill` puts them there for whole windows. An event so costs one token, not a window.

B batch, S slots, W events of a window, D width, H heads, K heads of keys and values, P pointer width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.features import NO_IDENTITY, Batch
from model.network import (
    COUNT_CAP,
    DISTANCES,
    EVENT_DECAYS,
    FAR,
    GAP_BUCKETS,
    HOUR_MS,
    TIME_DECAYS_S,
    Block,
    Copied,
    Heads,
    Mixture,
    NextMoveModel,
    Pointer,
    quantiles,
)

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
    keys_values: tuple[Tensor, ...]  # per block [S, W, 2, K, D/H]
    pointed: Tensor  # [S, W, 4 · P] `Pointer.key` and `Pointer.from_key` of the item's pointer, then the category's
    latest: Tensor  # bool [S, KINDS, W] no later event of the window is the same
    counts: Tensor  # float [S, KINDS, W] how often the same occurred up to here
    decayed: Tensor  # float [S, KINDS, W, DECAYS] the same, as of the newest event, recent events weighing more

    @property
    def bytes(self) -> int:
        """Memory held."""
        tensors = [*self[:5], *self.keys_values, *self[6:]]
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
        *(numbers(slots, window) for _ in range(5)),
        keys_values=tuple(numbers(slots, window, 2, *heads, of=dtype) for _ in model.blocks),
        pointed=numbers(own, window, 4 * config.pointer_width, of=dtype),
        latest=numbers(own, KINDS, window, of=torch.bool),
        counts=numbers(own, KINDS, window, of=torch.float32),
        decayed=numbers(own, KINDS, window, DECAYS, of=torch.float32),
    )


class Step(nn.Module):
    """The network's answer to one more event of each of B users; see `Pool`. Changes nothing."""

    def __init__(self, model: NextMoveModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pool: Pool, event: Event) -> Stepped:
        """Answers [B, 1, …] and what `keep` puts into the pool."""
        model, config = self.model, self.model.config
        slots, lengths = event.slots, event.lengths
        window = pool.times_ms.shape[1]
        places = torch.arange(window, device=slots.device)
        here, seen = places == lengths[:, None], places <= lengths[:, None]  # [B, W]
        ids = [  # [B, W] per kind
            torch.where(seen, torch.where(here, new[:, None], kept[slots]), NO_IDENTITY)
            for kept, new in ((pool.item_ids, event.item_ids), (pool.category_ids, event.category_ids))
        ]
        last = (lengths - 1).clamp(min=0)
        begins = lengths == 0
        gap_ms = torch.where(begins, 0, event.times_ms - pool.times_ms[slots, last])
        session = torch.where(begins, 0, pool.sessions[slots, last] + (gap_ms > config.session_gap_ms))
        x = self.embed(event, gap_ms, begins)
        same = latest = counts = decayed = age = ago = None
        if config.copy:
            new = (event.item_ids, event.category_ids)
            same = [(kind == one[:, None]) & (one >= 0)[:, None] for kind, one in zip(ids, new, strict=True)]  # [B, W]
            latest, counts, decayed, repeated = self.recount(pool, event, same, here, seen, gap_ms)
            x = x + model.repeats(repeated)  # type: ignore[misc]  # there is one with a copy path
            times_ms = torch.where(here, event.times_ms[:, None], pool.times_ms[slots])
            age = torch.log1p((event.times_ms[:, None] - times_ms).clamp(min=0).float() / 1000)  # [B, W]
            ago = (session[:, None] - torch.where(here, session[:, None], pool.sessions[slots])).clamp(min=0).float()
        pointed_at, keys_values = x, []
        maps = None if same is None else torch.stack((age * 0.1, ago == 0, *same), dim=-1)  # [B, W, RELATIONS]
        for block, kept in zip(model.blocks, pool.keys_values, strict=True):
            pointed_at = x
            x, added = attend(block, x, kept, slots, lengths, here, seen, maps)
            keys_values.append(added)
        h = model.norm(x).float()[:, None]  # [B, 1, D]
        mixtures = [Mixture(model.item_query(h), None), Mixture(model.category_query(h), None)]
        pointed = x.new_zeros(0)
        if config.copy:
            pointed = torch.cat([part(pointed_at) for one in pointers(model) for part in (one.key, one.from_key)], -1)
            kept = torch.where(here[:, :, None], pointed[:, None].to(pool.pointed.dtype), pool.pointed[slots])
            features = [
                pointer_features(latest[:, kind], counts[:, kind], age, ago, same[1 - kind], decayed, kind)
                for kind in range(KINDS)
            ]
            mixtures = [
                Mixture(mixture.query, copy(one, gate, h[:, 0], part, candidate, feature))
                for mixture, one, gate, part, candidate, feature in zip(
                    mixtures,
                    pointers(model),
                    (model.item_gate, model.category_gate),
                    kept.chunk(KINDS, dim=-1),
                    latest.unbind(1),
                    features,
                    strict=True,
                )
            ]
        behaviors = torch.where(here, event.behavior_rows[:, None], pool.behavior_rows[slots])
        heads = Heads(
            items=mixtures[0],
            categories=mixtures[1],
            behaviors=model.behavior_head(h),
            goal=model.goal_head(h).squeeze(-1),
            churn=model.churn_head(h).squeeze(-1),
            log_seconds=quantiles(model.time_head(h)),
        )
        empty = x.new_zeros(0)
        states = (empty,) * 3 if latest is None else (latest, counts, decayed)
        return Stepped(heads, ids[0], ids[1], behaviors, session, tuple(keys_values), pointed, *states)

    def embed(self, event: Event, gap_ms: Tensor, begins: Tensor) -> Tensor:
        """The events as vectors [B, D], without what they repeat."""
        model = self.model
        edges = 1000 * 2 ** torch.arange(GAP_BUCKETS, device=gap_ms.device)  # ms
        gaps = torch.where(begins, GAP_BUCKETS + 1, torch.bucketize(gap_ms.clamp(min=0), edges))
        x = model.item(event.item_rows) + model.category(event.category_rows) + model.behavior(event.behavior_rows)
        return x + model.gap(gaps) + model.hour(event.times_ms // HOUR_MS % 24)  # type: ignore[no-any-return]

    def recount(
        self, pool: Pool, event: Event, same: list[Tensor], here: Tensor, seen: Tensor, gap_ms: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`Pool.latest`, `counts` and `decayed` of the users, one event later, and what the event repeats [B, 4].

        All events that are the same share a sum, so the new one's is what they had, weighed down, and 1.
        """
        slots = event.slots
        again = torch.stack(same, dim=1)  # bool [B, KINDS, W], the new event included where it is anything
        known = torch.stack((event.item_ids, event.category_ids), dim=1) >= 0  # [B, KINDS]
        before = (again & ~here[:, None]).float()  # [B, KINDS, W]
        latest = (pool.latest[slots] & seen[:, None] & (before == 0)) | (here[:, None] & known[:, :, None])
        counted = pool.counts[slots]
        count = (counted * before).amax(-1)  # [B, KINDS] of the same so far
        counts = torch.where(here[:, None], ((count + 1) * known)[:, :, None], counted)
        seconds = gap_ms.clamp(min=0).float() / 1000  # [B]
        decays = [torch.full_like(seconds, decay) for decay in EVENT_DECAYS]
        decays += [torch.exp(-seconds / constant) for constant in TIME_DECAYS_S]
        weighed = pool.decayed[slots] * torch.stack(decays, dim=-1)[:, None, None]  # [B, KINDS, W, DECAYS]
        own = ((weighed * before[..., None]).amax(2) + 1) * known[..., None]  # [B, KINDS, DECAYS]
        decayed = torch.where(here[:, None, :, None], own[:, :, None], weighed + before[..., None])
        repeated = torch.stack((count > 0, torch.log1p(count.clamp(max=COUNT_CAP))), dim=-1)  # [B, KINDS, 2]
        return latest, counts, decayed, repeated.flatten(1)


def pointers(model: NextMoveModel) -> tuple[Pointer, Pointer]:
    """The items', then the categories'."""
    return model.item_pointer, model.category_pointer


def attend(
    block: Block,
    x: Tensor,
    kept: Tensor,
    slots: Tensor,
    lengths: Tensor,
    here: Tensor,
    seen: Tensor,
    maps: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`Block.forward` for one more event: its state [B, D], and its keys and values [B, 2, K, D/H].

    As products and sums, which a compiler fuses with the gathering of what is kept.
    """
    normed = block.attention_norm(x)  # [B, D]
    size = x.shape[1] // block.heads
    query = block.query(normed).view(len(x), block.kv_heads, -1, size)  # [B, K, H/K, D/H]
    added = block.key_value(normed).view(len(x), 2, block.kv_heads, size)
    both = torch.where(here[:, :, None, None, None], added[:, None].to(kept.dtype), kept[slots])  # [B, W, 2, K, D/H]
    scores = (query[:, None] * both[:, :, 0, :, None]).sum(-1) / math.sqrt(size)  # [B, W, K, H/K]
    since = lengths[:, None] - torch.arange(here.shape[1], device=x.device)  # [B, W]
    bias = block.distance(since.clamp(0, DISTANCES - 1))  # [B, W, H]
    if maps is not None and block.relation_weight is not None:
        bias = bias + maps @ block.relation_weight
    scores = (scores.flatten(2) + bias).masked_fill(~seen[:, :, None], float("-inf"))  # [B, W, H]
    weights = scores.softmax(1).view(*scores.shape[:2], block.kv_heads, -1, 1)  # [B, W, K, H/K, 1]
    mixed = block.mix((weights * both[:, :, 1, :, None]).sum(1).flatten(1))  # [B, D]
    y = x + torch.sigmoid(block.attention_gate(x)) * mixed
    wide, gate = block.widen(block.feed_norm(y)).chunk(2, dim=-1)
    fed = block.narrow(F.silu(gate) * wide)
    return y + torch.sigmoid(block.feed_gate(y)) * fed, added


def pointer_features(
    candidate: Tensor, counts: Tensor, age: Tensor, sessions: Tensor, other: Tensor, decayed: Tensor, kind: int
) -> Tensor:
    """What `model.network.candidates` says of each event of a window as seen from the newest, [B, W, POINTER_FEATURES]."""
    after = candidate.sum(1, keepdim=True) - candidate.cumsum(1)  # distinct ones more recent, where a candidate
    recent = (after + candidate.long() - 1).clamp(min=0).float()  # [B, W]
    count = counts.clamp(max=COUNT_CAP).clamp(min=1)
    sums = torch.log1p(decayed)
    return torch.cat(
        (
            torch.stack(
                (
                    torch.log1p(recent) / 2,
                    1 / (1 + recent),
                    (recent == 0).float(),
                    (recent == 1).float(),
                    (recent == 2).float(),
                    age / 8,
                    torch.log1p(sessions) / 2,
                    (sessions == 0).float(),
                    (sessions == 1).float(),
                    torch.log(count),
                    (count >= 2).float(),
                    other.float(),
                ),
                dim=-1,
            ),
            sums[:, kind],
            sums[:, 1 - kind],
        ),
        dim=-1,
    )


def copy(pointer: Pointer, gate: nn.Linear, h: Tensor, kept: Tensor, candidate: Tensor, features: Tensor) -> Copied:
    """`Pointer.forward` from kept keys: h [B, D], kept [B, W, 2 · P], candidate [B, W]."""
    key, from_key = kept.chunk(2, dim=-1)  # [B, W, P] each
    match = (pointer.query(h)[:, None] * key).sum(-1) / math.sqrt(pointer.query.out_features)  # [B, W]
    mixed = pointer.from_query(h)[:, None] + from_key + pointer.from_features(features)  # [B, W, P]
    logits = match + (F.gelu(mixed) * pointer.score.weight[0]).sum(-1)
    logits = logits.masked_fill(~candidate, FAR)
    pointer_to = torch.log_softmax(logits, dim=-1).masked_fill(~candidate, FAR)
    opened = gate(h)[:, 0].masked_fill(~candidate.any(-1), -FAR)  # nothing to copy: all to the catalogue
    return Copied(F.logsigmoid(opened)[:, None], F.logsigmoid(-opened)[:, None], pointer_to[:, None])


def keep(pool: Pool, event: Event, found: Stepped) -> None:
    """Puts what a step found into the pool: the users' slots hold one event more."""
    slots, places = event.slots, event.lengths
    pool.item_ids[slots, places] = event.item_ids
    pool.category_ids[slots, places] = event.category_ids
    pool.behavior_rows[slots, places] = event.behavior_rows
    pool.times_ms[slots, places] = event.times_ms
    pool.sessions[slots, places] = found.sessions
    for kept, added in zip(pool.keys_values, found.keys_values, strict=True):
        kept[slots, places] = added.to(kept.dtype)
    if len(pool.pointed):
        pool.pointed[slots, places] = found.pointed.to(pool.pointed.dtype)
        pool.latest[slots], pool.counts[slots], pool.decayed[slots] = found.latest, found.counts, found.decayed


def fill(model: NextMoveModel, pool: Pool, slots: Tensor, batch: Batch) -> None:
    """Puts the states of whole windows into the pool; slots [B], batch [B, L] with L ≤ W."""
    length = batch.item_ids.shape[1]
    relations = model.relate(batch) if model.config.copy else None
    x = model.embed(batch, relations, None)  # [B, L, D]
    pointed_at = x
    for depth, (block, kept) in enumerate(zip(model.blocks, pool.keys_values, strict=True)):
        pointed_at = x
        added = block.key_value(block.attention_norm(x))  # [B, L, 2 · K · D/H]
        kept[slots, :length] = added.view(*x.shape[:2], *kept.shape[2:]).to(kept.dtype)
        if depth < len(model.blocks) - 1:  # nobody asks the top block about events that are over
            x = block(x, relations, None)
    columns = ("item_ids", "category_ids", "behavior_rows", "times_ms")
    for name in columns:
        getattr(pool, name)[slots, :length] = getattr(batch, name)
    gaps = torch.diff(batch.times_ms, dim=1, prepend=batch.times_ms[:, :1])
    pool.sessions[slots, :length] = (gaps > model.config.session_gap_ms).cumsum(1)
    if relations is None:
        return
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
