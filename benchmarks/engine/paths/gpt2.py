"""The peers' network: GPT-2 (Radford et al., 2019) of the transformers library over items, its output tied to its input.

What an event says beside its item is left out, and so is every other head: less work than NextMove's own network has.
B windows, L positions, N items.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from benchmarks.engine.setting import Setting


class Recommender(nn.Module):
    """Windows in, top-k items with their probabilities out."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.top_k = setting.top_k
        self.encoder = GPT2Model(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
            GPT2Config(
                vocab_size=setting.items + 1,
                bos_token_id=None,
                eos_token_id=None,
                n_positions=setting.window,
                n_embd=setting.width,
                n_layer=setting.layers,
                n_head=setting.heads,
                use_cache=False,
            )
        )

    def forward(self, rows: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B, L], position of the newest event [B] → probabilities and rows of the best items, [B, k] both.

        The probability is that of the softmax over all items: exp(logit - logsumexp), without writing out the others.
        """
        states = self.encoder(input_ids=rows, use_cache=False).last_hidden_state  # [B, L, D]
        index = last[:, None, None].expand(-1, 1, states.shape[-1])
        logits = states.gather(1, index)[:, 0] @ self.encoder.wte.weight.t()  # [B, N + 1]
        values, best = self.top(logits)
        return torch.exp(values.float() - torch.logsumexp(logits, dim=-1, keepdim=True).float()), best

    def top(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The k best of each row of logits."""
        return torch.topk(logits, self.top_k, dim=-1)


def build(setting: Setting) -> Recommender:
    """With random weights of the setting's seed."""
    torch.manual_seed(setting.seed)
    network = Recommender(setting).eval()
    with torch.no_grad():
        network.encoder.wte.weight[0] = 0  # padding
    return network
