"""Events of one user, folded one by one: streams of them, the rules, and a model that keeps everything."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hypothesis import strategies as st

from model.window import Window, WindowRule
from stream_app import history as histories
from stream_app.events import Event
from stream_app.history import HistoryRule, Outcome
from stream_app.history_layout import History

START_MS = 1_750_000_000_000


def event(time: int, item: str | None = None, event_id: str | None = None) -> Event:
    """A view at `time` ms after the start; the item says which one, unless another is given."""
    return Event("u", "view", START_MS + time, item or f"i{time}", None, event_id)


def rule(
    events: int = 3, age: int = 1000, slack: int = 2, lateness: int = 500, stride: int = 1, age_stride: int = 1
) -> HistoryRule:
    """The strides are cut to what there is."""
    strides = {"stride": min(stride, events), "age_stride_ms": min(age_stride, age)}
    return HistoryRule(WindowRule(events=events, age_ms=age, **strides), lateness, slack)


class Step(NamedTuple):
    """What the fold did with one record, and the window then."""

    offset: int
    event: Event
    outcome: Outcome
    window: Window


ALL = 10**12  # settled: nothing comes again
NOTHING = 0  # settled: everything may come again


def run(
    history: History, records: Iterable[tuple[int, Event]], rule: HistoryRule, settled: int = ALL
) -> tuple[History, list[Step]]:
    """Fold records in order."""
    steps = []
    for offset, event_ in records:
        history, outcome = histories.fold(history, event_, offset, rule, settled)
        steps.append(Step(offset, event_, outcome, histories.window(history, offset, rule.window)))
    return history, steps


def in_reach(folded: Sequence[tuple[int, Event]], rule: WindowRule) -> list[Event]:
    ordered = [event_ for _, event_ in sorted(folded, key=lambda record: (record[1].time_ms, record[0]))]
    start = 0
    while len(ordered) - start > rule.events:
        start += rule.stride
    oldest_ms = max((event_.time_ms for event_ in ordered), default=0) - rule.age_ms
    while oldest_ms % rule.age_stride_ms:
        oldest_ms += 1
    return [event_ for event_ in ordered[start:] if event_.time_ms >= oldest_ms]


def naive_window(folded: Sequence[tuple[int, Event]], rule: WindowRule) -> Window:
    kept = in_reach(folded, rule)
    return Window(
        [event_.item_id for event_ in kept],
        [event_.behavior for event_ in kept],
        [event_.category for event_ in kept],
        tuple(event_.time_ms for event_ in kept),
    )


rules = st.builds(
    rule,
    events=st.integers(1, 5),
    age=st.integers(1, 60),
    slack=st.integers(1, 5),
    lateness=st.integers(0, 80),
    stride=st.just(1) | st.integers(1, 5),
    age_stride=st.just(1) | st.integers(1, 60),
)
restless = st.integers(-60, 60) | st.integers(0, 20) | st.sampled_from([0, 100, -100])
steady = st.integers(0, 4)
backwards = st.sampled_from([20, 20, -15, -30])
ids = st.none() | st.sampled_from(["a", "b", "c"])
items = st.sampled_from([None, "x", "y"])


@st.composite
def streams(
    draw: st.DrawFn,
    ids: st.SearchStrategy[str | None] = ids,
    items: st.SearchStrategy[str | None] = items,
    moves: st.SearchStrategy[int] = restless,
    most: int = 25,
) -> list[tuple[int, Event]]:
    """One user's records in offset order, with gaps, and with times that go back and forth."""
    records, offset, time = [], -1, 1000
    for _ in range(draw(st.integers(0, most))):
        offset += draw(st.sampled_from([1, 1, 1, 7]))
        time = max(0, time + draw(moves))
        item = draw(items)
        records.append((offset, Event("u", "view", START_MS + time, item, draw(st.none() | st.just("c")), draw(ids))))
    return records
