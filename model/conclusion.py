"""The end of an answer: from a network's heads and scored catalogues to calibrated numbers, as one function of tensors.

On a CPU it is a hundred small operations, which cost as much as the network's step; compiled they are a few loops.

B windows, L events of a window, k names listed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.ahead_of_time import AheadOfTime
from model.building import Size
from model.calibration import Calibration, awaited
from model.mixing import Chosen, Listing, Scored, mixed
from model.network import Heads, Mixture
from model.told import Told

LONGEST = 30.0  # log seconds, of an answer

Conclude = Callable[["Heads", "Seen", "Tensor | None", "Scored", "Scored | None", "Fixed", int], Told]


class Seen(NamedTuple):
    """What the windows hold; [B, L] each, NO_IDENTITY behind the newest event."""

    item_ids: Tensor
    category_ids: Tensor
    behavior_rows: Tensor


class Fixed(NamedTuple):
    """What answers depend on besides the windows."""

    items: Listing
    categories: Listing
    with_item: Tensor  # [behaviour rows, behaviours] by the last behaviour with an item: what is added to the logits
    temperature: Tensor  # float64 [1] of the behaviours
    lines: Tensor  # float64 [2, 2] scale and bias of the goal's logit, and of churn's
    waits: Tensor | None  # float64 [2, quantiles] as of `Calibration.of_waits`


def fixed(items: Listing, categories: Listing, with_item: Tensor, calibration: Calibration) -> Fixed:
    """On the device of the given tensors."""
    device = with_item.device
    lines = [(line.scale, line.bias) for line in (calibration.purchase, calibration.churn)]
    return Fixed(
        items=items,
        categories=categories,
        with_item=with_item.detach(),
        temperature=torch.tensor([calibration.behavior_temperature], dtype=torch.float64, device=device),
        lines=torch.tensor(lines, dtype=torch.float64, device=device),
        waits=calibration.of_waits(device),
    )


def conclude(
    heads: Heads, seen: Seen, hidden: Tensor | None, items: Scored, categories: Scored | None, given: Fixed, k: int
) -> Told:
    """Heads at the newest events (T = 1) as answers; of the windows' events those `hidden` (bool [B, L]) are not listed.

    Without `categories` none are listed.
    """
    unknown = ~((seen.item_ids >= 0) & (seen.item_ids < given.items.bounds[1])).any(1)  # [B]
    chosen = mixed(heads.items, seen.item_ids, items, given.items, unknown, k, hidden)
    if categories is not None:
        second = mixed(heads.categories, seen.category_ids, categories, given.categories, None, k, None)
    else:
        second = Chosen(*(each[:, :0] for each in chosen))
    mixes = heads.behaviors[:, 0].double() / given.temperature  # [B, behaviours]
    questions = (
        torch.stack((heads.goal[:, 0], heads.churn[:, 0]), dim=1).double() * given.lines[:, 0] + given.lines[:, 1]
    )
    log_seconds = heads.log_seconds[:, 0].double()  # [B, quantiles]
    totals = [
        each.ranked.log_total[:, None] for each in (items, categories) if each is not None
    ]  # what is listed may hide theirs
    numbers = (chosen.probability, second.probability, *totals, mixes, questions, log_seconds)
    seconds = awaited(log_seconds.clamp(0, LONGEST), given.waits).clamp(0, LONGEST).expm1()
    chances = rounded(questions.sigmoid())  # [B, 2]
    return Told(
        probabilities=rounded(chosen.probability.double()),
        ids=chosen.ids,
        behaviors=behavior_with(heads.behaviors, seen, chosen.ids, given.with_item),
        listed=(chosen.probability > 0).sum(1),
        category_probabilities=rounded(second.probability.double()),
        category_ids=second.ids,
        categories_listed=(second.probability > 0).sum(1),
        unknown=unknown,
        mixes=rounded(mixes.softmax(-1)),
        goals=chances[:, 0],
        churns=chances[:, 1],
        seconds=decimals(seconds, 6),
        sound=torch.stack([each.sum(1) for each in numbers]).isfinite().all(0),
    )


def compiled_conclude() -> Conclude:
    """`conclude` as a program for CPUs, for any number of windows, whatever is banned or hidden."""
    program = AheadOfTime(conclude, _sizes, or_plain=True)

    def run(
        heads: Heads, seen: Seen, hidden: Tensor | None, items: Scored, categories: Scored | None, given: Fixed, k: int
    ) -> Told:
        """As `conclude`; what is None only since nothing is banned or hidden becomes a tensor that says so, [B], [B, L]."""
        if items.missing is None:
            items = items._replace(missing=torch.full_like(items.ranked.log_total, -torch.inf))
        if heads.items.copied is None:  # then scoring alone has to know
            hidden, given = None, given._replace(items=given.items._replace(barred=None))
        elif hidden is None:
            hidden = torch.zeros_like(seen.item_ids, dtype=torch.bool)
        return program(heads, seen, hidden, items, categories, given, k)

    return run


def _sizes(
    heads: Heads, seen: Seen, hidden: Tensor | None, items: Scored, categories: Scored | None, given: Fixed, k: int
) -> tuple[Any, ...]:
    """Any number of windows, of any number of events, and of names."""
    windows, events = Size("windows", least=1), Size("events")
    one, each = {0: windows}, {0: windows, 1: events}

    def of_mixture(mixture: Mixture) -> tuple[Any, ...]:
        return one, mixture.copied and (one, one, {0: windows, 2: events})

    def of_scored(found: Scored | None) -> Any:
        return found and ((one, one, one), found.missing is not None and one, found.own is not None and each)

    return (
        (of_mixture(heads.items), of_mixture(heads.categories), one, one, one, one),
        (each, each, each),
        hidden is not None and each,
        of_scored(items),
        of_scored(categories),
        fixed_sizes(given),
    )


def fixed_sizes(given: Fixed) -> tuple[Any, ...]:
    """Any number of names."""

    def of(names: Listing, what: str) -> tuple[Any, ...]:
        return {}, {}, {}, names.barred is not None and {0: Size(what)}

    return of(given.items, "items"), of(given.categories, "categories"), {}, {}, {}, given.waits is not None and {}


def behavior_with(logits: Tensor, seen: Seen, ids: Tensor, with_item: Tensor) -> Tensor:
    """The most likely behaviour with each of the chosen items, [B, k] positions among the behaviours; logits [B, 1, behaviours]."""
    same = seen.item_ids[:, None] == ids[:, :, None]  # [B, k, L]
    steps = torch.arange(1, same.shape[2] + 1, device=same.device)
    last = (same * steps).amax(-1)  # [B, k] 1 + last position with the item, 0 if none
    state = torch.where(last > 0, seen.behavior_rows.gather(1, (last - 1).clamp(min=0)), 0)
    found: Tensor = logits + with_item[state]  # [B, k, behaviours]
    return found.argmax(-1)


def rounded(probabilities: Tensor) -> Tensor:
    """Seven decimals: what lies beyond is the noise of float32, and a third of a prediction's bytes."""
    return decimals(probabilities, 7).clamp(0.0, 1.0)


def decimals(numbers: Tensor, places: int) -> Tensor:
    """As `Tensor.round`, which no compiler makes a loop of."""
    scale = 10.0**places
    return (numbers * scale).round() / scale
