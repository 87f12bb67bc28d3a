"""How much memory a process may take, and how much of it the KV pool. Knows no requests."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from latentmas_core.config import EngineConfig
from latentmas_core.engine.attention import PAGED_BLOCK_SIZE
from latentmas_core.engine.kv_pool import num_block_bytes
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.engine.shards import Shard, devices_of
from latentmas_core.errors import ConfigError

DEFAULT_BLOCK_SIZE = 16
MAX_CPU_POOL_BYTES = 2**30
MIN_NUM_BLOCKS = 2
MEMINFO = Path("/proc/meminfo")


class _Room(NamedTuple):
    pool_bytes: int
    block_bytes: int

    @property
    def num_blocks(self) -> int:
        return self.pool_bytes // self.block_bytes


def limit_memory(devices: Iterable[torch.device], share: float | None) -> None:
    """Let this process take no more than ``share`` of the memory of each card; None: all of it.

    Holds for all that torch keeps there from now on, other engines of the process among it.
    """
    if share is None:
        return
    for device in devices:
        if device.type != "cuda":
            raise ConfigError(
                f"device_memory_share is {share}, and the device is {device.type!r}: only cards "
                "are shared by their memory. Leave it out, or use device 'cuda' and check that "
                "torch sees the card.",
                param="device_memory_share",
            )
        torch.cuda.set_per_process_memory_fraction(share, device)


def choose_block_size(config: EngineConfig, *, is_paged: bool) -> int:
    """Slots of a block; ConfigError for a size that the paged kernels do not read."""
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
    shards: Sequence[Shard],
) -> int:
    """Blocks that fit the bytes of the config, or the share of what is free now.

    A block lies on all devices, each with its own layers; the one with the least room decides.
    """
    if config.kv_cache_bytes is not None:
        room = _Room(config.kv_cache_bytes, num_block_bytes(shape, block_size, dtype))
    else:
        rooms = [
            _Room(
                _available_bytes(config, device),
                num_block_bytes(shape._replace(num_layers=num_layers), block_size, dtype),
            )
            for device, num_layers in devices_of(shards).items()
        ]
        room = min(rooms, key=lambda room: room.num_blocks)
    if room.num_blocks < MIN_NUM_BLOCKS:
        raise ConfigError(
            f"the KV pool has {room.pool_bytes} bytes, which is {room.num_blocks} block(s) of "
            f"{room.block_bytes} bytes; it needs at least {MIN_NUM_BLOCKS}. Raise kv_cache_bytes, "
            "memory_share or device_memory_share.",
            param="kv_cache_bytes",
        )
    return room.num_blocks


def _available_bytes(config: EngineConfig, device: torch.device) -> int:
    if device.type == "cuda":
        return int(_free_card_bytes(config.device_memory_share, device) * config.memory_share)
    num_available = available_host_bytes()
    if num_available is None:
        return MAX_CPU_POOL_BYTES
    return min(int(num_available * config.memory_share), MAX_CPU_POOL_BYTES)


def _free_card_bytes(share: float | None, device: torch.device) -> int:
    """What this process may still take of a card: what is free, within its share.

    Others may be about to take theirs, so what is free now does not tell how much is left to it.
    """
    torch.cuda.empty_cache()  # what loading left behind is free too
    num_free, num_total = torch.cuda.mem_get_info(device)
    if share is None:
        return num_free
    num_left = int(num_total * share) - torch.cuda.memory_reserved(device)
    return max(0, min(num_free, num_left))


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
