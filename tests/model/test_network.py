import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import BACKBONES, NextMoveConfig, rows_of
from model.features import encode, pad
from model.network import NextMoveModel, gap_buckets
from model.vocabulary import build
from model.window import Window

VOCABULARY = build(
    {f"i{n}": 9 - n for n in range(8)}, {"x": 2, "y": 1}, {"i0": "x"}, ("view", "purchase"), "purchase", item_buckets=4
)


def make_network(**sizes):
    torch.manual_seed(3)
    config = NextMoveConfig(pointer_width=8, **{"width": 16, **rows_of(VOCABULARY), **sizes})
    model = NextMoveModel(config).eval()
    with torch.no_grad():
        for block in model.blocks:  # at their start these are zero and could hide a leak
            block.distance.weight.normal_()
            if block.relation_weight is not None:
                block.relation_weight.normal_()
    return model


KINDS = {
    "ours": {},
    "shared keys": {"heads": 4, "kv_heads": 2},
    "no copies": {"copy": False},
    **{name: {"backbone": name} for name in BACKBONES[1:]},
}


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module", params=KINDS)
def any_network(request):
    return make_network(**KINDS[request.param])


def random_window(length, seed):
    random = np.random.default_rng(seed)
    names = [*(f"i{n}" for n in range(8)), "new", "newer", None]
    return Window(
        [names[n] for n in random.integers(0, len(names), length)],
        [("view", "purchase", "odd")[n] for n in random.integers(0, 3, length)],
        [("x", "y", "z", None)[n] for n in random.integers(0, 4, length)],
        np.cumsum(random.integers(0, 5_000_000, length)).tolist(),
    )


def read(network, windows, width, last=False):
    columns = encode(windows, VOCABULARY)
    with torch.inference_mode():
        return network(pad(columns, columns.starts, columns.lengths, width), last=last)


def outputs(heads, step):
    """Everything said at one position of the first window."""
    parts = [heads.behaviors, heads.goal[..., None], heads.churn[..., None], heads.log_seconds]
    for mixture in (heads.items, heads.categories):
        parts.append(mixture.query)
        if mixture.copied is not None:
            parts += [mixture.copied.log_catalogue[..., None], mixture.copied.log_copy[..., None]]
            parts.append(mixture.copied.pointer[..., : step + 1])
    return torch.cat([part[0, step] for part in parts])


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(0, 99), st.integers(0, 99), st.data())
def test_later_events_change_no_earlier_output(network, length, seed, other_seed, data):
    keep = data.draw(st.integers(1, length - 1))
    one, other = random_window(length, seed), random_window(length, other_seed + 1000)
    shift = one.times_ms[keep - 1]
    mixed = Window(
        one.items[:keep] + other.items[keep:],
        one.behaviors[:keep] + other.behaviors[keep:],
        one.categories[:keep] + other.categories[keep:],
        one.times_ms[:keep] + [shift + time for time in other.times_ms[keep:]],
    )
    for step in range(keep):
        expected = outputs(read(network, [one], length), step)
        torch.testing.assert_close(outputs(read(network, [mixed], length), step), expected, atol=1e-5, rtol=1e-4)


def test_an_earlier_event_does_change_later_outputs(network):
    window = random_window(6, 1)
    changed = window._replace(
        behaviors=["purchase" if window.behaviors[0] == "view" else "view", *window.behaviors[1:]]
    )
    assert not torch.allclose(
        outputs(read(network, [window], 6), 5), outputs(read(network, [changed], 6), 5), atol=1e-4
    )


@pytest.mark.parametrize("length", [1, 2, 7])
def test_asking_only_at_the_end_gives_the_same_as_asking_everywhere(any_network, length):
    window = random_window(length, 5)
    everywhere, at_end = read(any_network, [window], 9), read(any_network, [window], 9, last=True)
    for name in ("behaviors", "goal", "churn", "log_seconds"):
        torch.testing.assert_close(getattr(at_end, name)[:, 0], getattr(everywhere, name)[:, length - 1])
    for kind in ("items", "categories"):
        if getattr(at_end, kind).copied is None:
            continue
        torch.testing.assert_close(
            getattr(at_end, kind).copied.pointer[:, 0],
            getattr(everywhere, kind).copied.pointer[:, length - 1],
            atol=1e-5,
            rtol=1e-4,
        )


def test_padding_changes_nothing(any_network):
    window = random_window(5, 8)
    shorter, longer = read(any_network, [window], 5), read(any_network, [window], 11)
    torch.testing.assert_close(outputs(shorter, 4), outputs(longer, 4), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["shared keys", "no copies", "gpt2", "llama", "gru"])
def test_no_kind_of_network_looks_ahead(kind):
    model, window = make_network(**KINDS[kind]), random_window(9, 2)
    cut = Window(*(column[:5] for column in window))
    for step in range(5):
        expected = outputs(read(model, [cut], 5), step)
        torch.testing.assert_close(outputs(read(model, [window], 9), step), expected, atol=1e-5, rtol=1e-4)


def test_what_bert_learns_is_nowhere_in_what_it_sees():
    """Item, category, behaviour and time of a hidden event may be anything: what is said of it stays the same."""
    model, window = make_network(backbone="bert"), random_window(9, 2)
    other = random_window(9, 77)
    changed = Window(
        *([*column[:4], strange[4], *column[5:]] for column, strange in zip(window[:3], other[:3], strict=True)),
        [*window.times_ms[:4], window.times_ms[5], *window.times_ms[5:]],
    )
    hidden = torch.zeros(1, 9, dtype=torch.bool)
    hidden[0, 4] = True
    found = []
    for one in (window, changed):
        columns = encode([one], VOCABULARY)
        with torch.inference_mode():
            found.append(model(pad(columns, columns.starts, columns.lengths, 9), hidden=hidden))
    torch.testing.assert_close(outputs(found[0], 3), outputs(found[1], 3), atol=1e-5, rtol=1e-4)


def test_narrow_products_say_nearly_the_same():
    window, model = random_window(6, 4), make_network()
    before = outputs(read(model, [window], 6), 5)
    model.narrow = True
    narrow = outputs(read(model, [window], 6), 5)
    assert not torch.equal(narrow, before)
    torch.testing.assert_close(narrow, before, atol=0.2, rtol=0.1)


def test_with_nothing_to_copy_all_goes_to_the_catalogue(network):
    heads = read(network, [Window([None], ["view"], [None], [0])], 2, last=True)
    assert heads.items.copied.log_catalogue.exp().item() == pytest.approx(1)
    assert heads.items.copied.log_copy.exp().item() == 0


def test_quantiles_of_time_never_cross(network):
    seconds = read(network, [random_window(12, seed) for seed in range(8)], 12).log_seconds
    assert (seconds.diff(dim=-1) >= 0).all()


def test_saved_weights_are_the_same_again_and_say_the_same(any_network, tmp_path):
    any_network.save_pretrained(tmp_path)
    again = NextMoveModel.from_pretrained(tmp_path).eval()
    for name, weight in any_network.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    window = random_window(7, 3)
    said = [outputs(read(one, [window], 8, last=True), 0) for one in (any_network, again)]
    torch.testing.assert_close(*said, atol=1e-6, rtol=1e-5)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize(
    ("gap_ms", "bucket"),
    [(0, 0), (1000, 0), (1001, 1), (2 * 1000, 1), (2 * 1000 + 1, 2), (2**23 * 1000, 23), (2**23 * 1000 + 1, 24)],
)
def test_gaps_lie_between_powers_of_two_of_seconds(gap_ms, bucket):
    assert gap_buckets(torch.tensor([[gap_ms]])).tolist() == [[bucket]]
