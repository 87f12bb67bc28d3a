"""What a latent thought is close to: the logit lens over the hidden states of latent steps.

p = softmax(W h), with h the hidden state after the final norm and W the model's own lm_head: what
the agent would have said at that point, had it spoken instead of thought (logit lens,
nostalgebraist 2020). Adapters are in h; temperature and top-p are not in p.
"""

from typing import NamedTuple

import torch

NUM_LENS_TOKENS = 5


class LensReading(NamedTuple):
    """Of one latent step: |h|, and the likeliest tokens with their probabilities, likeliest
    first."""

    norm: float
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]


def read_lens(hidden: torch.Tensor, logits: torch.Tensor) -> list[LensReading]:
    """One reading per row of hidden [num_rows, hidden_size] and logits [num_rows, vocab_size].

    Norms and probabilities are computed in fp32.
    """
    norms: list[float] = hidden.float().norm(dim=-1).tolist()
    num_tokens = min(NUM_LENS_TOKENS, logits.shape[-1])
    probabilities, token_ids = logits.float().softmax(dim=-1).topk(num_tokens, dim=-1)
    rows = zip(norms, token_ids.tolist(), probabilities.tolist(), strict=True)
    return [LensReading(norm, tuple(ids), tuple(shares)) for norm, ids, shares in rows]
