"""The pointer: scores of what a window holds, by what it is and by how it comes back there.

It sees recency rank, time since, sessions ago, count in the window, same category as the newest event. It knows nothing of
catalogues. B batch, L positions, T query positions (all L, or the last one), D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import NextMoveConfig

FAR = -1e4  # a logit that no other logit can be confused with; finite, so that gradients stay finite
COUNT_CAP = 8
EVENT_DECAYS = (0.6, 0.9)  # weight of an event per event since
TIME_DECAYS_S = (600.0, 43_200.0)  # time constants of an event's weight
POINTER_FEATURES = 12 + 2 * (len(EVENT_DECAYS) + len(TIME_DECAYS_S))


@dataclass(frozen=True, slots=True)
class Relations:
    """How each event of a window relates to each other one."""

    same_item: Tensor  # bool [B, L, L]
    same_category: Tensor  # bool [B, L, L]
    log_age: Tensor  # [B, L, L] log seconds from key to query
    sessions_ago: Tensor  # [B, L, L]
    maps: Tensor  # [B, RELATIONS, L, L] the same as numbers for the attention


class Pointer(nn.Module):
    """Scores the distinct things of a window, each at its last occurrence, for every query position."""

    def __init__(self, config: NextMoveConfig) -> None:
        super().__init__()
        self.query = nn.Linear(config.width, config.pointer_width, bias=False)
        self.key = nn.Linear(config.width, config.pointer_width, bias=False)
        self.from_query = nn.Linear(config.width, config.pointer_width)
        self.from_key = nn.Linear(config.width, config.pointer_width, bias=False)
        self.from_features = nn.Linear(POINTER_FEATURES, config.pointer_width, bias=False)
        self.score = nn.Linear(config.pointer_width, 1, bias=False)

    def forward(self, asking: Tensor, x: Tensor, candidate: Tensor, features: Tensor) -> Tensor:
        """Log-probabilities [B, T, L] of the candidates, FAR elsewhere; asking [B, T, D], x [B, L, D]."""
        match = self.query(asking) @ self.key(x).transpose(1, 2) / math.sqrt(self.query.out_features)  # [B, T, L]
        mixed = self.from_query(asking)[:, :, None] + self.from_key(x)[:, None]  # [B, T, L, pointer width]
        logits = match + self.score(F.gelu(mixed + self.from_features(features))).squeeze(-1)
        logits = logits.masked_fill(~candidate, FAR)
        return torch.log_softmax(logits, dim=-1).masked_fill(~candidate, FAR)


def pick(x: Tensor, at: Tensor) -> Tensor:
    """Row `at[b]` of each x[b]: [B, L, …] → [B, 1, …]."""
    return x[torch.arange(x.shape[0], device=x.device), at][:, None]


def seen_before(same: Tensor) -> tuple[Tensor, Tensor]:
    """For each event: seen before in the window (0 or 1), and the log of how often; same [B, L, L] → [B, L] twice."""
    count = same.tril(-1).sum(-1, dtype=torch.int32)
    return (count > 0).float(), torch.log1p(count.clamp(max=COUNT_CAP).float())


def candidates(
    ids: Tensor, same: Tensor, other: Tensor, relations: Relations, at: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Which positions are the last occurrence of something as seen from each query, [B, T, L], and their features.

    ids [B, L] identities; same, other [B, L, L]: equal in this respect, equal in the other one.
    """
    length = ids.shape[1]
    steps = torch.arange(length, device=ids.device)
    asked_at = steps[None, :, None] if at is None else at[:, None, None]  # [1 or B, T, 1]
    later = same.triu(1)  # [B, L, L] the same again
    if at is None:
        again = torch.where(later, steps, length).amin(-1)  # [B, L] next occurrence of the same, L if none
        newest = again[:, None] > asked_at  # [B, T, L]
    else:
        newest = ~later.any(-1)[:, None]  # behind `at` there is only padding, which is never the same
    candidate = newest & (steps <= asked_at) & (ids >= 0)[:, None]  # [B, T, L]
    recent = candidate.flip(-1).cumsum(-1).flip(-1).float() - 1  # [B, T, L] distinct ones more recent
    recent = recent.clamp(min=0)
    count = (
        same.tril().sum(-1, dtype=torch.int32).clamp(max=COUNT_CAP).float().clamp(min=1)[:, None].expand_as(recent)
    )  # [B, T, L]
    age, sessions = relations.log_age, relations.sessions_ago
    if at is not None:
        age, sessions = pick(age, at), pick(sessions, at)
    features = torch.stack(
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
            (other if at is None else pick(other, at)).float(),
            *decayed_counts(same, asked_at, age),
            *decayed_counts(other, asked_at, age),
        ),
        dim=-1,
    )
    return candidate, features


def decayed_counts(same: Tensor, asked_at: Tensor, log_age: Tensor) -> list[Tensor]:
    """How often each position's kind occurred up to each query, recent events weighing more, in logs; [B, T, L] each.

    same [B, L, L], asked_at [1 or B, T, 1], log_age [B, T, L].
    """
    steps = torch.arange(same.shape[-1], device=same.device)
    since = asked_at - steps  # [1 or B, T, L]
    past = since >= 0
    kinds = same.float()
    weights = [decay ** since.clamp(min=0).float() for decay in EVENT_DECAYS]
    weights += [torch.exp(-torch.expm1(log_age) / seconds) for seconds in TIME_DECAYS_S]
    return [torch.log1p((weight * past).expand(len(same), -1, -1) @ kinds) for weight in weights]  # [B, T, L]
