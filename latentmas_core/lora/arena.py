"""Where adapters lie on the device: in runs of the very blocks that hold keys and values.

So one budget of bytes serves both, and the side that is short takes what the other has idle
(unified paging, as in S-LoRA, Sheng et al. 2023). The shrink matrices of a layer lie in its keys,
the expand matrices in its values: every matrix of an adapter of any rank is one contiguous view.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.lora.base_model import BaseModel
from latentmas_core.lora.layers import AdapterTerms, Site, make_terms
from latentmas_core.lora.packed import AdapterLayout, PackedAdapter

# Told which blocks moved where, so that whoever keeps a block table mends it.
MendTables = Callable[[Mapping[int, int]], None]


@dataclass(frozen=True)
class Berth:
    """Reserved room for one adapter. a, b: views [num_layers, num_a] and [num_layers, num_b]."""

    start: int
    num_blocks: int
    a: torch.Tensor
    b: torch.Tensor
    terms: AdapterTerms


class Arena:
    """Reserves and frees runs of blocks, and fills them."""

    def __init__(
        self,
        base: BaseModel,
        sites: Sequence[Site],
        blocks: BlockManager,
        pool: KVPool,
        mend_tables: MendTables,
    ) -> None:
        self._base = base
        self._sites = sites
        self._blocks = blocks
        self._pool = pool
        self._mend_tables = mend_tables
        num_layers, _, *block_shape = pool.keys.shape
        assert num_layers == base.num_layers, "each layer of the model has its keys and values"
        self._num_block_elements = torch.Size(block_shape).numel()

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
        keys, values = self._pool.run(start, num_blocks)
        a, b = keys[:, : layout.num_a], values[:, : layout.num_b]
        terms = make_terms(self._base, self._sites, layout, a, b)
        return Berth(start, num_blocks, a, b, terms)

    def free(self, berth: Berth) -> None:
        self._blocks.free_run(berth.start, berth.num_blocks)


def fill(berth: Berth, packed: PackedAdapter) -> None:
    """Copy an adapter into its berth. Called from another thread than the one that computes."""
    if berth.a.device.type == "cpu":
        # numpy copies on this thread alone; torch would start a team of threads beside the other.
        for target, source in ((berth.a, packed.a), (berth.b, packed.b)):
            target.view(torch.uint8).numpy()[:] = source.view(torch.uint8).numpy()
        return
    stream = torch.cuda.Stream(berth.a.device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.default_stream(berth.a.device))  # it may still read these blocks
    with torch.cuda.stream(stream):
        berth.a.copy_(packed.a, non_blocking=True)
        berth.b.copy_(packed.b, non_blocking=True)
    stream.synchronize()
