"""The rows of the table: what is measured, and the published figures that it is to be read beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks.quality import movielens, time_split
from model.recipe import DENSE


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement."""

    table: str  # rows with the same protocol stand in one table
    measure: Callable[..., dict[str, Any]]  # (folder, callback, seed=, preset=, budget_s=)
    shown: tuple[str, ...] = ()  # measures in the table; all where it is empty
    note: str = ""  # what is not as in the other rows


ROWS = {
    "ml-1m": Row("ml-1m", movielens.measure),
    **{f"ml-1m-{peer}": Row("ml-1m", partial(movielens.measure, backbone=peer)) for peer in ("gru", "lstm", "gpt2")},
    "ml-1m-rnn": Row(
        "ml-1m",
        partial(movielens.measure, backbone="rnn", recipe=replace(DENSE, learning_rate=5e-4)),
        note="learning rate 5e-4, since at the 2e-3 of the others it learns nothing",
    ),
    "ml-1m-bert": Row(
        "ml-1m",
        partial(movielens.measure, backbone="bert", recipe=replace(DENSE, learning_rate=1e-3, hidden=0.4, patience=24)),
        note="learning rate 1e-3, and 40 % of the events hidden: only those teach it; it stands still for five epochs, so no epoch "
        "is too many without improvement",
    ),
    **{
        "ml-1m-time" if log == "ml-1m" else log: Row(
            f"{log}, by global time",
            partial(time_split.measure, log=log),
            time_split.SHOWN_DESCRIBED if log in time_split.DESCRIBED else time_split.SHOWN,
        )
        for log in time_split.FILES
    },
    **{
        f"{log}-text": Row(
            f"{log}, by global time", partial(time_split.measure, log=log, described=True), time_split.SHOWN_DESCRIBED
        )
        for log in time_split.DESCRIBED
    },
}

# Table → (model, source, measures): same file, split and ranking, as their authors report them.
PUBLISHED: dict[str, tuple[tuple[str, str, dict[str, float]], ...]] = {
    "ml-1m": (
        ("SASRec, binary cross-entropy", "antklen/sasrec-bert4rec-recsys23", {"ndcg@10": 0.1341, "hr@10": 0.2500}),
        ("BERT4Rec", "antklen/sasrec-bert4rec-recsys23", {"ndcg@10": 0.1537, "hr@10": 0.2843}),
        ("GRU4Rec, full cross-entropy", "antklen/sasrec-bert4rec-recsys23", {"ndcg@10": 0.1648, "hr@10": 0.2811}),
        ("gSASRec", "asash/gSASRec-pytorch", {"ndcg@10": 0.1726, "hr@10": 0.3003}),
        ("eSASRec", "blondered/transformer_benchmark", {"ndcg@10": 0.1772, "hr@10": 0.3133}),
        ("SASRec+, full cross-entropy", "antklen/sasrec-bert4rec-recsys23", {"ndcg@10": 0.1821, "hr@10": 0.3152}),
        ("SASRec+, 3000 negatives", "antklen/sasrec-bert4rec-recsys23", {"ndcg@10": 0.1857, "hr@10": 0.3159}),
        ("SASRec+, tuned", "monkey0head/time-to-split", {"ndcg@10": 0.1858, "hr@10": 0.3207}),
    ),
}
