"""Chooses how large the KV pool is. Knows memory and bytes, no requests."""

from pathlib import Path

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.attention import PAGED_BLOCK_SIZE
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.model_loader import ModelShape
from latentmas_core.errors import ConfigError

DEFAULT_BLOCK_SIZE = 16
MAX_CPU_POOL_BYTES = 2**30
MIN_NUM_BLOCKS = 2
MEMINFO = Path("/proc/meminfo")


def choose_block_size(config: EngineConfig, *, is_paged: bool) -> int:
    if not is_paged:
        return config.block_size or DEFAULT_BLOCK_SIZE
    if config.block_size is not None and config.block_size % PAGED_BLOCK_SIZE:
        raise ConfigError(
            f"block_size is {config.block_size}; on this device attention reads pages of "
            f"{PAGED_BLOCK_SIZE}. Use a multiple of {PAGED_BLOCK_SIZE}, or leave it out.",
            param="block_size",
        )
    return config.block_size or PAGED_BLOCK_SIZE


def choose_num_blocks(
    config: EngineConfig,
    shape: ModelShape,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Blocks that fit the bytes of the config, or the share of what is free now."""
    pool_bytes = config.kv_cache_bytes or _available_bytes(config.memory_share, device)
    block_bytes = num_block_bytes(shape, block_size, dtype)
    num_blocks = pool_bytes // block_bytes
    if num_blocks < MIN_NUM_BLOCKS:
        raise ConfigError(
            f"the KV pool has {pool_bytes} bytes, which is {num_blocks} block(s) of {block_bytes} "
            f"bytes; it needs at least {MIN_NUM_BLOCKS}. Raise kv_cache_bytes or memory_share.",
            param="kv_cache_bytes",
        )
    return num_blocks


def _available_bytes(share: float, device: torch.device) -> int:
    if device.type == "cuda":
        num_free, _ = torch.cuda.mem_get_info(device)
        return int(num_free * share)
    num_available = available_host_bytes()
    if num_available is None:
        return MAX_CPU_POOL_BYTES
    return min(int(num_available * share), MAX_CPU_POOL_BYTES)


def available_host_bytes() -> int | None:
    """Memory that may be had without swapping; None where the system does not say."""
    try:
        lines = MEMINFO.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return 1024 * int(amount.split()[0])
    return None
