"""NextMove's engine as the worker calls it: names in, whole forecasts out, each window computed in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.engine.paths.contract import Listed
from benchmarks.engine.setting import Setting
from benchmarks.engine.stream import BEHAVIORS, Poll, category_name, item_name
from model.artifact import SCHEMA, Artifact, Manifest, TrainingRange
from model.compiling import can_compile
from model.config import NextMoveConfig, rows_of
from model.engine import Engine
from model.forecast import Forecast
from model.network import NextMoveModel
from model.threads import shared
from model.vocabulary import Vocabulary
from model.vocabulary import build as build_vocabulary


class NextMove:
    """A function of polls that gives forecasts."""

    def __init__(self, predict: Callable[[Poll], Sequence[Forecast]], dials: Mapping[str, Sequence[int]]) -> None:
        self._predict, self.dials = predict, dials

    def turn(self, dial: str, value: int) -> None:
        """There is none but "poll"."""
        raise KeyError(dial)

    def prepare(self, poll: Poll) -> Poll:
        """Nothing: windows are cut and names looked up on the clock."""
        return poll

    def answer(self, prepared: Poll) -> Sequence[Forecast]:
        """One forecast per event."""
        return self._predict(prepared)

    def listed(self, answers: Sequence[Forecast], prepared: Poll) -> list[Listed]:
        """The items of the forecasts."""
        return [[(item["item_id"], item["probability"]) for item in answer.next_items] for answer in answers]


def build(setting: Setting, **options: Any) -> NextMove:
    """Options: `copy`, whether the network can copy from the window."""
    compiled = can_compile(setting.device)
    threads, helped = shared(setting.threads, compiled=compiled)  # as in the worker
    engine = Engine(
        artifact(setting, **options),
        device=setting.device,
        top_k=setting.top_k,
        threads=threads,
        compiled=compiled,
        helped=helped,
    )
    return NextMove(engine.predict, {"poll": (setting.poll,)})


class Naming(NamedTuple):
    """What items, their categories and behaviours are called."""

    item: Callable[[int], str]  # by row, from 0
    category: Callable[[int], str]  # by the item's row
    behaviors: Sequence[str]


def artifact(setting: Setting, *, copy: bool, naming: Naming | None = None) -> Artifact:
    """A model directory in memory, with random weights of the setting's seed; named as the stream does by default."""
    naming = naming or Naming(item_name, lambda row: category_name(row, setting), BEHAVIORS)
    names = vocabulary(setting, naming)
    config = NextMoveConfig(
        positions=setting.window,
        width=setting.width,
        layers=setting.layers,
        heads=setting.heads,
        kv_heads=setting.heads,
        copy=copy,
        **rows_of(names),
    )
    torch.manual_seed(setting.seed)
    model = NextMoveModel(config)
    model.item_categories[names.items.first :] = torch.tensor(names.item_categories)
    manifest = Manifest(
        schema=SCHEMA,
        version="random",
        window=setting.rule,
        behaviors=list(naming.behaviors),
        goal=naming.behaviors[-1],
        goal_horizon_ms=1,
        churn_horizon_ms=1,
        training=TrainingRange(events=0, users=0, from_ms=0, until_ms=0, preset="base", seed=setting.seed, epochs=0),
        metrics={},
        popular_items=names.popular_items(),
        golden=[],
    )
    return Artifact(model, names, manifest)


def vocabulary(setting: Setting, naming: Naming) -> Vocabulary:
    """All names, the most frequent first."""
    items = {naming.item(row): setting.items // (row + 1) + 1 for row in range(setting.items)}
    category = {naming.item(row): naming.category(row) for row in range(setting.items)}
    counts: dict[str, int] = {}
    for item, count in items.items():
        counts[category[item]] = counts.get(category[item], 0) + count
    return build_vocabulary(items, counts, category, naming.behaviors, naming.behaviors[-1])
