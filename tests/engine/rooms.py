"""A memory store with its blocks and its pool, and readers whose rows are made up."""

from typing import NamedTuple

import torch

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.memory_store import MemoryStore
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.latent.memory import Memory, Placement
from latentmas_core.latent.segment import KVRows, Segment, SegmentTensors
from tests.engine.factories import BLOCK_SIZE, SHAPE, create_pool, create_sequence
from tests.latent.factories import create_segment

INV_FREQ = torch.tensor([1.0, 0.3, 0.1, 0.03])


class Room(NamedTuple):
    """A store with what it stands on."""

    blocks: BlockManager
    pool: KVPool
    store: MemoryStore


def create_room(*, num_blocks: int = 20) -> Room:
    blocks, pool = BlockManager(num_blocks, BLOCK_SIZE), create_pool(num_blocks=num_blocks, seed=1)
    store = MemoryStore(blocks, pool, inv_freq=INV_FREQ, hidden_size=SHAPE.hidden_size)
    return Room(blocks, pool, store)


def create_tensors(segment: Segment, *, seed: int = 0) -> SegmentTensors:
    generator = torch.Generator().manual_seed(seed)
    size = (SHAPE.num_layers, segment.num_rows, SHAPE.num_kv_heads, SHAPE.head_dim)
    keys, values = (torch.randn(size, generator=generator) for _ in range(2))
    latents = torch.randn(segment.num_latents, SHAPE.hidden_size, generator=generator)
    return SegmentTensors(latents, KVRows(keys, values))


def load(room: Room, *segments: Segment) -> ResidentMemory:
    """A memory of a chain of segments, with random content."""
    memory = Memory(tuple(Placement(segment) for segment in segments))
    tensors = {s.segment_id: create_tensors(s, seed=seed) for seed, s in enumerate(segments)}
    return room.store.load(memory, tensors)


def load_rows(room: Room, num_rows: int) -> ResidentMemory:
    return load(room, create_segment(num_tokens=num_rows, num_latents=0))


def start(room: Room, memory: ResidentMemory, *, num_tokens: int = 6) -> Sequence:
    """A sequence that reads ``memory`` and has blocks for its own rows."""
    sequence = create_sequence(num_tokens=num_tokens, memory=memory)
    room.store.pin(memory)
    room.store.attach(sequence)
    num_blocks = room.blocks.num_blocks_for(memory.num_rows + num_tokens)
    sequence.block_table += room.blocks.allocate(num_blocks - len(sequence.block_table))
    return sequence


def end(room: Room, sequence: Sequence, *, keeps_tail: bool = False) -> None:
    room.blocks.free(sequence.block_table)
    sequence.block_table = []
    room.store.detach(sequence, keeps_tail=keeps_tail)
    room.store.unpin(sequence.turn.memory)


def read_rows(room: Room, block_table: list[int], first: int, last: int) -> KVRows:
    return room.pool.read(room.pool.slots(block_table, first, last))


def write_own_rows(room: Room, sequence: Sequence, *, seed: int) -> KVRows:
    """What a step would write behind the memory."""
    num_rows = len(sequence.token_ids)
    rows = create_tensors(create_segment(num_tokens=num_rows, num_latents=0), seed=seed).kv
    assert rows is not None
    first = sequence.num_memory_rows
    room.pool.write(room.pool.slots(sequence.block_table, first, first + num_rows), rows)
    sequence.num_computed = num_rows
    return rows


def content_of(room: Room, memory: ResidentMemory) -> KVRows:
    """A copy of the rows of a memory, wherever they are."""
    if memory.staged is not None:
        return KVRows(memory.staged.keys.clone(), memory.staged.values.clone())
    assert memory.block_table is not None
    return read_rows(room, memory.block_table, 0, memory.num_rows)


def assert_same(actual: KVRows | None, expected: KVRows | None) -> None:
    """Bit for bit."""
    assert actual is not None
    assert expected is not None
    assert torch.equal(actual.keys, expected.keys)
    assert torch.equal(actual.values, expected.values)


def assert_adds_up(room: Room, *sequences: Sequence) -> None:
    num_refs = sum(len(sequence.block_table) for sequence in sequences)
    room.blocks.check_integrity(num_refs + sum(map(len, room.store.block_tables())))
    room.store.check_integrity()


def bring_in(room: Room, memory: ResidentMemory) -> ResidentMemory:
    """The memory was read once: it is idle, and in blocks."""
    end(room, start(room, memory, num_tokens=1))
    assert memory.block_table is not None
    return memory
