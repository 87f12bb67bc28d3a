"""The pool of a model that is spread over several devices: the parts of a block, layer by layer.

A block has one number on all devices; each holds the keys and values of its own layers.
"""

from collections.abc import Iterator, Sequence

import torch

from latentmas_core.engine.kv_pool import KVPool, Pool, num_block_bytes
from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.engine.shards import Shard
from latentmas_core.errors import ConfigError
from latentmas_core.latent.segment import KVRows


class SplitPool:
    """The face of ``KVPool`` over several of them, in the order of their layers.

    Slots are numbered on the first device, and rows are read to it: there memories are rotated.
    """

    def __init__(self, parts: Sequence[KVPool]) -> None:
        self.parts = tuple(parts)
        first = self.parts[0]
        self.block_size = first.block_size
        self.device = first.device
        self.dtype = first.dtype
        self.layer_keys = [states for part in self.parts for states in part.layer_keys]
        self.layer_values = [states for part in self.parts for states in part.layer_values]

    def slots(self, block_table: Sequence[int], start: int, end: int) -> torch.Tensor:
        return self.parts[0].slots(block_table, start, end)

    def read(self, slots: torch.Tensor) -> KVRows:
        """A copy of the given slots, on the first device."""
        runs = [part.read(slots.to(part.device)).to(self.device) for part in self.parts]
        return KVRows(
            torch.cat([run.keys for run in runs]), torch.cat([run.values for run in runs])
        )

    def read_into(self, slots: torch.Tensor, target: KVRows) -> None:
        for part, rows in self._by_part(target):
            part.read_into(slots.to(part.device), rows)

    def write(self, slots: torch.Tensor, rows: KVRows) -> None:
        for part, of_part in self._by_part(rows):
            part.write(slots.to(part.device), of_part)

    def copy_block(self, source: int, target: int) -> None:
        for part in self.parts:
            part.copy_block(source, target)

    def _by_part(self, rows: KVRows) -> Iterator[tuple[KVPool, KVRows]]:
        start = 0
        for part in self.parts:
            end = start + part.num_layers
            yield part, KVRows(rows.keys[start:end], rows.values[start:end])
            start = end


def make_pool(
    shape: ModelShape,
    shards: Sequence[Shard],
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
) -> Pool:
    """One pool where one device holds all layers, else a part of it on each device.

    Raises ConfigError where a device has no room for its part.
    """
    parts = []
    for shard in shards:
        part_shape = shape._replace(num_layers=shard.num_layers)
        try:
            part = KVPool(
                part_shape,
                num_blocks=num_blocks,
                block_size=block_size,
                dtype=dtype,
                device=shard.device,
            )
        except torch.OutOfMemoryError as error:
            part_bytes = num_blocks * num_block_bytes(part_shape, block_size, dtype)
            raise ConfigError(
                f"the KV pool takes {part_bytes} bytes of {shard.device}, which has no room for "
                "them. Lower kv_cache_bytes, or raise device_memory_share.",
                param="kv_cache_bytes",
            ) from error
        parts.append(part)
    return parts[0] if len(parts) == 1 else SplitPool(parts)
