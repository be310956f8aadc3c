import pytest
import torch

from model import backbones
from model.config import BACKBONES, NextMoveConfig

PEERS = BACKBONES[1:]


def make(name, **sizes):
    torch.manual_seed(1)
    return backbones.build(
        NextMoveConfig(backbone=name, **{"width": 32, "heads": 2, "kv_heads": 2, "positions": 9, **sizes})
    ).eval()


@pytest.mark.parametrize("name", PEERS)
def test_states_are_as_many_and_as_wide_as_events(name):
    events = torch.randn(3, 9, 32)
    assert make(name)(events, torch.tensor([9, 4, 1])).shape == events.shape


@pytest.mark.parametrize("name", [name for name in PEERS if name != "bert"])
def test_a_causal_backbone_never_looks_ahead(name):
    one = torch.randn(2, 9, 32)
    other = torch.cat((one[:, :5], torch.randn(2, 4, 32)), dim=1)
    backbone, lengths = make(name), torch.tensor([9, 9])
    torch.testing.assert_close(backbone(one, lengths)[:, :5], backbone(other, lengths)[:, :5], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(backbone(one, lengths)[:, 5:], backbone(other, lengths)[:, 5:], atol=1e-3)


def test_bert_sees_neither_hidden_events_nor_padding():
    bert, lengths = make("bert"), torch.tensor([6])
    hidden = torch.tensor([[False, False, True, False, False, True, False, False, False]])
    one = torch.randn(1, 9, 32)
    other = torch.where((hidden | (torch.arange(9) >= 6))[..., None], torch.randn(1, 9, 32), one)
    states = bert(one, lengths, hidden)[:, :6]
    torch.testing.assert_close(states, bert(other, lengths, hidden)[:, :6], atol=1e-5, rtol=1e-4)
    later = one.clone()
    later[0, 4] = torch.randn(32)
    assert not torch.allclose(bert(later, lengths, hidden)[0, 1], states[0, 1], atol=1e-3)  # it looks both ways


def test_bert_asks_after_the_last_event_however_long_the_window_is():
    bert, events = make("bert"), torch.randn(1, 5, 32)
    padded = torch.cat((events, torch.randn(1, 4, 32)), dim=1)
    lengths = torch.tensor([5])
    torch.testing.assert_close(bert(events, lengths)[0, 4], bert(padded, lengths)[0, 4], atol=1e-5, rtol=1e-4)


def test_llama_may_share_keys_among_heads():
    shared = make("llama", heads=4, kv_heads=1)
    assert shared(torch.randn(1, 3, 32), torch.tensor([3])).shape == (1, 3, 32)


def test_an_unheard_of_backbone_is_refused():
    with pytest.raises(ValueError, match="no backbone 'mamba'"):
        make("mamba")
