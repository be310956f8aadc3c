"""Log-probabilities under a softmax over a catalogue, without ever holding all logits at once.

Up to `FULL` names every logit counts. Above that the normaliser is estimated from names drawn by their frequency, each
weighted by one over its expected number of draws (sampled softmax with logQ correction: Bengio and Senécal, 2008; Yi et
al., RecSys 2019): without the correction frequent names would be punished for being drawn often.

P rows, D width, C classes. Matrix products are in the type that is asked for: in bfloat16 they are several times faster where
the device multiplies it itself, and many times slower where it does not. Sums are in float32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FULL = 100_000  # classes up to which nothing is sampled
DRAWN = 8192  # names drawn per step above that
CELLS = 1 << 21  # logits held at once: 8 MB, which the allocator keeps and the cache half holds


def log_probability(
    query: Tensor,
    vectors: Tensor,
    bias: Tensor,
    classes: Tensor,
    log_share: Tensor | None = None,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """Log softmax at one class per row, [P]; query [P, D], vectors [C, D], bias [C], classes [P].

    With `log_share` [C], the log frequency of each class, the normaliser is estimated.
    """
    rounded = F.embedding(classes, vectors).to(products).float()  # as among the others
    chosen = (query.to(products).float() * rounded).sum(-1) + bias[classes]
    if log_share is None:
        everything: Tensor = _LogNormalizer.apply(query, vectors, bias, None, None, products)
        return chosen - everything
    drawn = torch.multinomial(log_share.exp(), DRAWN, replacement=True)  # [S]
    corrected = bias[drawn] - log_share[drawn] - torch.log(torch.tensor(float(DRAWN)))
    others: Tensor = _LogNormalizer.apply(query, vectors[drawn], corrected, drawn, classes, products)
    return chosen - torch.logaddexp(chosen, others)


class _LogNormalizer(torch.autograd.Function):
    """log Σ exp of each row's logits, in blocks of rows, computed again on the way back instead of kept."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        vectors: Tensor,
        bias: Tensor,
        names: Tensor | None,
        left_out: Tensor | None,
        products: torch.dtype,
    ) -> Tensor:
        """[P]; with names [C] and left_out [P], columns whose name is the row's `left_out` do not count."""
        table, result = vectors.to(products), query.new_empty(len(query))
        for part in _blocks(len(query), len(bias)):
            result[part] = _logits(query[part], table, bias, names, left_out, part).logsumexp(-1)
        ctx.save_for_backward(query, vectors, bias, names, left_out, result)
        ctx.products = products
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """Gradients [P, D], [C, D] and [C] from grad [P]: the softmax, block by block."""
        query, vectors, bias, names, left_out, result = ctx.saved_tensors
        table = vectors.to(ctx.products)
        to_query, to_vectors, to_bias = torch.empty_like(query), torch.zeros_like(vectors), torch.zeros_like(bias)
        for part in _blocks(len(query), len(bias)):
            slope = _logits(query[part], table, bias, names, left_out, part).sub_(result[part, None]).exp_()  # [p, C]
            slope.mul_(grad[part, None])
            to_bias += slope.sum(0)
            slope = slope.to(ctx.products)
            to_query[part] = (slope @ table).float()
            to_vectors += slope.t() @ query[part].to(ctx.products)
        return to_query, to_vectors, to_bias, None, None, None


def _logits(
    query: Tensor, table: Tensor, bias: Tensor, names: Tensor | None, left_out: Tensor | None, part: slice
) -> Tensor:
    logits = (query.to(table.dtype) @ table.t()).float().add_(bias)
    if names is not None and left_out is not None:
        logits.masked_fill_(names == left_out[part, None], float("-inf"))
    return logits


def _blocks(rows: int, columns: int) -> list[slice]:
    size = max(1, CELLS // columns)
    return [slice(begin, min(begin + size, rows)) for begin in range(0, rows, size)]
