"""Chooses the next token of each row. Knows logits and options, not sequences or models.

Every request draws from a generator of its own, one number per token, so the same request with the
same seed draws the same numbers whatever shares its batch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentmas_core.config import SamplingParams
from latentmas_core.engine.token_text import RowLogprobs


@dataclass
class TokenChooser:
    """The sampling state of one sequence."""

    params: SamplingParams
    generator: random.Random

    @classmethod
    def from_params(cls, params: SamplingParams) -> "TokenChooser":
        return cls(params, random.Random(params.seed))


def choose_tokens(logits: torch.Tensor, choosers: Sequence[TokenChooser]) -> list[int]:
    """One token id per row of ``logits`` [num_rows, vocab_size]."""
    tokens = logits.argmax(dim=-1)
    sampled = [row for row, chooser in enumerate(choosers) if not chooser.params.is_greedy]
    if sampled:
        rows = torch.tensor(sampled, device=logits.device)
        tokens[rows] = _sample(logits[rows], [choosers[row] for row in sampled])
    chosen: list[int] = tokens.tolist()
    return chosen


def logprobs_of(
    logits: torch.Tensor, tokens: Sequence[int], nums_top: Sequence[int]
) -> list[RowLogprobs]:
    """Of each row of ``logits`` [num_rows, vocab_size] its token, and so many of the likeliest."""
    logprobs = logits.float().log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    top = logprobs.topk(min(max(nums_top), logprobs.shape[-1]), dim=-1)
    rows = zip(tokens, chosen.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        RowLogprobs((token, logprob), tuple(zip(ids, values, strict=True))[:num_top])
        for (token, logprob, ids, values), num_top in zip(rows, nums_top, strict=True)
    ]


def _sample(logits: torch.Tensor, choosers: Sequence[TokenChooser]) -> torch.Tensor:
    """Inverse transform sampling over the tokens that top-k and top-p leave, likeliest first."""
    device = logits.device
    temperature = torch.tensor([c.params.temperature for c in choosers], device=device)
    # Next to 0 the division overflows; relative to the largest it does so to -inf only.
    temperature = temperature.clamp_min(torch.finfo(torch.float32).tiny)
    wide, order = logits.float().sort(dim=-1, descending=True)
    scaled = (wide - wide[:, :1]) / temperature[:, None]
    probabilities = _keep_top(scaled, choosers)
    cumulative = probabilities.cumsum(dim=-1)
    draws = torch.tensor([[c.generator.random()] for c in choosers], device=device)
    picks = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)
    # A draw next to 1 may fall behind the last token that is left: take that one. A row that is not
    # finite has none; its token does not matter, but it must not end the step of all others.
    last = ((probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp_min(0)
    return order.gather(1, picks.minimum(last))[:, 0]


def _keep_top(scaled: torch.Tensor, choosers: Sequence[TokenChooser]) -> torch.Tensor:
    """Probabilities of ``scaled`` logits, sorted and descending, with 0 where a token is left out.

    Top-k first, then top-p over what it leaves: the order of transformers and vLLM.
    """
    vocab_size = scaled.shape[-1]
    device = scaled.device
    top_k = torch.tensor([c.params.top_k or vocab_size for c in choosers], device=device)
    top_p = torch.tensor([c.params.top_p for c in choosers], device=device)
    ranks = torch.arange(vocab_size, device=device)
    scaled = scaled.masked_fill(ranks >= top_k[:, None], -torch.inf)
    probabilities = scaled.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    return probabilities.masked_fill(mass_before >= top_p[:, None], 0.0)
