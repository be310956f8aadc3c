"""The network: a causal Transformer over user events that can choose from the catalogue or copy from the window.

Features:
- an event is the sum of what happened: item, category, behaviour, log-bucketed gap to the event before, hour of day,
  and how often its item and its category already occurred in the window
- pre-norm blocks whose two halves pass through a gate each (LiGR: Hu et al., 2025), with a gated feed-forward (SwiGLU:
  Shazeer, 2020) and grouped keys (GQA: Ainslie et al., EMNLP 2023); or another backbone, see `model.backbones`
- an attention bias from distance (relative positions), time difference, same session, same item, same category
- next item and next category: `p = g · softmax over the catalogue + (1 - g) · pointer over the distinct ones in the
  window`; the pointer also reaches names that the vocabulary does not know
- the pointer sees recency rank, time since, sessions ago, count in the window, same category as the newest event
- where users never repeat anything (`copy` is off) there is no pointer, and distance is all that relates two events
- catalogue logits are tied to the input embeddings, and an item's row shares its category's row
- where items have texts, an item's vector is that of its text and a small difference, see `model.described_items`
- heads: next behaviour, behaviour given the item, goal within a horizon, time to next (monotone quantiles), churn
- the next behaviour's logits begin as what followed each behaviour in training: a first-order Markov chain, learned on from there

What is said at an event depends on nothing after it. It knows nothing of names, files or losses. B batch, L positions,
T query positions (all L, or the last one), D width, H heads, K heads of keys and values, F feed width, N catalogue.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from model import backbones
from model.config import QUANTILES, NextMoveConfig
from model.described_items import DescribedItems, bounded
from model.features import NO_IDENTITY, Batch
from model.pointer import FAR, Pointer, Relations, candidates, pick, seen_before
from model.vocabulary import FIRST_BUCKET

GAP_BUCKETS = 24  # powers of two of seconds: 1 s … 97 days
HOUR_MS = 3_600_000
RELATIONS = 4
DISTANCES = 256  # farther ones count as the farthest
COUNTED = {"behavior_after"}  # parameters that begin as counts of the log, though they are no vectors


class Mixture(NamedTuple):
    """A distribution over (catalogue ∪ distinct ones in the window), in logs; over the catalogue without `copied`."""

    query: Tensor  # [B, T, D] against `catalogue`
    copied: Copied | None


class Copied(NamedTuple):
    """The window's part of a mixture."""

    log_catalogue: Tensor  # [B, T] log of the catalogue's share
    log_copy: Tensor  # [B, T] log of the window's share
    pointer: Tensor  # [B, T, L] log-probability of each candidate, FAR where no candidate


class Heads(NamedTuple):
    """Everything the network says at each query position."""

    items: Mixture
    categories: Mixture
    behaviors: Tensor  # [B, T, behaviours] logits
    goal: Tensor  # [B, T] logit
    churn: Tensor  # [B, T] logit
    log_seconds: Tensor  # [B, T, quantiles] increasing


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each behind a gate that the residual stream opens."""

    def __init__(self, config: NextMoveConfig) -> None:
        super().__init__()
        width, inner = config.width, config.feed_width
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width // config.heads * config.kv_heads, bias=False)
        self.relation_weight = nn.Parameter(torch.zeros(RELATIONS, config.heads)) if config.copy else None
        self.distance = nn.Embedding(DISTANCES, config.heads)  # bias by how many events ago
        self.mix = nn.Linear(width, width, bias=False)
        self.attention_gate = nn.Linear(width, width)
        self.feed_norm = nn.LayerNorm(width, bias=False)
        self.widen = nn.Linear(width, 2 * inner, bias=False)
        self.narrow = nn.Linear(inner, width, bias=False)
        self.feed_gate = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, relations: Relations | None, at: Tensor | None) -> Tensor:
        """[B, L, D] → [B, T, D]; with `at` only those positions ask, all positions are asked."""
        normed = self.attention_norm(x)  # [B, L, D]
        asking, y = (normed, x) if at is None else (pick(normed, at), pick(x, at))  # [B, T, D] each
        key, value = self.key_value(normed).chunk(2, dim=-1)  # [B, L, K · D/H] each
        mixed = F.scaled_dot_product_attention(
            split(self.query(asking), self.heads),  # [B, H, T, D/H]
            split(key, self.kv_heads),  # [B, K, L, D/H]
            split(value, self.kv_heads),
            attn_mask=self.bias(x.shape[1], relations, at),  # [H, L, L] or [B, H, T, L]
            enable_gqa=self.kv_heads < self.heads,
        )
        mixed = self.dropout(self.mix(mixed.transpose(1, 2).flatten(2)))  # [B, T, D]
        y = y + torch.sigmoid(self.attention_gate(y)) * mixed
        wide, gate = self.widen(self.feed_norm(y)).chunk(2, dim=-1)  # [B, T, F] each
        fed = self.dropout(self.narrow(F.silu(gate) * wide))  # [B, T, D]
        return torch.addcmul(y, torch.sigmoid(self.feed_gate(y)), fed)

    def bias(self, length: int, relations: Relations | None, at: Tensor | None) -> Tensor:
        """Causal mask, what the distance adds, and what the relations add, [H, L, L] or [B, H, T, L]."""
        steps = torch.arange(length, device=self.distance.weight.device)
        since = (steps[:, None] if at is None else at[:, None, None]) - steps  # [L, L] or [B, 1, L]
        near: Tensor = self.distance(since.clamp(0, DISTANCES - 1)).movedim(-1, -3)  # [H, L, L] or [B, H, 1, L]
        near = near.masked_fill((since < 0) if at is None else (since < 0)[:, None], float("-inf"))
        if relations is None or self.relation_weight is None:
            return near
        maps = relations.maps if at is None else relations.maps[torch.arange(len(at), device=at.device), :, at, None]
        related = self.relation_weight.t() @ maps.flatten(2)  # [B, H, T · L]
        return related.view(len(maps), self.heads, -1, length) + near


class NextMoveModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Windows in, `Heads` out; see the module's docstring."""

    config_class = NextMoveConfig
    config: NextMoveConfig
    base_model_prefix = "nextmove"
    main_input_name = "batch"

    def __init__(self, config: NextMoveConfig) -> None:
        super().__init__(config)
        width = config.width
        self.item = nn.Embedding(config.item_rows, width)
        self.category = nn.Embedding(config.category_rows, width)
        self.behavior = nn.Embedding(config.behavior_rows, width)
        self.gap = nn.Embedding(GAP_BUCKETS + 2, width)  # the last row: the window's first event
        self.hour = nn.Embedding(24, width)
        self.repeats = nn.Linear(4, width, bias=False) if config.copy else None
        self.dropout = nn.Dropout(config.dropout)
        own = config.backbone == "nextmove"
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers if own else 0))
        self.peer = None if own else backbones.build(config)
        self.norm = nn.LayerNorm(width, bias=False)
        self.item_query = nn.Linear(width, width)
        self.category_query = nn.Linear(width, width)
        self.item_bias = nn.Parameter(torch.zeros(config.item_rows - config.item_first + 1))
        self.category_bias = nn.Parameter(torch.zeros(config.category_rows - config.category_first + 1))
        if config.copy:
            self.item_gate = nn.Linear(width, 1)
            self.category_gate = nn.Linear(width, 1)
            self.item_pointer = Pointer(config)
            self.category_pointer = Pointer(config)
        behaviors = config.behavior_rows - config.behavior_first
        self.behavior_head = nn.Linear(width, behaviors)
        self.behavior_after = nn.Parameter(torch.zeros(config.behavior_rows, behaviors))  # by the newest behaviour
        self.behavior_with_item = nn.Embedding(config.behavior_rows, behaviors)  # by the last behaviour with it
        self.goal_head = nn.Linear(width, 1)
        self.churn_head = nn.Linear(width, 1)
        self.time_head = nn.Linear(width, len(QUANTILES))
        self.described = DescribedItems(config) if config.texts else None
        self.price = nn.Embedding(config.price_buckets, width) if config.price_buckets else None
        self.item_buckets: Tensor | None
        self.register_buffer(
            "item_buckets", torch.zeros(config.item_rows, dtype=torch.int64) if config.price_buckets else None
        )
        # Products of the backbone, and with the catalogue, in bfloat16: for learning, never for answers.
        self.narrow = False
        self.item_categories: Tensor
        self.register_buffer("item_categories", torch.ones(config.item_rows, dtype=torch.int64))  # category rows
        self.post_init()  # type: ignore[no-untyped-call]  # transformers leaves it untyped

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.4 / math.sqrt(module.in_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02 if module is not self.behavior_with_item else 0.0)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, batch: Batch, last: bool = False, hidden: Tensor | None = None) -> Heads:
        """Heads at every position, or with `last` only at the newest event of each window (T = 1).

        A backbone that looks both ways learns the events that it is not shown: hidden bool [B, L].
        """
        at = batch.lengths - 1 if last else None  # [B]
        batch = batch if hidden is None else conceal(batch, hidden)
        relations = self.relate(batch) if self.config.copy else None
        keys, x = self.states(self.dropout(self.embed(batch, relations, hidden)), batch, relations, at, hidden)
        h = self.norm(x).float()  # [B, T, D]
        return Heads(
            items=self.mixture(h, keys, batch.item_ids, relations, at, 0),
            categories=self.mixture(h, keys, batch.category_ids, relations, at, 1),
            behaviors=self.behavior_logits(h, batch.behavior_rows if at is None else pick(batch.behavior_rows, at)),
            goal=self.goal_head(h.detach()).squeeze(-1),  # its labels repeat over a user's events: learned by heart
            churn=self.churn_head(h).squeeze(-1),
            log_seconds=quantiles(self.time_head(h)),
        )

    def behavior_logits(self, h: Tensor, newest: Tensor) -> Tensor:
        """What comes next, [B, T, behaviours]: what follows the newest behaviour, rows [B, T], and what the states h know beyond that."""
        return self.behavior_head(h) + F.embedding(newest, self.behavior_after)  # type: ignore[no-any-return]

    def states(
        self, x: Tensor, batch: Batch, relations: Relations | None, at: Tensor | None, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Events [B, L, D] → what the pointer points at [B, L, D], and the states that are asked for [B, T, D].

        The former is the input of the top block: it is computed at all positions, even where one alone is asked for.
        """
        keys, top = x, len(self.blocks) - 1
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.narrow):
            if self.peer is not None:
                x = self.peer(x, batch.lengths, hidden)
                return keys, x if at is None else pick(x, at)
            for depth, block in enumerate(self.blocks):
                keys = x
                x = block(x, relations, at if depth == top else None)
        return keys.float(), x

    def relate(self, batch: Batch) -> Relations:
        """Relations of every pair of events."""
        item, category = batch.item_ids, batch.category_ids
        times = batch.times_ms
        gaps = torch.diff(times, dim=1, prepend=times[:, :1])  # [B, L]
        session = (gaps > self.config.session_gap_ms).cumsum(1).float()  # [B, L]
        seconds = (times[:, :, None] - times[:, None]).clamp(min=0).float() / 1000  # [B, L, L]
        same_item = (item[:, :, None] == item[:, None]) & (item >= 0)[:, None]
        same_category = (category[:, :, None] == category[:, None]) & (category >= 0)[:, None]
        log_age = torch.log1p(seconds)
        sessions_ago = (session[:, :, None] - session[:, None]).clamp(min=0)
        maps = torch.stack((log_age * 0.1, sessions_ago == 0, same_item, same_category), dim=1)
        return Relations(same_item, same_category, log_age, sessions_ago, maps)

    def embed(self, batch: Batch, relations: Relations | None, hidden: Tensor | None) -> Tensor:
        """Events as vectors [B, L, D]."""
        items = self.of_items(batch.item_rows)  # [B, L, D]
        categories = self.hide(batch.category_rows, self.config.category_first, self.config.unknown_categories)
        times = batch.times_ms
        gaps = torch.diff(times, dim=1).clamp(min=0)  # [B, L - 1]
        first = torch.full_like(times[:, :1], GAP_BUCKETS + 1)
        gap_rows = torch.cat((first, gap_buckets(gaps)), dim=1)  # [B, L]
        if hidden is not None:  # the pause after a hidden event would tell when it was
            gap_rows[:, 1:] = gap_rows[:, 1:].masked_fill(hidden[:, :-1], GAP_BUCKETS + 1)
        x = items + self.category(categories) + self.behavior(batch.behavior_rows)
        x = x + self.gap(gap_rows) + self.hour(times // HOUR_MS % 24)
        if relations is None or self.repeats is None:
            return x  # type: ignore[no-any-return]
        before = (*seen_before(relations.same_item), *seen_before(relations.same_category))
        return x + self.repeats(torch.stack(before, dim=-1))  # type: ignore[no-any-return]

    def of_items(self, rows: Tensor) -> Tensor:
        """What is known of the events' items, [..., D]."""
        first, rate = self.config.item_first, self.config.unknown_items
        if self.described is None:
            rows = self.hide(rows, first, rate)
            found = self.item(rows)
        else:
            found = bounded(self.item(self.hide(self.described.shown(rows), first, rate))) + self.described(rows)
        return self.priced(found, rows)

    def priced(self, vectors: Tensor, rows: Tensor) -> Tensor:
        """Vectors of items [..., D], with what their prices say where the log has any."""
        if self.price is None or self.item_buckets is None:
            return vectors
        return vectors + self.price(self.item_buckets[rows])  # type: ignore[no-any-return]

    def hide(self, rows: Tensor, first: int, rate: float) -> Tensor:
        """In training, shows a share of the known names as unknown ones; rows [B, L]."""
        if not self.training or rate <= 0:
            return rows
        hidden = (torch.rand(rows.shape, device=rows.device) < rate) & (rows >= first)
        return torch.where(hidden, FIRST_BUCKET + rows % (first - FIRST_BUCKET), rows)

    def mixture(
        self, h: Tensor, keys: Tensor, ids: Tensor, relations: Relations | None, at: Tensor | None, kind: int
    ) -> Mixture:
        """The catalogue's share and the window's share for items (kind 0) or categories (kind 1)."""
        query = (self.category_query if kind else self.item_query)(h)
        if relations is None:
            return Mixture(query, None)
        same, other = relations.same_item, relations.same_category
        if kind:
            same, other = other, same
        candidate, features = candidates(ids, same, other, relations, at)
        pointer = self.category_pointer if kind else self.item_pointer
        gate = (self.category_gate if kind else self.item_gate)(h).squeeze(-1)  # [B, T]
        gate = gate.masked_fill(~candidate.any(-1), -FAR)  # nothing to copy: all to the catalogue
        copied = Copied(F.logsigmoid(gate), F.logsigmoid(-gate), pointer(h, keys, candidate, features))
        return Mixture(query, copied)

    def item_table(self) -> tuple[Tensor, Tensor]:
        """Output vectors [N + 1, D] and biases [N + 1]; class 0 is "none of these", class 1 + i the i-th known item."""
        first = self.config.item_first
        own: Tensor = self.item.weight[first:]
        bias: Tensor = self.item_bias
        if self.described is not None:
            own, bias = self.described.table(own), self.described.bias(bias)
        rows = torch.arange(first, self.config.item_rows, device=own.device)
        vectors = self.priced(own + self.category(self.item_categories[first:]), rows)
        return torch.cat((self.item.weight[2:3], vectors)), bias

    def category_table(self) -> tuple[Tensor, Tensor]:
        """The same for categories."""
        first = self.config.category_first
        return torch.cat((self.category.weight[2:3], self.category.weight[first:])), self.category_bias


def gap_buckets(gaps_ms: Tensor) -> Tensor:
    """In which bucket each time between two events lies, int64 of the same shape: 0 … GAP_BUCKETS; gaps are at least 0."""
    steps = torch.arange(GAP_BUCKETS, device=gaps_ms.device)
    edges = 1000 * (torch.ones_like(steps) << steps)  # ms; a power would be an operator that compiled code cannot have
    return torch.bucketize(gaps_ms, edges)


def quantiles(raw: Tensor) -> Tensor:
    """Increasing quantiles from the lowest one and the distances to the next, [B, T, quantiles]."""
    lowest, spread = raw[..., :1], F.softplus(raw[..., 1:])
    return torch.cat((lowest, lowest + spread.cumsum(-1)), dim=-1)


def conceal(batch: Batch, hidden: Tensor) -> Batch:
    """Without the identities of hidden events: nothing is like them, and nothing points at them."""
    items, categories = (ids.masked_fill(hidden, NO_IDENTITY) for ids in (batch.item_ids, batch.category_ids))
    return replace(batch, item_ids=items, category_ids=categories)


def split(x: Tensor, heads: int) -> Tensor:
    """[B, T, heads · D/H] → [B, heads, T, D/H]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)
