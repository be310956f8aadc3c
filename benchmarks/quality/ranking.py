"""Where the item that came stands among all items, and what that is worth.

Full ranking: every known item competes that the user has not met before. Ties go to the others (pessimistic): an item's
rank is one more than the number of competitors that score no less. An item that training never saw has no rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from model.features import Ints, encode, pad
from model.mixing import distribution, table
from model.network import NextMoveModel
from model.sequences import Sequences
from model.vocabulary import Vocabulary
from model.window import WindowRule

Floats = npt.NDArray[np.float64]

BATCH = 128  # windows
UNRANKED = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Ranker:
    """A trained network and how it looks at users."""

    model: NextMoveModel
    vocabulary: Vocabulary
    rule: WindowRule

    @torch.inference_mode()
    def ranks(self, data: Sequences, asked: Ints) -> Ints:
        """The rank of each event `asked`, predicted from what its user did before it; none may be a first event."""
        self.model.eval()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        columns = encode(data.whole(), self.vocabulary)
        first = self.vocabulary.items.first
        against = table(self.model.item_table(), self.vocabulary.items, self.vocabulary.item_counts)
        found = np.full(len(asked), UNRANKED)
        for places, last in _batches(asked - 1, data.first):
            starts = data.window_starts(last, self.rule)
            batch = pad(columns, starts, last - starts + 1, int((last - starts).max()) + 1)
            scores = distribution(self.model(batch, last=True).items, batch.item_ids, against, None)[:, 1:]
            if not scores.isfinite().all():
                raise ArithmeticError("the network's scores are not finite")
            for place, at, row in zip(places.tolist(), last.tolist(), scores.double().numpy(), strict=True):
                wanted = int(columns.item_rows[at + 1]) - first
                met = columns.item_rows[data.first[at] : at + 1] - first
                if wanted >= 0:
                    found[place] = rank(row, wanted, met[met >= 0])
        return found


def rank(scores: Floats, wanted: int, met: Ints) -> int:
    """1 is the best; scores [N], higher is better; met: items that do not compete, the wanted one aside."""
    competes = np.ones(len(scores), np.bool_)
    competes[met] = False
    competes[wanted] = False
    return 1 + int((scores[competes] >= scores[wanted]).sum())


def measures(ranks: Ints, k: int = 10) -> dict[str, list[float]]:
    """Name → mean and the ends of its 95 % interval (normal approximation over users)."""
    inside = ranks <= k
    gains = np.where(inside, 1 / np.log2(1.0 + np.where(inside, ranks, 1)), 0.0)
    return {f"ndcg@{k}": _interval(gains), f"hr@{k}": _interval(inside.astype(np.float64))}


def _interval(values: Floats) -> list[float]:
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return [mean, mean - half, mean + half]


def _batches(last: Ints, first: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Windows of similar length together: where they belong, and their last events."""
    order = np.argsort(last - first[last], kind="stable")
    for begin in range(0, len(order), BATCH):
        places = order[begin : begin + BATCH]
        yield places, last[places]
