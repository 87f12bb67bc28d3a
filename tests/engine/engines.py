"""Engines over tiny models, and a search for anything that a test left in them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.engine import Engine
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.model_loader import LoadedModel, load_model

OpenEngine = Callable[..., Engine]

CPU = torch.device("cpu")
BLOCK_SIZE = 4


def make_engine(
    model: Path,
    *,
    num_blocks: int = 400,
    dtype: str = "float32",
    num_shards: int = 1,
    **overrides: Any,
) -> Engine:
    """An engine on the CPU with exactly ``num_blocks`` small blocks.

    num_shards: the CPU is taken for so many devices, which no user can ask for.
    """
    loaded = load_model(
        str(model),
        device=CPU,
        further_devices=[CPU] * (num_shards - 1),
        dtype=getattr(torch, dtype),
        quantization=overrides.get("quantization"),
    )
    settings = {"block_size": BLOCK_SIZE} | overrides
    block_bytes = num_block_bytes(loaded.shape, settings["block_size"], loaded.model.dtype)
    config = EngineConfig(
        model_name=str(model),
        device="cpu",
        dtype=dtype,
        kv_cache_bytes=num_blocks * block_bytes,
        **settings,
    )
    return Engine(config, loaded)


def load_plain(model: Path, device: torch.device = CPU) -> LoadedModel:
    """The model as transformers runs it: in fp32, with sdpa."""
    return load_model(str(model), device=device, dtype=torch.float32)


async def assert_nothing_left(engine: Engine) -> None:
    """No request or memory, no used block but those of adapters, and all counts add up."""
    stats = await engine.stats()
    num_used = stats.num_used_blocks - stats.adapters.num_blocks
    left = (stats.num_running, stats.num_waiting, stats.num_memories, num_used)
    assert left == (0, 0, 0, 0), f"running, waiting, memories, used blocks: {left}"
    await engine.check_integrity()
