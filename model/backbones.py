"""The peers of NextMove's own blocks: what else can turn a window's events into states.

Each takes events [B, L, D] and the lengths of the windows, and gives states [B, L, D]: the state at a position is what
the heads predict the next event from. Inputs, heads and losses are the network's, so that a comparison compares the
backbone alone.

- `gpt2` (Radford et al., 2019), `llama` (Touvron et al., 2023): causal Transformers of the transformers library
- `bert` (BERT4Rec: Sun et al., CIKM 2019): looks both ways, learns the events that it is not shown
- `gru` (GRU4Rec: Hidasi et al., ICLR 2016), `lstm`, `rnn`: torch's own

It knows nothing of items or heads. B windows, L positions, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from model.config import NextMoveConfig


class Causal(nn.Module):
    """GPT-2 or Llama; windows are padded on the right, where a causal model never looks."""

    def __init__(self, inner: GPT2Model | LlamaModel) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, events: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        states: Tensor = self.inner(inputs_embeds=events, use_cache=False).last_hidden_state
        return states


class Recurrent(nn.Module):
    """GRU, LSTM or plain RNN."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM | nn.RNN], config: NextMoveConfig) -> None:
        super().__init__()
        dropout = config.dropout if config.layers > 1 else 0.0
        self.inner = kind(config.width, config.width, config.layers, batch_first=True, dropout=dropout)

    def forward(self, events: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, L, D] → [B, L, D]."""
        with torch.autocast("cpu", enabled=False):  # of processors without AVX-512 an LSTM in bfloat16 is refused
            states: Tensor = self.inner(events.float())[0]
        return states


class Bidirectional(nn.Module):
    """BERT: every event sees every other one, but those that are hidden behind a [MASK].

    The state that predicts event i + 1 is the one *at* event i + 1 if that is masked: states move one to the left. After
    the last event comes a masked one, so the last state predicts what the window does not hold.
    """

    def __init__(self, config: NextMoveConfig) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.zeros(config.width))
        nn.init.normal_(self.mask, std=0.02)
        self.inner = BertModel(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            BertConfig(
                vocab_size=1,  # events come embedded
                type_vocab_size=1,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=4 * config.width,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=0.0,
                max_position_embeddings=config.positions + 1,
            ),
            add_pooling_layer=False,
        )

    def forward(self, events: Tensor, lengths: Tensor, hidden: Tensor | None = None) -> Tensor:
        """[B, L, D] → [B, L, D]; hidden bool [B, L]: events that are not shown."""
        steps = torch.arange(events.shape[1] + 1, device=events.device)
        masked = steps == lengths[:, None]  # [B, L + 1]
        if hidden is not None:
            masked[:, :-1] |= hidden
        longer = torch.cat((events, events[:, :1]), dim=1)  # [B, L + 1, D]; what is in the new place is masked
        shown = torch.where(masked[..., None], self.mask.to(events.dtype), longer)
        inside = (steps <= lengths[:, None]).long()  # [B, L + 1]
        states: Tensor = self.inner(inputs_embeds=shown, attention_mask=inside).last_hidden_state
        return states[:, 1:]


def build(config: NextMoveConfig) -> nn.Module:
    """The peer that `config.backbone` names; raises ValueError for one that is none."""
    if config.backbone == "gpt2":
        return Causal(GPT2Model(_gpt2(config)))  # type: ignore[no-untyped-call]  # likewise
    if config.backbone == "llama":
        return Causal(LlamaModel(_llama(config)))
    if config.backbone == "bert":
        return Bidirectional(config)
    if config.backbone in RECURRENT:
        return Recurrent(RECURRENT[config.backbone], config)
    raise ValueError(f"no backbone {config.backbone!r}")


RECURRENT: dict[str, type[nn.GRU | nn.LSTM | nn.RNN]] = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}


def _gpt2(config: NextMoveConfig) -> GPT2Config:
    return GPT2Config(
        vocab_size=1,  # events come embedded
        bos_token_id=None,
        eos_token_id=None,
        n_positions=config.positions,
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        resid_pdrop=config.dropout,
        embd_pdrop=0.0,  # events come with theirs
        attn_pdrop=0.0,
    )


def _llama(config: NextMoveConfig) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=1,  # events come embedded
        bos_token_id=None,
        eos_token_id=None,
        hidden_size=config.width,
        intermediate_size=config.feed_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.positions,
        attention_dropout=0.0,
    )
