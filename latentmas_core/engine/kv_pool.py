"""The tensors behind the KV blocks. Reads, writes and copies slots; knows not who owns them.

A slot is one row of one block: slot = block_id * block_size + offset.
"""

import math
import mmap
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from latentmas_core.engine.model_shape import ModelShape
from latentmas_core.latent.segment import KVRows

# The largest number that lies in a block. Others have it masked: added to -inf, or multiplied by 0.
# Neither helps against NaN, or against a product with a query that overflows before that.
MAX_STATE = 1e30


def max_state(dtype: torch.dtype) -> float:
    """The largest number of that type that may lie in a block."""
    return min(MAX_STATE, torch.finfo(dtype).max)


def num_block_bytes(shape: ModelShape, block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes: keys and values of all layers."""
    num_elements = shape.num_layers * block_size * shape.num_kv_heads * shape.head_dim
    return 2 * num_elements * dtype.itemsize


class LayerStates(NamedTuple):
    """Views of the keys, or of the values, of one layer; made once, for a step reads them often."""

    pages: torch.Tensor  # [num_blocks, block_size, num_kv_heads, head_dim]
    slots: torch.Tensor  # [num_slots, num_kv_heads, head_dim]
    heads: torch.Tensor  # [1, num_kv_heads, num_slots, head_dim]

    @classmethod
    def from_pages(cls, pages: torch.Tensor) -> "LayerStates":
        slots = pages.view(-1, *pages.shape[2:])
        return cls(pages, slots, slots.transpose(0, 1)[None])


class Pool(Protocol):
    """What the engine asks of the tensors behind its blocks, on however many devices they lie.

    parts: one per device, in the order of their layers. layer_keys, layer_values: by layer, each
    on the device of its layer; all else that is made here is on ``device``, the first.
    """

    block_size: int
    device: torch.device
    dtype: torch.dtype
    layer_keys: list[LayerStates]
    layer_values: list[LayerStates]

    @property
    def parts(self) -> "Sequence[KVPool]": ...
    def slots(self, block_table: Sequence[int], start: int, end: int) -> torch.Tensor: ...
    def read(self, slots: torch.Tensor) -> KVRows: ...
    def read_into(self, slots: torch.Tensor, target: KVRows) -> None: ...
    def write(self, slots: torch.Tensor, rows: KVRows) -> None: ...
    def copy_block(self, source: int, target: int) -> None: ...


class KVPool:
    """The pool of one device.

    keys, values: [num_layers, num_blocks, block_size, num_kv_heads, head_dim].
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        size = (shape.num_layers, num_blocks, block_size, shape.num_kv_heads, shape.head_dim)
        self.block_size = block_size
        self.device = device
        self.dtype = dtype
        self.keys = _zeros(size, dtype, device)
        self.values = _zeros(size, dtype, device)
        # [num_layers, num_slots, num_kv_heads, head_dim]
        self._key_slots = self.keys.view(size[0], -1, *size[3:])
        self._value_slots = self.values.view(size[0], -1, *size[3:])
        self.layer_keys = [LayerStates.from_pages(pages) for pages in self.keys]
        self.layer_values = [LayerStates.from_pages(pages) for pages in self.values]

    @property
    def parts(self) -> "Sequence[KVPool]":
        return (self,)

    @property
    def num_layers(self) -> int:
        return len(self.layer_keys)

    def slots(self, block_table: Sequence[int], start: int, end: int) -> torch.Tensor:
        """Slot numbers [end - start] of the rows ``start`` .. ``end - 1`` of a block table."""
        size = self.block_size
        if end - start == 1:  # the common case, and plain numbers are quicker than four tensors
            return torch.tensor([block_table[start // size] * size + start % size]).to(self.device)
        rows = torch.arange(start, end)
        blocks = torch.tensor(block_table)[rows // size]
        return (blocks * size + rows % size).to(self.device)

    def read(self, slots: torch.Tensor) -> KVRows:
        """A copy of the given slots."""
        return KVRows(
            self._key_slots.index_select(1, slots), self._value_slots.index_select(1, slots)
        )

    def read_into(self, slots: torch.Tensor, target: KVRows) -> None:
        """Copy the given slots to rows of the same number, on this device or another."""
        for states, rows in ((self._key_slots, target.keys), (self._value_slots, target.values)):
            if rows.device == states.device:
                torch.index_select(states, 1, slots, out=rows)
            else:
                rows.copy_(states.index_select(1, slots))

    def write(self, slots: torch.Tensor, rows: KVRows) -> None:
        self._key_slots.index_copy_(1, slots, rows.keys.to(self.keys))
        self._value_slots.index_copy_(1, slots, rows.values.to(self.values))

    def run(self, start: int, num_blocks: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Neighbouring blocks as plain room: views of keys and values [num_layers, num_elements].

        Whoever fills it writes no number beyond ``max_state``.
        """
        end = start + num_blocks
        return (
            self.keys[:, start:end].view(self.num_layers, -1),
            self.values[:, start:end].view(self.num_layers, -1),
        )

    def copy_block(self, source: int, target: int) -> None:
        self.keys[:, target].copy_(self.keys[:, source])
        self.values[:, target].copy_(self.values[:, source])


def _zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros, not empty: masked slots are multiplied by 0, and 0 * NaN would be NaN.

    On a CPU an anonymous mapping, which takes memory only where it is written.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    num_bytes = math.prod(size) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, num_bytes), dtype=dtype).view(size)
