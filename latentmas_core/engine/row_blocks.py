"""The blocks that sequences have: how many one needs, takes, shares and gives back.

Knows no adapters and no order; who has to give way is the scheduler's affair.
"""

from typing import Protocol

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence


class MemoryAccess(Protocol):
    """What is asked of the store of memories."""

    def pin(self, memory: ResidentMemory | None) -> None: ...
    def unpin(self, memory: ResidentMemory | None) -> None: ...
    def num_blocks_to_attach(self, memory: ResidentMemory | None) -> int: ...
    def attach(self, sequence: Sequence) -> None: ...
    def detach(self, sequence: Sequence, *, keeps_tail: bool = False) -> None: ...
    def make_room(self, num_blocks: int, *, spared: ResidentMemory | None = None) -> bool: ...


class RowBlocks:
    """Block tables of sequences, with the blocks of the memories that they read."""

    def __init__(self, blocks: BlockManager, memories: MemoryAccess) -> None:
        self._blocks = blocks
        self._memories = memories

    def num_to_start(self, sequence: Sequence) -> int:
        """Blocks that are taken from the free ones when it starts, or goes on.

        With them it has all up to the last latent step, so that only speaking grows later.
        """
        num_blocks = self._num_at_start(sequence)
        if sequence.is_suspended:
            return num_blocks - len(sequence.block_table)
        num_memory_blocks = self._blocks.num_blocks_for(sequence.num_memory_rows)
        num_to_attach = self._memories.num_blocks_to_attach(sequence.turn.memory)
        return num_blocks - num_memory_blocks + num_to_attach

    def take_to_start(self, sequence: Sequence) -> None:
        """Allocate them; what an earlier prompt left is shared."""
        if not sequence.is_suspended:
            self._memories.attach(sequence)
            if sequence.turn.memory is None:
                self._share_prefix(sequence)
        num_missing = self._num_at_start(sequence) - len(sequence.block_table)
        sequence.block_table += self._blocks.allocate(num_missing)

    def num_missing(self, sequence: Sequence, num_rows: int) -> int:
        """Blocks that it lacks for its next rows; 0 or less if it lacks none."""
        num_blocks = self._blocks.num_blocks_for(sequence.num_slots + num_rows)
        return num_blocks - len(sequence.block_table)

    def extend(self, sequence: Sequence, num_blocks: int) -> None:
        sequence.block_table += self._blocks.allocate(num_blocks)

    def publish(self, sequence: Sequence) -> None:
        """Let its full blocks be found by prompts that begin like it."""
        num_full = sequence.num_computed // self._blocks.block_size
        for index in range(sequence.num_published, min(num_full, len(sequence.prefix_keys))):
            self._blocks.publish(sequence.block_table[index], sequence.prefix_keys[index])
            sequence.num_published = index + 1

    def free(self, sequence: Sequence, *, keeps_tail: bool = False) -> None:
        """Give all back; ``keeps_tail``: the rows behind its memory stay, for a memory of them."""
        self._blocks.free(sequence.block_table)
        sequence.block_table = []
        sequence.is_suspended = False
        self._memories.detach(sequence, keeps_tail=keeps_tail)

    def _num_at_start(self, sequence: Sequence) -> int:
        num_rows = sequence.num_known + sequence.num_latents_due - len(sequence.latents)
        return self._blocks.num_blocks_for(sequence.num_memory_rows + num_rows)

    def _share_prefix(self, sequence: Sequence) -> None:
        # The last prompt row is always computed: what follows is found out from its hidden state.
        num_reusable = (len(sequence.token_ids) - 1) // self._blocks.block_size
        block_ids = self._blocks.match_prefix(sequence.prefix_keys[:num_reusable])
        sequence.block_table = block_ids
        sequence.num_published = len(block_ids)
        sequence.num_computed = len(block_ids) * self._blocks.block_size
        if sequence.num_preemptions == 0:
            sequence.num_cached_tokens = sequence.num_computed
