"""Sequences, pools and rows without a model behind them."""

from typing import Any, cast

import torch

from latentmas_core.config import SamplingParams
from latentmas_core.engine.block_manager import prefix_keys
from latentmas_core.engine.detokenizer import Detokenizer
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.engine.turn import Turn
from latentmas_core.lora.mix import NO_ADAPTERS, AdapterMix

BLOCK_SIZE = 4
SHAPE = ModelShape(
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_size=12,
    vocab_size=50,
    max_positions=1000,
)


def create_sequence(
    *,
    num_tokens: int = 6,
    latent_steps: int = 0,
    max_tokens: int | None = None,
    memory: ResidentMemory | None = None,
    first_token: int = 0,
    has_prefix_keys: bool = False,
    adapters: AdapterMix = NO_ADAPTERS,
) -> Sequence:
    """A sequence that nobody listens to; equal ``first_token`` means equal prompts."""
    prompt_ids = tuple(range(first_token, first_token + num_tokens))
    sampling = SamplingParams(max_tokens=max_tokens) if max_tokens else None
    turn = Turn("agent", prompt_ids, memory, latent_steps, sampling, adapters=adapters)
    return Sequence(
        turn,
        sink=lambda event: None,
        detokenizer=cast(Detokenizer, None),
        prefix_keys=prefix_keys("model", prompt_ids, BLOCK_SIZE) if has_prefix_keys else [],
    )


def create_pool(
    *, num_blocks: int = 20, block_size: int = BLOCK_SIZE, seed: int | None = None, **fields: Any
) -> KVPool:
    """An fp32 pool on the CPU, of zeros or, with a seed, of random numbers."""
    pool = KVPool(
        SHAPE._replace(**fields),
        num_blocks=num_blocks,
        block_size=block_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        pool.keys.normal_(generator=generator)
        pool.values.normal_(generator=generator)
    return pool
