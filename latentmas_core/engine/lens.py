"""What a latent thought is close to: the logit lens over the hidden states of latent steps.

p = softmax(W h), with h the hidden state after the final norm and W the model's own lm_head: what
the agent would have said at that point, had it spoken instead of thought (logit lens,
nostalgebraist 2020). Adapters are in h; temperature and top-p are not in p.
"""

from math import isfinite
from typing import NamedTuple

import torch

NUM_LENS_TOKENS = 5


class LensReading(NamedTuple):
    """Of one latent step: |h|, and the likeliest tokens with their probabilities, likeliest first.

    Where the model's numbers overflow there is no norm, or there are no tokens.
    """

    norm: float | None
    token_ids: tuple[int, ...]
    probabilities: tuple[float, ...]


def read_lens(hidden: torch.Tensor, logits: torch.Tensor) -> list[LensReading]:
    """One reading per row of hidden [num_rows, hidden_size] and logits [num_rows, vocab_size].

    Probabilities are computed in fp32; norms in fp64, where no square of a finite number overflows.
    """
    norms: list[float] = hidden.double().norm(dim=-1).tolist()
    num_tokens = min(NUM_LENS_TOKENS, logits.shape[-1])
    probabilities, token_ids = logits.float().softmax(dim=-1).topk(num_tokens, dim=-1)
    rows = zip(norms, token_ids.tolist(), probabilities.tolist(), strict=True)
    return [_reading(norm, ids, shares) for norm, ids, shares in rows]


def _reading(norm: float, token_ids: list[int], probabilities: list[float]) -> LensReading:
    """One infinity among the logits of a row leaves all of its probabilities NaN."""
    known_norm = norm if isfinite(norm) else None
    if not all(map(isfinite, probabilities)):
        return LensReading(known_norm, (), ())
    return LensReading(known_norm, tuple(token_ids), tuple(probabilities))
