"""Validation: how good a network is on the events that it does not learn, each predicted from its own window as in serving.

It knows nothing of steps or optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.callbacks import Callback, Progress
from model.features import Batch, Ints, pad
from model.group import Group
from model.losses import WEIGHTS, losses
from model.material import Material, make_labels
from model.mixing import distribution, table
from model.network import Heads, NextMoveModel
from model.recipe import RANKED

VALIDATION_WINDOWS = 4096
RANKED_WINDOWS = 8192  # a ranking is noisier than a loss
BATCH_WINDOWS = 256
JUDGED = (*WEIGHTS, RANKED)  # what is summed over positions


@dataclass(frozen=True, slots=True)
class Validation:
    """One network on the validation part of one material."""

    model: NextMoveModel
    material: Material
    ranks: bool  # whether the ranking of the next item is measured, which is what counts then
    device: torch.device
    group: Group
    callback: Callback

    def positions(self, random: np.random.Generator) -> Ints:
        """Events that validate; a sample where there are many. A ranking asks only where something came next."""
        found, most = self.material.checking(), VALIDATION_WINDOWS
        if self.ranks:
            found = found[self.material.checked.next[found] >= 0]
            most = RANKED_WINDOWS
        if len(found) > most:
            found = np.sort(random.choice(found, most, replace=False))
        return found

    @torch.inference_mode()
    def measure(self, last: Ints) -> dict[str, float]:
        """Mean losses right after the events `last`; "loss" is their weighted sum."""
        last = last[self.group.rank :: self.group.size]
        sums = torch.zeros(len(JUDGED), 2, dtype=torch.float64)
        self.model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        for begin in range(0, len(last), BATCH_WINDOWS):
            some = last[begin : begin + BATCH_WINDOWS]
            sums += self._sums(some)
            self.callback.on_step(Progress("validate", begin + len(some), len(last)))
        found = means(self.group.add(sums))
        self.callback.on_step(Progress("validate", len(last), len(last), found["loss"], found))
        return found

    def _sums(self, last: Ints) -> Tensor:
        """Of some events, as `sums_of`."""
        material, data = self.material, self.material.data
        starts = data.window_starts(last, material.rule)
        lengths = last - starts + 1
        batch = pad(material.columns, starts, lengths, int(lengths.max())).to(self.device)
        index = last[:, None]  # [B, 1]
        labels = make_labels(material, index, index >= 0, np.ones(len(data), np.bool_), material.checked)
        early = torch.from_numpy(data.order[index] < material.learn_until)  # chosen for having a late next event
        labels.goal[early], labels.churn[early] = -1, -1
        heads: Heads = self.model(batch, last=True)
        parts = losses(self.model, heads, batch, labels.to(self.device))
        if self.ranks:
            parts |= {RANKED: self.gain(heads, batch, labels.item_rows.to(self.device))}
        return sums_of(parts)

    def gain(self, heads: Heads, batch: Batch, wanted: Tensor) -> tuple[Tensor, int]:
        """Sum of NDCG@10 of the next items' ranks among the known ones, ties to the others; wanted [B, 1] rows."""
        names = self.material.vocabulary.items
        against = table(self.model.item_table(), names, self.material.vocabulary.item_counts)
        scores = distribution(heads.items, batch.item_ids, against, None)  # [B, N + 1]
        scores[:, 0] = -1  # "none of these"
        asked = wanted[:, 0] >= 0
        classes = (wanted - names.first + 1).clamp(min=0)  # [B, 1]
        rank = (scores >= scores.gather(1, classes)).sum(-1)
        good = asked & (classes[:, 0] > 0) & (rank <= 10)
        return torch.where(good, 1 / torch.log2(1.0 + rank), 0.0).sum(), int(asked.sum())


def sums_of(parts: dict[str, tuple[Tensor, int]]) -> Tensor:
    """Sum and number of positions of each of `JUDGED`, 0 and 0 where it is not among the parts, [J, 2] on the CPU."""
    sums = torch.zeros(len(JUDGED), 2, dtype=torch.float64)
    totals = torch.stack([total.detach().double() for total, _ in parts.values()]).cpu()
    for (name, (_, count)), total in zip(parts.items(), totals, strict=True):
        place = JUDGED.index(name)
        sums[place, 0], sums[place, 1] = total, count
    return sums


def means(sums: Tensor) -> dict[str, float]:
    """Means of those that had a position; "loss" is the weighted sum of the heads' losses, by the weights not learned."""
    found = {name: total / count for name, (total, count) in zip(JUDGED, sums.tolist(), strict=True) if count}
    return {"loss": sum(weight * found[name] for name, weight in WEIGHTS.items() if name in found), **found}
