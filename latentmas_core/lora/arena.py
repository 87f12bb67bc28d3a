"""Where adapters lie on the device: in runs of the very blocks that hold keys and values.

So one budget of bytes serves both, and the side that is short takes what the other has idle
(unified paging, as in S-LoRA, Sheng et al. 2023). The shrink matrices of a layer lie in its keys,
the expand matrices in its values: every matrix of an adapter of any rank is one contiguous view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import Pool
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter
from latentmas_core.lora.terms import AdapterTerms, Site, make_terms

# Told which blocks moved where, so that whoever keeps a block table mends it.
MendTables = Callable[[Mapping[int, int]], None]


class BerthPart(NamedTuple):
    """The layers of one device. a, b: views [num_layers, num_a] and [num_layers, num_b]."""

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True)
class Berth:
    """Reserved room for one adapter; parts: one per device, in the order of their layers."""

    start: int
    num_blocks: int
    parts: tuple[BerthPart, ...]
    terms: AdapterTerms


class Arena:
    """Reserves and frees runs of blocks, and fills them."""

    def __init__(
        self,
        base: BaseModel,
        sites: Sequence[Site],
        blocks: BlockManager,
        pool: Pool,
        mend_tables: MendTables,
    ) -> None:
        self._base = base
        self._sites = sites
        self._blocks = blocks
        self._pool = pool
        self._mend_tables = mend_tables
        assert len(pool.layer_keys) == base.num_layers, "each layer has its keys and values"
        self._num_block_elements = pool.layer_keys[0].pages[0].numel()

    @property
    def max_blocks(self) -> int:
        """Blocks that adapters may be given for good: half of them, requests need the others."""
        return self._blocks.num_blocks // 2

    def num_blocks_for(self, layout: AdapterLayout) -> int:
        return -(-max(layout.num_a, layout.num_b) // self._num_block_elements)

    def reserve(self, layout: AdapterLayout) -> Berth | None:
        """Room for an adapter, or None while no run of free or movable blocks is long enough."""
        num_blocks = self.num_blocks_for(layout)
        if not self._blocks.can_allocate(num_blocks):
            return None
        start = self._blocks.find_run(num_blocks)
        if start is None:
            return None
        moves = self._blocks.allocate_run(start, num_blocks)
        for source, target in moves.items():
            self._pool.copy_block(source, target)
        if moves:
            self._mend_tables(moves)
        runs = [part.run(start, num_blocks) for part in self._pool.parts]
        parts = [
            BerthPart(keys[:, : layout.num_a], values[:, : layout.num_b]) for keys, values in runs
        ]
        a = [layer for part in parts for layer in part.a]
        b = [layer for part in parts for layer in part.b]
        terms = make_terms(self._base, self._sites, layout, a, b)
        return Berth(start, num_blocks, tuple(parts), terms)

    def free(self, berth: Berth) -> None:
        self._blocks.free_run(berth.start, berth.num_blocks)


def fill(berth: Berth, packed: PackedAdapter) -> None:
    """Copy an adapter into its berth. Called from another thread than the one that computes."""
    num_layers = [part.a.shape[0] for part in berth.parts]
    sources = zip(
        *(torch.split(matrices, num_layers) for matrices in (packed.a, packed.b)), strict=True
    )
    streams: list[torch.cuda.Stream] = []
    for part, (a, b) in zip(berth.parts, sources, strict=True):
        if part.a.device.type == "cpu":
            _fill_on_host(part.a, a)
            _fill_on_host(part.b, b)
        else:
            streams.append(_start_filling(part, a, b))
    for stream in streams:
        stream.synchronize()


def _fill_on_host(target: torch.Tensor, source: torch.Tensor) -> None:
    # numpy copies on this thread alone; torch would start a team of threads beside the other.
    target.view(torch.uint8).numpy()[:] = source.view(torch.uint8).numpy()


def _start_filling(part: BerthPart, a: torch.Tensor, b: torch.Tensor) -> torch.cuda.Stream:
    """The stream that copies; it waits for steps that may still read these blocks."""
    stream = torch.cuda.Stream(part.a.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.default_stream(part.a.device))
    with torch.cuda.stream(stream):
        part.a.copy_(a, non_blocking=True)
        part.b.copy_(b, non_blocking=True)
    return stream
