"""What the pointer sees of a window, recounted event by event in plain Python."""

import math
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from model.config import NextMoveConfig
from model.features import encode, pad
from model.pointer import (
    COUNT_CAP,
    EVENT_DECAYS,
    FAR,
    POINTER_FEATURES,
    TIME_DECAYS_S,
    Pointer,
    candidates,
    seen_before,
)
from model.window import DAY_MS, Window
from tests.model.test_network import VOCABULARY, make_network

MINUTE_MS = 60_000
ITEM, CATEGORY, GAP_MS = range(3)  # of an event; its gap is the time since the event before
EVENTS = st.tuples(
    st.sampled_from(["i0", "i1", "new", "newer", None]),
    st.sampled_from(["x", "z", None]),
    st.sampled_from([0, 1, 20_000, 30 * MINUTE_MS, 30 * MINUTE_MS + 1, DAY_MS]),
)
LIVES = st.lists(st.lists(EVENTS, min_size=1, max_size=12), min_size=1, max_size=3)
OFTEN = [[("i0", "x", 20_000)] * (COUNT_CAP + 3)]


@pytest.fixture(scope="module")
def network():
    return make_network()


def batch_of(lives):
    windows = []
    for life in lives:
        items, categories, _ = map(list, zip(*life, strict=True))
        windows.append(Window(items, ["view"] * len(life), categories, times_ms(life)))
    columns = encode(windows, VOCABULARY)
    return pad(columns, columns.starts, columns.lengths, max(map(len, lives)))


def found_in(network, batch, kind, at=None):
    """The candidates and their features."""
    relations = network.relate(batch)
    ids, same, other = batch.item_ids, relations.same_item, relations.same_category
    if kind == CATEGORY:
        ids, same, other = batch.category_ids, other, same
    return candidates(ids, same, other, relations, at)


def times_ms(life):
    return list(accumulate(gap for *_, gap in life))


def recounted(life, kind):
    """Place → features of the last occurrence of each thing, as seen from the newest of these events."""
    names, others = ([event[which] for event in life] for which in (kind, 1 - kind))
    times, sessions = times_ms(life), list(accumulate(gap > 30 * MINUTE_MS for *_, gap in life))
    last = {name: place for place, name in enumerate(names) if name is not None}
    found = {}
    for recent, place in enumerate(sorted(last.values(), reverse=True)):
        sessions_ago = sessions[-1] - sessions[place]
        count = min(names.count(names[place]), COUNT_CAP)
        found[place] = [
            math.log1p(recent) / 2,
            1 / (1 + recent),
            *(recent == rank for rank in range(3)),
            math.log1p((times[-1] - times[place]) / 1000) / 8,
            math.log1p(sessions_ago) / 2,
            *(sessions_ago == ago for ago in range(2)),
            math.log(count),
            count >= 2,
            others[place] is not None and others[place] == others[-1],
            *decayed(names, names[place], times),
            *decayed(others, others[place], times),
        ]
    return found


def decayed(names, name, times):
    """Logs of how often the name occurred, by each decay."""
    places = [place for place, one in enumerate(names) if one == name is not None]
    sums = [sum(decay ** (len(names) - 1 - place) for place in places) for decay in EVENT_DECAYS]
    sums += [sum(math.exp(-(times[-1] - times[at]) / 1000 / constant) for at in places) for constant in TIME_DECAYS_S]
    return map(math.log1p, sums)


@pytest.mark.parametrize("kind", [ITEM, CATEGORY])
@given(lives=LIVES)
@example(lives=OFTEN)
def test_each_event_sees_what_a_recount_of_the_events_up_to_it_finds(network, kind, lives):
    candidate, features = found_in(network, batch_of(lives), kind)
    assert features.shape[-1] == POINTER_FEATURES
    for row, life in enumerate(lives):
        for step in range(len(life)):
            expected = recounted(life[: step + 1], kind)
            places = sorted(expected)
            assert candidate[row, step].nonzero().flatten().tolist() == places
            if places:
                wanted = torch.tensor([expected[place] for place in places], dtype=torch.float32)
                torch.testing.assert_close(features[row, step, places], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [ITEM, CATEGORY])
@given(lives=LIVES)
def test_the_newest_event_alone_sees_what_it_sees_among_all(network, kind, lives):
    batch = batch_of(lives)
    candidate, features = found_in(network, batch, kind)
    at_end, its_features = found_in(network, batch, kind, batch.lengths - 1)
    for row, last in enumerate((batch.lengths - 1).tolist()):
        assert torch.equal(at_end[row, 0], candidate[row, last])
        seen = candidate[row, last]
        torch.testing.assert_close(its_features[row, 0, seen], features[row, last, seen])


@given(lives=LIVES)
@example(lives=OFTEN)
def test_what_was_seen_before_is_counted_up_to_a_cap(network, lives):
    seen, log_count = seen_before(network.relate(batch_of(lives)).same_item)
    for row, life in enumerate(lives):
        names = [event[ITEM] for event in life]
        before = [0 if name is None else names[:place].count(name) for place, name in enumerate(names)]
        assert seen[row, : len(life)].tolist() == [count > 0 for count in before]
        expected = [math.log1p(min(count, COUNT_CAP)) for count in before]
        assert log_count[row, : len(life)].tolist() == pytest.approx(expected)


def test_the_score_of_a_candidate_is_a_match_and_what_its_features_say_and_others_have_none():
    torch.manual_seed(0)
    pointer = Pointer(NextMoveConfig(width=6, pointer_width=4))
    asking, x, features = torch.randn(2, 3, 6), torch.randn(2, 5, 6), torch.randn(2, 3, 5, POINTER_FEATURES)
    candidate = torch.rand(2, 3, 5) < 0.6
    candidate[0, 0] = False
    found = pointer(asking, x, candidate, features)
    for row in range(2):
        for step, h in enumerate(asking[row]):
            places = candidate[row, step].nonzero().flatten().tolist()
            logits = [
                pointer.query(h) @ pointer.key(x[row, place]) / math.sqrt(4)
                + pointer.score(
                    F.gelu(
                        pointer.from_query(h)
                        + pointer.from_key(x[row, place])
                        + pointer.from_features(features[row, step, place])
                    )
                )[0]
                for place in places
            ]
            expected = torch.full((5,), FAR)
            if places:
                expected[places] = torch.stack(logits).log_softmax(0)
            torch.testing.assert_close(found[row, step], expected)
    assert (found[0, 0] == FAR).all()
