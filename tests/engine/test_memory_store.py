"""Memories share blocks with their readers, move out of the pool and back, and never leak."""

from typing import NamedTuple

import pytest
import torch
from torch.testing import assert_close

from latentmas_core.engine.block_manager import BlockManager
from latentmas_core.engine.kv_pool import KVPool
from latentmas_core.engine.memory_store import MemoryStore
from latentmas_core.engine.resident import ResidentMemory
from latentmas_core.engine.sequence import Sequence
from latentmas_core.errors import SegmentError
from latentmas_core.latent.memory import Memory, MergeRule, Placement, merge
from latentmas_core.latent.rotary import rotate_keys
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
    room.blocks.check_integrity(num_refs + room.store.num_block_refs)
    room.store.check_integrity()


# --- reading --------------------------------------------------------------------------------------


def test_loaded_memory_takes_blocks_only_when_it_is_read() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    assert room.blocks.num_used == 0
    assert room.store.num_blocks_to_attach(memory) == 3
    expected = content_of(room, memory)
    reader = start(room, memory)
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)


def test_first_reader_appends_into_the_last_block_without_a_copy() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    reader = start(room, memory)
    assert memory.block_table is not None
    assert reader.block_table[:3] == memory.block_table
    assert reader.is_appender
    assert room.blocks.num_used == 4  # 10 + 6 rows


def test_second_reader_copies_the_last_block_and_shares_the_others() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    first = start(room, memory)
    assert room.store.num_blocks_to_attach(memory) == 1
    second = start(room, memory)
    assert memory.block_table is not None
    assert second.block_table[:2] == memory.block_table[:2]
    assert second.block_table[2] != memory.block_table[2]
    assert not second.is_appender
    assert_same(read_rows(room, second.block_table, 0, 10), expected)
    assert_adds_up(room, first, second)


def test_readers_do_not_see_what_others_append() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    readers = [start(room, memory) for _ in range(3)]
    own = [write_own_rows(room, reader, seed=seed) for seed, reader in enumerate(readers)]
    for reader, rows in zip(readers, own, strict=True):
        assert_same(read_rows(room, reader.block_table, 0, 10), expected)
        assert_same(read_rows(room, reader.block_table, 10, 16), rows)


def test_memory_that_fills_its_last_block_is_shared_whole_by_all() -> None:
    room = create_room()
    memory = load_rows(room, 8)
    first = start(room, memory)
    assert room.store.num_blocks_to_attach(memory) == 0
    second = start(room, memory)
    assert first.block_table[:2] == second.block_table[:2] == memory.block_table
    assert first.block_table[2:] != second.block_table[2:]
    assert_adds_up(room, first, second)


def test_reader_may_append_after_one_that_left_nothing_behind() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    end(room, start(room, memory))
    assert room.store.num_blocks_to_attach(memory) == 0
    assert start(room, memory).is_appender


def test_reader_copies_after_one_whose_rows_live_on() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    end(room, start(room, memory), keeps_tail=True)
    assert room.store.num_blocks_to_attach(memory) == 1
    assert not start(room, memory).is_appender


def test_end_of_a_copying_reader_does_not_let_a_third_one_append() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    first, second = start(room, memory), start(room, memory)
    end(room, second)
    third = start(room, memory)
    assert not third.is_appender
    assert_adds_up(room, first, third)


def test_reader_must_have_pinned_its_memory() -> None:
    room = create_room()
    with pytest.raises(AssertionError, match="did not pin"):
        room.store.attach(create_sequence(memory=load_rows(room, 3)))


# --- handing over ---------------------------------------------------------------------------------


def test_adopted_memory_is_what_was_read_and_what_was_computed() -> None:
    room = create_room()
    memory = load(room, create_segment(num_tokens=7, num_latents=3))
    before = content_of(room, memory)
    reader = start(room, memory)
    own = write_own_rows(room, reader, seed=5)
    segment = create_segment("critic", first_position=10, num_tokens=6, num_latents=0)
    adopted = room.store.adopt(reader, segment)
    end(room, reader, keeps_tail=True)
    room.store.release(memory)
    assert adopted.memory.segments == (*memory.memory.segments, segment)
    assert_same(content_of(room, adopted), KVRows.concatenate([before, own]))
    assert room.blocks.num_used == 4
    assert_adds_up(room)


def test_adopted_memory_leaves_the_blocks_of_sampled_rows() -> None:
    room = create_room()
    sequence = create_sequence(num_tokens=6)
    sequence.block_table = room.blocks.allocate(5)
    adopted = room.store.adopt(sequence, create_segment(num_tokens=6, num_latents=0))
    end(room, sequence)
    assert adopted.block_table is not None
    assert len(adopted.block_table) == room.blocks.num_used == 2
    assert_adds_up(room)


def test_adopted_memory_knows_the_latents_of_all_its_segments() -> None:
    room = create_room()
    first = create_segment(num_tokens=2, num_latents=3)
    memory = load(room, first)
    reader = start(room, memory)
    reader.latents = list(torch.randn(2, SHAPE.hidden_size))
    second = create_segment("critic", num_tokens=6, num_latents=2, first_position=5)
    third = create_segment("judger", num_tokens=1, num_latents=0, first_position=13)
    adopted = room.store.adopt(reader, second)
    assert torch.equal(adopted.latents_of(first), memory.latents_of(first))
    assert torch.equal(adopted.latents_of(second), torch.stack(reader.latents))
    reader.latents = []
    assert room.store.adopt(reader, third).latents_of(third).shape == (0, SHAPE.hidden_size)


# --- making room ----------------------------------------------------------------------------------


def bring_in(room: Room, memory: ResidentMemory) -> ResidentMemory:
    """The memory was read once: it is idle, and in blocks."""
    end(room, start(room, memory, num_tokens=1))
    assert memory.block_table is not None
    return memory


def test_moving_out_and_back_is_bit_exact() -> None:
    room = create_room(num_blocks=5)
    memory = bring_in(room, load_rows(room, 10))
    expected = content_of(room, memory)
    assert room.store.make_room(5)
    assert memory.block_table is None
    assert room.blocks.num_used == 0
    assert room.store.num_offloads == 1
    assert_same(memory.staged, expected)
    room.pool.keys.fill_(7.0)
    room.pool.values.fill_(7.0)
    reader = start(room, memory)
    assert memory.staged is None
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)


def test_nothing_is_moved_out_where_enough_is_free() -> None:
    room = create_room(num_blocks=5)
    bring_in(room, load_rows(room, 10))
    assert room.store.make_room(2)
    assert room.store.num_offloads == 0


def test_longest_unused_memory_is_moved_out_first() -> None:
    room = create_room(num_blocks=10)
    first, second, third = (bring_in(room, load_rows(room, 10)) for _ in range(3))
    bring_in(room, first)
    assert room.store.make_room(4)
    assert second.block_table is None
    assert first.block_table is not None
    assert third.block_table is not None


def test_memory_that_is_being_read_is_not_moved_out() -> None:
    room = create_room(num_blocks=7)
    read, idle = load_rows(room, 10), bring_in(room, load_rows(room, 4))
    reader = start(room, read, num_tokens=2)
    assert not room.store.make_room(5)
    assert idle.block_table is not None, "moving it out would not have helped"
    assert room.store.make_room(4)
    assert idle.block_table is None
    assert_adds_up(room, reader)


def test_spared_memory_is_not_moved_out() -> None:
    room = create_room(num_blocks=5)
    memory = bring_in(room, load_rows(room, 10))
    assert not room.store.make_room(3, spared=memory)
    assert memory.block_table is not None


def test_blocks_that_a_running_reader_shares_do_not_count_as_reclaimable() -> None:
    room = create_room(num_blocks=6)
    plan = load_rows(room, 8)
    expert = start(room, plan, num_tokens=4)
    write_own_rows(room, expert, seed=3)
    thought = room.store.adopt(expert, create_segment(first_position=8, num_tokens=4))
    end(room, expert, keeps_tail=True)
    other = start(room, plan, num_tokens=1)
    assert not room.store.make_room(5)
    assert room.store.num_offloads == 0
    assert thought.block_table is not None
    assert_adds_up(room, other)


def test_appending_is_allowed_again_after_moving_out() -> None:
    room = create_room(num_blocks=5)
    memory = load_rows(room, 10)
    end(room, start(room, memory), keeps_tail=True)
    assert room.store.make_room(5)
    assert room.store.num_blocks_to_attach(memory) == 3
    assert start(room, memory).is_appender


# --- joining, taking apart ------------------------------------------------------------------------


def create_experts(room: Room) -> list[ResidentMemory]:
    """One in blocks, one staged."""
    first = bring_in(room, load(room, create_segment("medic", num_tokens=4, num_latents=3)))
    return [first, load(room, create_segment("coder", num_tokens=2, num_latents=2))]


@pytest.mark.parametrize("rule", MergeRule)
def test_assembled_memory_holds_moved_copies_of_its_sources(rule: MergeRule) -> None:
    room = create_room()
    experts = create_experts(room)
    target = merge([expert.memory for expert in experts], rule)
    merged = room.store.assemble(target, experts)
    rows = content_of(room, merged)
    start_row = 0
    for expert, placement in zip(experts, target.placements, strict=True):
        source, end_row = content_of(room, expert), start_row + expert.num_rows
        expected = rotate_keys(source.keys, placement.shift, INV_FREQ)
        assert_same(rows.select(start_row, end_row), KVRows(expected, source.values))
        segment = placement.segment
        assert torch.equal(merged.latents_of(segment), expert.latents_of(segment))
        start_row = end_row
    assert_adds_up(room)


def test_assembled_memory_outlives_its_sources() -> None:
    room = create_room()
    experts = create_experts(room)
    merged = room.store.assemble(merge([expert.memory for expert in experts]), experts)
    expected = content_of(room, merged)
    for expert in experts:
        room.store.release(expert)
    assert_same(content_of(room, merged), expected)
    assert len(room.store) == 1
    assert_adds_up(room)


def test_assembling_in_a_full_pool_stages_the_rows() -> None:
    room = create_room(num_blocks=4)
    experts = create_experts(room)
    expected = [content_of(room, expert) for expert in experts]
    reader = start(room, experts[0], num_tokens=9)
    merged = room.store.assemble(merge([expert.memory for expert in experts]), experts)
    assert merged.block_table is None
    assert_same(merged.staged, KVRows.concatenate(expected))
    assert_adds_up(room, reader)


def test_latents_only_takes_the_rows_behind_each_prompt() -> None:
    room = create_room()
    first = create_segment("medic", num_tokens=4, num_latents=3)
    second = create_segment("coder", first_position=7, num_tokens=2, num_latents=2)
    memory = bring_in(room, load(room, first, second))
    whole = content_of(room, memory)
    latents = room.store.assemble(memory.memory.latents_only(), [memory])
    expected = KVRows.concatenate([whole.select(4, 7), whole.select(9, 11)])
    assert_same(content_of(room, latents), expected)
    assert latents.memory.next_position == memory.memory.next_position
    for segment in (first, second):
        thought = latents.latents_of(segment.latents_only())
        assert torch.equal(thought, memory.latents_of(segment))


def test_segment_that_is_in_no_source_is_refused() -> None:
    room = create_room()
    experts = create_experts(room)
    stranger = create_segment("stranger")
    with pytest.raises(SegmentError, match="'stranger' is in none of the 2 memories") as caught:
        room.store.assemble(Memory((Placement(stranger),)), experts)
    assert caught.value.param == "memory"
    assert len(room.store) == 2


def test_export_gives_keys_back_at_their_first_positions() -> None:
    room = create_room()
    experts = create_experts(room)
    sources = [content_of(room, expert) for expert in experts]
    target = merge([expert.memory for expert in experts], MergeRule.CONSECUTIVE)
    merged = room.store.assemble(target, experts)
    exported = room.store.export(merged, target.segments)
    for content, source, expert in zip(exported, sources, experts, strict=True):
        assert content.kv is not None
        assert_close(content.kv.keys, source.keys, atol=2e-6, rtol=0)
        assert torch.equal(content.kv.values, source.values)
        assert torch.equal(content.latents, expert.latents_of(expert.memory.segments[0]))


def test_export_of_some_segments_leaves_the_others() -> None:
    room = create_room()
    first, second = create_segment(num_tokens=3), create_segment(num_tokens=5, first_position=5)
    memory = bring_in(room, load(room, first, second))
    (content,) = room.store.export(memory, [second])
    assert_same(content.kv, content_of(room, memory).select(first.num_rows, memory.num_rows))


@pytest.mark.parametrize("is_placed", [True, False])
def test_exported_rows_do_not_change_with_the_pool(is_placed: bool) -> None:
    room = create_room()
    memory = load_rows(room, 6)
    if is_placed:
        bring_in(room, memory)
    expected = content_of(room, memory)
    (content,) = room.store.export(memory, memory.memory.segments)
    room.pool.keys.zero_()
    room.pool.values.zero_()
    assert_same(content.kv, expected)


@pytest.mark.parametrize("rule", MergeRule)
def test_loading_puts_segments_where_their_placements_say(rule: MergeRule) -> None:
    room = create_room()
    segments = [create_segment("medic", num_tokens=4), create_segment("coder", num_tokens=2)]
    target = merge([Memory((Placement(segment),)) for segment in segments], rule)
    tensors = {s.segment_id: create_tensors(s, seed=seed) for seed, s in enumerate(segments)}
    rows = content_of(room, room.store.load(target, tensors))
    first, second = (tensors[segment.segment_id].kv for segment in segments)
    assert first is not None
    assert second is not None
    moved = rotate_keys(second.keys, target.placements[1].shift, INV_FREQ)
    assert_same(rows, KVRows.concatenate([first, KVRows(moved, second.values)]))


def test_loaded_buffers_are_never_written_to() -> None:
    room = create_room(num_blocks=5)
    segment = create_segment(num_tokens=4, num_latents=2)
    tensors = create_tensors(segment)
    memory = room.store.load(Memory((Placement(segment),)), {segment.segment_id: tensors})
    reader = start(room, memory)
    write_own_rows(room, reader, seed=3)
    end(room, reader)
    room.store.export(memory, [segment])
    room.store.assemble(memory.memory.latents_only(), [memory])
    room.store.make_room(5)
    start(room, memory)
    expected = create_tensors(segment)
    assert_same(tensors.kv, expected.kv)
    assert torch.equal(tensors.latents, expected.latents)


def test_memory_without_keys_and_values_has_latents_and_no_rows() -> None:
    room = create_room()
    segment = create_segment()
    latents = create_tensors(segment).latents
    memory = room.store.load(
        Memory((Placement(segment),)), {segment.segment_id: SegmentTensors(latents)}
    )
    assert memory.block_table is None
    assert memory.staged is None
    assert torch.equal(memory.latents_of(segment), latents)
    room.store.check_integrity()
    room.store.release(memory)
    assert len(room.store) == 0


# --- releasing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_placed", [True, False])
def test_released_memory_is_gone_at_once(is_placed: bool) -> None:
    room = create_room()
    memory = load_rows(room, 10)
    if is_placed:
        bring_in(room, memory)
    room.store.release(memory)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)
    assert memory.is_released
    assert_adds_up(room)


def test_memory_released_under_a_reader_lives_until_it_ends() -> None:
    room = create_room()
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    reader = start(room, memory)
    room.store.release(memory)
    assert_same(read_rows(room, reader.block_table, 0, 10), expected)
    assert_adds_up(room, reader)
    end(room, reader)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)
    assert_adds_up(room)


def test_memory_released_while_readers_wait_lives_until_the_last_has_ended() -> None:
    room = create_room(num_blocks=5)
    memory = load_rows(room, 10)
    expected = content_of(room, memory)
    room.store.pin(memory)  # somebody else waits
    room.store.release(memory)
    first = start_pinned(room, memory)
    end(room, first)
    assert room.store.make_room(5)
    second = start_pinned(room, memory)
    assert_same(read_rows(room, second.block_table, 0, 10), expected)
    end(room, second)
    assert len(room.store) == 1
    room.store.unpin(memory)
    assert (room.blocks.num_used, len(room.store)) == (0, 0)


def start_pinned(room: Room, memory: ResidentMemory) -> Sequence:
    """A reader that had arrived before the memory was released."""
    memory.num_pins += 1
    sequence = create_sequence(num_tokens=1, memory=memory)
    room.store.attach(sequence)
    return sequence


def test_new_reader_of_a_released_memory_is_our_bug() -> None:
    room = create_room()
    memory = load_rows(room, 3)
    room.store.release(memory)
    with pytest.raises(AssertionError, match="was released"):
        room.store.pin(memory)


def test_releasing_twice_is_our_bug_and_frees_nothing_more() -> None:
    room = create_room()
    kept, released = bring_in(room, load_rows(room, 3)), bring_in(room, load_rows(room, 3))
    room.store.release(released)
    with pytest.raises(AssertionError, match="released twice"):
        room.store.release(released)
    assert kept.block_table is not None
    assert_adds_up(room)


def test_integrity_notices_a_memory_that_lies_in_two_places() -> None:
    room = create_room()
    memory = bring_in(room, load_rows(room, 3))
    memory.staged = content_of(room, memory)
    with pytest.raises(AssertionError, match="in blocks and staged"):
        room.store.check_integrity()
