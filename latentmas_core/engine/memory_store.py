"""Owns every memory that lives in one engine: its blocks, or its rows while blocks are short.

A memory is *idle* while no running sequence reads it; idle memories may be moved out of the pool,
longest unused first, and come back when they are read. Used by the engine's thread alone.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence

import torch

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import Pool
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence as EngineSequence
from latentmas_core.errors import SegmentError
from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.rotary import rotate_keys
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors


class MemoryStore:
    """Creates, lends, moves and frees ``ResidentMemory`` handles."""

    def __init__(
        self, blocks: BlockManager, pool: Pool, *, inv_freq: torch.Tensor, hidden_size: int
    ) -> None:
        self.blocks = blocks
        self.pool = pool
        self.inv_freq = inv_freq
        self.hidden_size = hidden_size
        self.num_offloads = 0
        self._held: OrderedDict[int, ResidentMemory] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self._held)

    def block_tables(self) -> list[list[int]]:
        """The tables of the memories that are in blocks, to be counted or mended."""
        return [m.block_table for m in self._held.values() if m.block_table is not None]

    # What the scheduler asks.

    def pin(self, memory: ResidentMemory | None) -> None:
        """A sequence that will read ``memory`` arrived."""
        if memory is not None:
            assert not memory.is_released, f"memory {memory.memory.segment_ids} was released"
            memory.num_pins += 1

    def unpin(self, memory: ResidentMemory | None) -> None:
        """That sequence ended."""
        if memory is not None:
            memory.num_pins -= 1
            self._drop_if_unused(memory)

    def num_blocks_to_attach(self, memory: ResidentMemory | None) -> int:
        """Blocks that ``attach`` will take: to bring the memory back, or to copy its last block."""
        if memory is None:
            return 0
        if memory.block_table is None:
            return self.blocks.num_blocks_for(memory.num_rows)
        return 1 if self._must_copy_tail(memory) else 0

    def attach(self, sequence: EngineSequence) -> None:
        """Give ``sequence`` a block table that begins with the memory it reads."""
        memory = sequence.turn.memory
        if memory is None:
            return
        assert memory.num_pins > 0, f"{sequence} reads a memory that it did not pin"
        self._restore(memory)
        assert memory.block_table is not None, "a restored memory has blocks"
        memory.num_readers += 1
        if self._must_copy_tail(memory):
            *full, tail = memory.block_table
            self.blocks.share(full)
            (copy,) = self.blocks.allocate(1)
            self.pool.copy_block(tail, copy)
            sequence.block_table = [*full, copy]
            return
        self.blocks.share(memory.block_table)
        sequence.block_table = list(memory.block_table)
        if memory.num_rows % self.blocks.block_size:
            memory.has_appender = sequence.is_appender = True

    def detach(self, sequence: EngineSequence, *, keeps_tail: bool = False) -> None:
        """End the reading; with ``keeps_tail`` the rows appended behind the memory live on."""
        memory = sequence.turn.memory
        if memory is None:
            return
        memory.num_readers -= 1
        if sequence.is_appender and not keeps_tail:
            memory.has_appender = False
        sequence.is_appender = False
        self._held.move_to_end(id(memory))

    def make_room(self, num_blocks: int, *, spared: ResidentMemory | None = None) -> bool:
        """True if ``num_blocks`` are free, after moving idle memories out if that helps."""
        if self.blocks.can_allocate(num_blocks):
            return True
        idle = [m for m in self._held.values() if self._is_idle(m) and m is not spared]
        if self.blocks.num_free + self._num_blocks_only_of(idle) < num_blocks:
            return False
        for memory in idle:
            if self.blocks.can_allocate(num_blocks):
                break
            self._offload(memory)
        return self.blocks.can_allocate(num_blocks)

    # What the engine asks.

    def adopt(self, sequence: EngineSequence, segment: Segment) -> ResidentMemory:
        """A handle on what a finished sequence read and wrote; takes references of its own."""
        memory = sequence.memory.followed_by(segment)
        block_table = sequence.block_table[: self.blocks.num_blocks_for(memory.num_rows)]
        self.blocks.share(block_table)
        latents = dict(sequence.turn.memory.latents) if sequence.turn.memory else {}
        latents[segment.segment_id] = self._stack(sequence.latents)
        return self._hold(ResidentMemory(memory, latents, block_table=block_table))

    def assemble(self, target: Memory, sources: Sequence[ResidentMemory]) -> ResidentMemory:
        """A new memory whose rows are copied from ``sources``, keys moved to where they belong."""
        rows = KVRows.concatenate([self._read(p, sources) for p in target.placements])
        latents = {
            segment.segment_id: _find(segment, sources).latents_of(segment)
            for segment in target.segments
        }
        return self._place(ResidentMemory(target, latents, staged=rows))

    def export(self, memory: ResidentMemory, segments: Iterable[Segment]) -> list[SegmentTensors]:
        """Copies of the rows of some segments, keys at the positions they were computed at."""
        return [
            SegmentTensors(memory.latents_of(segment), self._read(Placement(segment), [memory]))
            for segment in segments
        ]

    def copy_out(self, memory: ResidentMemory, segment: Segment, target: SegmentTensors) -> None:
        """The same into tensors that are there already; ``target`` may be without keys and values.

        What lies in blocks on the target's device is copied once, from where it is.
        """
        target.latents.copy_(memory.latents_of(segment))
        if target.kv is None:
            return
        start, placed = memory.locate(segment)
        if memory.block_table is not None and placed.shift == 0:
            slots = self._slots(memory, start, start + segment.num_rows)
            self.pool.read_into(slots, target.kv)
            return
        rows = self._read(Placement(segment), [memory])
        target.kv.keys.copy_(rows.keys)
        target.kv.values.copy_(rows.values)

    def load(self, memory: Memory, tensors: Mapping[str, SegmentTensors]) -> ResidentMemory:
        """A memory from the content of its segments, by segment id.

        It goes to blocks that are free, in one copy; without them it waits until it is read. The
        content stays the caller's, who may give it up at once if there were. Where a segment came
        without keys and values, the memory can only be prefilled again.
        """
        contents = {segment_id: tensors[segment_id] for segment_id in memory.segment_ids}
        # Sequences that recall them share steps with others that think: all on one device. Copies,
        # since a view would keep the whole buffer that came over the wire.
        latents = {
            key: content.latents.to(self.pool.device, copy=True)
            for key, content in contents.items()
        }
        loaded = ResidentMemory(memory, latents)
        if all(content.kv is not None for content in contents.values()):
            placed = [(contents[p.segment.segment_id].kv, p.shift) for p in memory.placements]
            self._fill(loaded, [self._moved(kv, shift) for kv, shift in placed])
        return self._hold(loaded)

    def release(self, memory: ResidentMemory) -> None:
        """Give a memory up; it is freed at once, or when the last turn that pins it has ended."""
        assert not memory.is_released, f"memory {memory.memory.segment_ids} is released twice"
        memory.is_released = True
        self._drop_if_unused(memory)

    def check_integrity(self) -> None:
        """Raise AssertionError if a handle holds its rows twice, or lends wrongly."""
        for memory in self._held.values():
            is_placed, is_staged = memory.block_table is not None, memory.staged is not None
            assert not (is_placed and is_staged), f"{memory} is in blocks and staged"
            assert 0 <= memory.num_readers <= memory.num_pins, (
                f"num_readers={memory.num_readers}, num_pins={memory.num_pins}"
            )
            assert memory.num_pins > 0 or not memory.is_released, "released, unused and still held"

    def _hold(self, memory: ResidentMemory) -> ResidentMemory:
        self._held[id(memory)] = memory
        return memory

    def _drop_if_unused(self, memory: ResidentMemory) -> None:
        if not memory.is_released or memory.num_pins > 0:
            return
        del self._held[id(memory)]
        self.blocks.free(memory.block_table or ())
        memory.block_table = memory.staged = None

    def _num_blocks_only_of(self, memories: Iterable[ResidentMemory]) -> int:
        """Blocks that nobody but these memories refers to."""
        num_refs = Counter(block for memory in memories for block in memory.block_table or ())
        return sum(self.blocks.num_refs(block) == count for block, count in num_refs.items())

    def _fill(self, memory: ResidentMemory, runs: Sequence[KVRows]) -> None:
        num_blocks = self.blocks.num_blocks_for(memory.num_rows)
        if not self.blocks.can_allocate(num_blocks):
            memory.staged = KVRows.concatenate(runs)
            return
        memory.block_table = self.blocks.allocate(num_blocks)
        start = 0
        for rows in runs:
            self.pool.write(self._slots(memory, start, start + rows.num_rows), rows)
            start += rows.num_rows

    def _place(self, memory: ResidentMemory) -> ResidentMemory:
        if self.make_room(self.blocks.num_blocks_for(memory.num_rows)):
            self._restore(memory)
        return self._hold(memory)

    def _must_copy_tail(self, memory: ResidentMemory) -> bool:
        return memory.has_appender and memory.num_rows % self.blocks.block_size != 0

    def _is_idle(self, memory: ResidentMemory) -> bool:
        return memory.num_readers == 0 and memory.block_table is not None

    def _slots(self, memory: ResidentMemory, start: int, end: int) -> torch.Tensor:
        assert memory.block_table is not None, "slots of a memory that is not in blocks"
        return self.pool.slots(memory.block_table, start, end)

    def _offload(self, memory: ResidentMemory) -> None:
        rows = self.pool.read(self._slots(memory, 0, memory.num_rows))
        memory.staged = KVRows(rows.keys.cpu(), rows.values.cpu())
        self.blocks.free(memory.block_table or ())
        memory.block_table = None
        memory.has_appender = False
        self.num_offloads += 1

    def _restore(self, memory: ResidentMemory) -> None:
        if memory.staged is None:
            return
        memory.block_table = self.blocks.allocate(self.blocks.num_blocks_for(memory.num_rows))
        self.pool.write(self._slots(memory, 0, memory.num_rows), memory.staged)
        memory.staged = None

    def _read(self, target: Placement, sources: Sequence[ResidentMemory]) -> KVRows:
        source = _find(target.segment, sources)
        start, placed = source.locate(target.segment)
        end = start + target.segment.num_rows
        if source.staged is not None:
            rows = source.staged.select(start, end).to(self.pool.device)
        else:
            rows = self.pool.read(self._slots(source, start, end))
        return self._moved(rows, target.shift - placed.shift)

    def _moved(self, rows: KVRows | None, shift: int) -> KVRows:
        assert rows is not None, "a segment without keys and values is prefilled again, not loaded"
        return KVRows(rotate_keys(rows.keys, shift, self.inv_freq), rows.values)

    def _stack(self, latents: list[torch.Tensor]) -> torch.Tensor:
        if latents:
            return torch.stack(latents)
        size = (0, self.hidden_size)
        return torch.empty(size, dtype=self.pool.dtype, device=self.pool.device)


def _find(segment: Segment, sources: Sequence[ResidentMemory]) -> ResidentMemory:
    for source in sources:
        if source.holds(segment):
            return source
    raise SegmentError(
        f"segment {segment.segment_id} of agent {segment.agent!r} is in none of the "
        f"{len(sources)} memories at hand. Hand over the whole memory it was computed in.",
        param="memory",
    )
