"""Tries an unfamiliar decoder on a few tokens before it serves: equal to transformers, or refused.

Fused decoders have their parity in the tests. Any other structure may do in its attention what the
registered function does not know of, and would answer wrongly without a word.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from latentmas_core.engine.attention import AttentionBatch, SequenceRows, prepare_batch
from latentmas_core.engine.model_loader import LoadedModel
from latentmas_core.engine.split_pool import make_pool
from latentmas_core.errors import ModelError

NUM_TOKENS = 12
NUM_PREFILLED = 9  # the rest comes one by one, through the cache
BLOCK_SIZE = 4
MAX_ERROR = {torch.float32: 1e-3}  # relative, of the hidden states
MAX_ERROR_HALF = 5e-2

Decoder = Callable[[torch.Tensor, torch.Tensor, AttentionBatch], torch.Tensor]


@torch.inference_mode()
def reference_hidden(loaded: LoadedModel) -> torch.Tensor:
    """What transformers computes [NUM_TOKENS, hidden_size]; ask before anything is replaced."""
    model: Any = loaded.model
    hidden: torch.Tensor = model.model(input_ids=_tokens(loaded), use_cache=False)[0]
    return hidden[0]


@torch.inference_mode()
def refuse_if_different(
    loaded: LoadedModel, decoder: Decoder, embed: nn.Module, expected: torch.Tensor
) -> None:
    """Raise ModelError unless ``decoder`` computes ``expected``, in chunks and over blocks."""
    try:
        hidden = _run_in_chunks(loaded, decoder, embed(_tokens(loaded)[0]))
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise _refusal(loaded, "fails on a first step") from error
    deviation = ((hidden - expected).norm() / expected.norm()).item()
    limit = MAX_ERROR.get(expected.dtype, MAX_ERROR_HALF)
    if not deviation <= limit:
        raise _refusal(
            loaded, f"is off by {deviation:.1e}, more than {limit:.0e}, from transformers"
        )


def _tokens(loaded: LoadedModel) -> torch.Tensor:
    ids = torch.arange(NUM_TOKENS) * 7 % loaded.shape.vocab_size
    return ids[None].to(loaded.model.device)


def _run_in_chunks(loaded: LoadedModel, decoder: Decoder, embeddings: torch.Tensor) -> torch.Tensor:
    shape, device = loaded.shape, loaded.model.device
    num_blocks = NUM_TOKENS // BLOCK_SIZE
    pool = make_pool(
        shape,
        loaded.shards,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        dtype=embeddings.dtype,
    )
    chunks = []
    starts = [0, *range(NUM_PREFILLED, NUM_TOKENS)]
    for start, end in zip(starts, [*starts[1:], NUM_TOKENS], strict=True):
        batch = prepare_batch(
            [SequenceRows(range(num_blocks), start, end - start)],
            pool,
            num_groups=shape.num_heads // shape.num_kv_heads,
            is_paged=False,
        )
        positions = torch.arange(start, end, device=device)
        chunks.append(decoder(embeddings[start:end], positions, batch))
    return torch.cat(chunks)


def _refusal(loaded: LoadedModel, problem: str) -> ModelError:
    kind = type(loaded.model).__name__
    return ModelError(
        f"model {loaded.name!r} ({kind}) {problem}: its attention is not what the engine computes. "
        "Use a Llama, Qwen2 or Qwen3 style model.",
        param="model_name",
    )
